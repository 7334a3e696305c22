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


@triton.constexpr_function
def plane_count(bits):
    """Planes of a width."""
    return len(planes(bits))


@triton.constexpr_function
def plane_width(bits, i):
    """Bits of plane `i`, high planes first."""
    return planes(bits)[i]


@triton.constexpr_function
def step_units(bits):
    """Units that one loop step expands."""
    return units_a_step(bits)


@triton.constexpr_function
def log2_step(bits):
    """log2 of v / level."""
    return 6 if bits == 1 else 8 - bits


@triton.constexpr_function
def float_step(bits, dtype):
    """w / level of the float weights: half of v for bfloat16, whose mantissa has 7 bits."""
    return 2.0 ** (log2_step(bits) - (1 if dtype == tl.bfloat16 and bits < 8 else 0))


def _fields(bits, unit):
    """(shift left, mask) of each plane's field of a unit, in a byte."""
    found, top = [], 8
    for width in planes(bits):
        top -= width
        found.append((top - unit % (8 // width) * width, ((1 << width) - 1) << top))
    return found


@triton.constexpr_function
def shift_of(bits, unit, i):
    """How far plane `i`'s field of the unit moves to the left."""
    return _fields(bits, unit)[i][0]


@triton.constexpr_function
def mask_of(bits, unit, i):
    """Where it then is in the byte."""
    return _fields(bits, unit)[i][1]


def _word(byte):
    return f"0x{byte * 0x01010101:08x}"


def _merge(bits, unit, first):
    """PTX: register `u` = v + 128 in each byte, from the planes' words."""
    lines = [".reg .b32 a, u;"]
    if bits == 8:
        return [*lines, f"xor.b32 u, ${first}, 0x80808080;"]
    for i, (shift, mask) in enumerate(_fields(bits, unit)):
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
def half_asm(bits, unit):
    """PTX for four float16 weights: 0x6400 | u is the number 1024 + u."""
    lines = [
        *_merge(bits, unit, 2),
        ".reg .b32 l, h;",
        "prmt.b32 l, u, 0x64646464, 0x4140;",
        "prmt.b32 h, u, 0x64646464, 0x4342;",
        "mov.b32 a, 0x64806480;",
        "sub.f16x2 $0, l, a;",
        "sub.f16x2 $1, h, a;",
    ]
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
        return p0.to(tl.int8, bitcast=True)
    v = _moved(p0, shift_of(BITS, UNIT, 0)) & mask_of(BITS, UNIT, 0)
    if plane_count(BITS) > 1:
        v = v | (_moved(p1, shift_of(BITS, UNIT, 1)) & mask_of(BITS, UNIT, 1))
    if plane_count(BITS) > 2:
        v = v | (_moved(p2, shift_of(BITS, UNIT, 2)) & mask_of(BITS, UNIT, 2))
    if BITS == 1:
        v = v | 0x40
    return (v - 128).to(tl.int8)


@triton.jit
def _moved(p, SHIFT: tl.constexpr):
    wide = p.to(tl.int32)
    if SHIFT >= 0:
        return wide << SHIFT
    return wide >> (0 - SHIFT)


@triton.jit
def int8_weights(p0, p1, p2, BITS: tl.constexpr, UNIT: tl.constexpr, PTX: tl.constexpr):
    """int8 v of unit `UNIT` of a step, from its byte tiles of up to three planes."""
    if BITS == 8:
        return p0.to(tl.int8, bitcast=True)
    if not PTX:
        return _merged(p0, p1, p2, BITS, UNIT)
    if plane_count(BITS) == 1:
        return tl.inline_asm_elementwise(
            int8_asm(BITS, UNIT), "=r,r", [p0], dtype=tl.int8, is_pure=True, pack=4
        )
    if plane_count(BITS) == 2:
        return tl.inline_asm_elementwise(
            int8_asm(BITS, UNIT), "=r,r,r", [p0, p1], dtype=tl.int8, is_pure=True, pack=4
        )
    return tl.inline_asm_elementwise(
        int8_asm(BITS, UNIT), "=r,r,r,r", [p0, p1, p2], dtype=tl.int8, is_pure=True, pack=4
    )


@triton.jit
def _float_ptx(p0, p1, p2, BITS: tl.constexpr, ASM: tl.constexpr, DTYPE: tl.constexpr):
    if plane_count(BITS) == 1:
        return tl.inline_asm_elementwise(ASM, "=r,=r,r", [p0], dtype=DTYPE, is_pure=True, pack=4)
    if plane_count(BITS) == 2:
        return tl.inline_asm_elementwise(
            ASM, "=r,=r,r,r", [p0, p1], dtype=DTYPE, is_pure=True, pack=4
        )
    return tl.inline_asm_elementwise(
        ASM, "=r,=r,r,r,r", [p0, p1, p2], dtype=DTYPE, is_pure=True, pack=4
    )


@triton.jit
def float_weights(
    p0, p1, p2, BITS: tl.constexpr, UNIT: tl.constexpr, DTYPE: tl.constexpr, PTX: tl.constexpr
):
    """Weights times `float_step` in float16, bfloat16 or float32 (all exact)."""
    if not PTX:
        w = _merged(p0, p1, p2, BITS, UNIT).to(tl.float32)
        if DTYPE == tl.bfloat16 and BITS < 8:
            w = w * 0.5
        return w.to(DTYPE)
    if DTYPE == tl.bfloat16:
        return _float_ptx(p0, p1, p2, BITS, bfloat_asm(BITS, UNIT), tl.bfloat16)
    return _float_ptx(p0, p1, p2, BITS, half_asm(BITS, UNIT), tl.float16).to(DTYPE)
