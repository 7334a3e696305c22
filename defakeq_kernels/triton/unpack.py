"""From bytes of planes to weights, in registers.

A weight is v = level * step, an int8 whose step is 2^(8-bits) (64 for one bit): codes are moved to
the top of their byte, where the symmetric zero point is one bit flip. On the device this works on
four bytes a register through inline PTX; each output depends on the byte of its own place alone, so
the order in which the compiler packs bytes does not matter. Under the interpreter, which knows no
PTX, the same values come from ordinary operations.
"""

from __future__ import annotations

import triton
import triton.language as tl

from defakeq_kernels.triton.layout import planes, units_a_step

planes_of = triton.constexpr_function(planes)
step_units = triton.constexpr_function(units_a_step)


@triton.constexpr_function
def plane_count(bits):
    """Planes of a width."""
    return len(planes_of(bits))


@triton.constexpr_function
def plane_width(bits, i):
    """Bits of plane `i`, high planes first."""
    return planes_of(bits)[i]


@triton.constexpr_function
def bits_before(bits, i):
    """Bits of the planes before plane `i`."""
    return sum(planes_of(bits)[:i])


@triton.constexpr_function
def fields_of(bits, i):
    """Units that a byte of plane `i` holds; 8 for a plane that is not there."""
    found = planes_of(bits)
    return 8 // found[i] if i < len(found) else 8


@triton.constexpr_function
def log2_step(bits):
    """log2 of v / level."""
    return 6 if bits == 1 else 8 - bits


@triton.constexpr_function
def float_step(bits, dtype):
    """w / level of the float weights: half of v for bfloat16, whose mantissa has 7 bits."""
    return 2.0 ** (log2_step(bits) - (1 if dtype == tl.bfloat16 and bits < 8 else 0))


@triton.constexpr_function
def _top(bits, i):
    """The lowest bit of plane `i` in a byte whose code has been moved to the top."""
    return 8 - sum(planes_of(bits)[: i + 1])


@triton.constexpr_function
def shift_of(bits, unit, i):
    """How far plane `i`'s field of the unit moves to the left."""
    width = planes_of(bits)[i]
    return _top(bits, i) - unit % (8 // width) * width


@triton.constexpr_function
def mask_of(bits, i):
    """Where it then is in the byte."""
    return ((1 << planes_of(bits)[i]) - 1) << _top(bits, i)


@triton.constexpr_function
def _word(byte):
    return f"0x{byte * 0x01010101:08x}"


@triton.constexpr_function
def _merge(bits, unit, first):
    """PTX: register `u` = v + 128 in each byte, from the planes' words."""
    lines = [".reg .b32 a, u;"]
    if bits == 8:
        return [*lines, f"xor.b32 u, ${first}, 0x80808080;"]
    for i in range(len(planes_of(bits))):
        shift = shift_of(bits, unit, i)
        mask = mask_of(bits, i)
        source = f"${first + i}"
        if shift:
            op = "shl" if shift > 0 else "shr"
            lines.append(f"{op}.b32 a, {source}, {abs(shift)};")
            source = "a"
        if i == 0:
            # one-bit codes: 0 -> 64, 1 -> 192, so that v is -64 or 64
            add = _word(0x40 if bits == 1 else 0)
            lines.append(f"lop3.b32 u, {source}, {_word(mask)}, {add}, 0xea;")  # a & b | c
        else:
            lines.append(f"lop3.b32 u, {source}, {_word(mask)}, u, 0xea;")
    return lines


@triton.constexpr_function
def int8_asm(bits, unit):
    """PTX for four int8 weights."""
    return "{ " + " ".join([*_merge(bits, unit, 1), "xor.b32 $0, u, 0x80808080;"]) + " }"


@triton.constexpr_function
def half_asm(bits, unit, zeros=False):
    """PTX for four float16 weights: 0x6400 | u is the number 1024 + u.

    With `zeros` the last two operands are four values of `zero_of` to subtract.
    """
    last = 2 + len(planes_of(bits))
    lines = [
        *_merge(bits, unit, 2),
        ".reg .b32 l, h;",
        "prmt.b32 l, u, 0x64646464, 0x4140;",
        "prmt.b32 h, u, 0x64646464, 0x4342;",
    ]
    if zeros:
        lines += [f"sub.f16x2 $0, l, ${last};", f"sub.f16x2 $1, h, ${last + 1};"]
    else:
        lines += ["mov.b32 a, 0x64806480;", "sub.f16x2 $0, l, a;", "sub.f16x2 $1, h, a;"]
    return "{ " + " ".join(lines) + " }"


@triton.constexpr_function
def bfloat_asm(bits, unit):
    """PTX for four bfloat16 weights: 0x4300 | u is 128 + u up to 7 bits; 8 bits go by float32."""
    lines = [*_merge(bits, unit, 2), ".reg .b32 l, h;"]
    if bits < 8:
        lines += [
            "shr.b32 u, u, 1;",
            "prmt.b32 l, u, 0x43434343, 0x4140;",
            "prmt.b32 h, u, 0x43434343, 0x4342;",
            ".reg .b32 o, n;",
            "mov.b32 o, 0x3f803f80;",
            "mov.b32 n, 0xc340c340;",
            "fma.rn.bf16x2 $0, l, o, n;",
            "fma.rn.bf16x2 $1, h, o, n;",
        ]
        return "{ " + " ".join(lines) + " }"
    lines += ["mov.b32 a, 0x4b000000;", ".reg .f32 f0, f1, f2, f3;"]
    for i in range(4):
        lines.append(f"prmt.b32 l, u, a, 0x765{i};")
        lines.append("mov.b32 h, 0x4b000080;")
        lines.append(f"{{ .reg .f32 x, y; mov.b32 x, l; mov.b32 y, h; sub.f32 f{i}, x, y; }}")
    lines += ["cvt.rn.bf16x2.f32 $0, f1, f0;", "cvt.rn.bf16x2.f32 $1, f3, f2;"]
    return "{ " + " ".join(lines) + " }"


@triton.jit
def _merged(p0, p1, p2, BITS: tl.constexpr, UNIT: tl.constexpr):
    """v as int8, by ordinary operations."""
    if BITS == 8:
        v = p0.to(tl.int8, bitcast=True)
    else:
        u = _moved(p0, shift_of(BITS, UNIT, 0)) & mask_of(BITS, 0)
        if plane_count(BITS) > 1:
            u = u | (_moved(p1, shift_of(BITS, UNIT, 1)) & mask_of(BITS, 1))
        if plane_count(BITS) > 2:
            u = u | (_moved(p2, shift_of(BITS, UNIT, 2)) & mask_of(BITS, 2))
        if BITS == 1:
            u = u | 0x40
        v = (u - 128).to(tl.int8)
    return v


@triton.jit
def _moved(p, SHIFT: tl.constexpr):
    if SHIFT >= 0:
        moved = p.to(tl.int32) << SHIFT
    else:
        moved = p.to(tl.int32) >> (0 - SHIFT)
    return moved


@triton.jit
def _half_without(p0, p1, p2, zeros, BITS: tl.constexpr, ASM: tl.constexpr):
    """Four float16 weights from four bytes of each plane, less the zero points in `zeros`."""
    if plane_count(BITS) == 1:
        w = tl.inline_asm_elementwise(
            ASM, "=r,=r,r,r,r", [p0, zeros], dtype=tl.float16, is_pure=True, pack=4
        )
    elif plane_count(BITS) == 2:
        w = tl.inline_asm_elementwise(
            ASM, "=r,=r,r,r,r,r", [p0, p1, zeros], dtype=tl.float16, is_pure=True, pack=4
        )
    else:
        w = tl.inline_asm_elementwise(
            ASM, "=r,=r,r,r,r,r,r", [p0, p1, p2, zeros], dtype=tl.float16, is_pure=True, pack=4
        )
    return w


@triton.jit
def _ptx(p0, p1, p2, BITS: tl.constexpr, ASM: tl.constexpr, OUT: tl.constexpr, DTYPE: tl.constexpr):
    """Four values of `DTYPE` from four bytes of each plane; `OUT`: the result's registers."""
    if plane_count(BITS) == 1:
        w = tl.inline_asm_elementwise(
            ASM, OUT + ",r", [p0], dtype=DTYPE.value, is_pure=True, pack=4
        )
    elif plane_count(BITS) == 2:
        w = tl.inline_asm_elementwise(
            ASM, OUT + ",r,r", [p0, p1], dtype=DTYPE.value, is_pure=True, pack=4
        )
    else:
        w = tl.inline_asm_elementwise(
            ASM, OUT + ",r,r,r", [p0, p1, p2], dtype=DTYPE.value, is_pure=True, pack=4
        )
    return w


@triton.jit
def int8_weights(p0, p1, p2, BITS: tl.constexpr, UNIT: tl.constexpr, PTX: tl.constexpr):
    """int8 v of unit `UNIT` of a step, from its byte tiles of up to three planes."""
    if BITS == 8:
        v = p0.to(tl.int8, bitcast=True)
    elif PTX:
        v = _ptx(p0, p1, p2, BITS, int8_asm(BITS, UNIT), "=r", tl.int8)
    else:
        v = _merged(p0, p1, p2, BITS, UNIT)
    return v


@triton.jit
def float_weights(
    p0, p1, p2, BITS: tl.constexpr, UNIT: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr,
    zero=None,
):  # fmt: skip
    """Weights times `float_step` in float16, bfloat16 or float32 (all exact).

    `zero`: zero points in levels, int32, broadcast to the tiles' shape; None: all are 0.
    """
    if PTX and tl.bfloat16 == DTYPE:
        w = _ptx(p0, p1, p2, BITS, bfloat_asm(BITS, UNIT), "=r,=r", tl.bfloat16)
    elif PTX and zero is not None:
        # 1024 + u less 1152 + the zero point: both are whole numbers below 2048
        zeros = ((zero << log2_step(BITS)) + 1152).to(tl.float16)
        zeros = tl.broadcast_to(zeros, p0.shape)
        w = _half_without(p0, p1, p2, zeros, BITS, half_asm(BITS, UNIT, True)).to(DTYPE)
    elif PTX:
        w = _ptx(p0, p1, p2, BITS, half_asm(BITS, UNIT), "=r,=r", tl.float16).to(DTYPE)
    else:
        w = _merged(p0, p1, p2, BITS, UNIT).to(tl.float32)
        if tl.bfloat16 == DTYPE and BITS < 8:
            w = w * 0.5
        w = w.to(DTYPE)
    if zero is not None and (not PTX or tl.bfloat16 == DTYPE):
        w = w - (zero.to(tl.float32) * float_step(BITS, DTYPE)).to(DTYPE)
    return w
