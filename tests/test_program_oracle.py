"""The oracle of programs against independent torch computations, within computed bounds."""

from __future__ import annotations

import numpy as np
import pytest
from program_builder import Builder

from defakeq_kernels import reference_program as oracle
from defakeq_kernels.quantize import ActQuant

torch = pytest.importorskip("torch")

from defakeq_kernels.torch_functions import UNARY  # noqa: E402

UNIT = 2.0**-24
F = torch.nn.functional


def one_node(op, shape, out_shape, q=None, out_q=None, ins=(), tensors=None, x=None, **attributes):
    """(the input's real values as float64, the output's) of a single node."""
    b = Builder()
    at = b.input(shape, q)
    others = [b.constant(a) for a in ins]
    names = {key: b.tensor(a) for key, a in (tensors or {}).items()}
    y = b.node(op, [at, *others], out_shape, out_q, **attributes, **names)
    b.output(y)
    b.output(at)
    if x is None:
        x = b.rng.standard_normal((1, *shape)).astype(np.float32)
    found, read = oracle.run(b.source(), [x])
    return torch.from_numpy(read[0]).double(), torch.from_numpy(found[0]).double()


@pytest.mark.parametrize("fn", oracle.UNARY)
def test_unary(fn):
    x = np.abs(np.random.default_rng(1).standard_normal((1, 5, 33))).astype(np.float32) + 0.1
    x = x if fn in ("log", "sqrt", "rsqrt", "reciprocal") else x * np.float32(3) - np.float32(4)
    read, found = one_node("unary", (5, 33), (5, 33), x=x, fn=fn)
    expected = UNARY[fn](read)
    assert torch.all((found - expected).abs() <= 2.0**-19 * (1 + expected.abs()))


@pytest.mark.parametrize("fn", oracle.BINARY)
@pytest.mark.parametrize("b_shape", [(4, 19), (19,), (1,), (4, 1)])
@pytest.mark.parametrize("q", [None, ActQuant.static(-2, 3)])
def test_binary(fn, b_shape, q):
    other = np.random.default_rng(2).uniform(0.5, 2, b_shape).astype(np.float32)
    read, found = one_node("binary", (4, 19), (4, 19), q, ins=[other], fn=fn)
    b = torch.from_numpy(other).double()
    table = {"add": read + b, "sub": read - b, "mul": read * b, "div": read / b}
    table |= {"max": torch.maximum(read, b), "min": torch.minimum(read, b)}
    assert torch.all((found - table[fn]).abs() <= 4 * UNIT * (read.abs() + b + table[fn].abs()))


@pytest.mark.parametrize("channels", [1, 15, 16, 17, 70])
def test_layer_norm_and_rows(channels):
    rng = np.random.default_rng(3)
    gamma, beta = rng.standard_normal((2, channels)).astype(np.float32)
    rows = np.array([2, -1, 0, 3, 1], np.int32)
    read, found = one_node(
        *("layer_norm", (4, channels), (5, channels)),
        tensors={"gamma": gamma, "beta": beta, "rows": rows},
        eps=1e-5,
        count=channels + 3,
    )
    wide = F.pad(read, (0, 3))
    full = F.layer_norm(wide, (channels + 3,), eps=float(np.float32(1e-5)))[:, :channels]
    full = full * torch.from_numpy(gamma).double() + torch.from_numpy(beta).double()
    assert torch.all(found[1] == 0)
    kept = torch.tensor([0, 2, 3, 4])
    expected = full[torch.from_numpy(rows).long()[kept]]
    bound = (channels + 40) * 8 * UNIT * (1 + expected.abs())
    assert torch.all((found[kept] - expected).abs() <= bound)


def test_softmax_and_reductions():
    read, found = one_node("softmax", (6, 37), (6, 37))
    assert torch.all((found - read.softmax(-1)).abs() <= 2.0**-19)
    for fn, expected in (
        ("mean", lambda v: v.mean(-1)),
        ("sum", lambda v: v.sum(-1)),
        ("max", lambda v: v.amax(-1)),
        ("l2", lambda v: v.norm(dim=-1)),
    ):
        read, found = one_node("reduce", (6, 37), (6,), fn=fn)
        assert torch.all((found - expected(read)).abs() <= 40 * UNIT * read.abs().sum(-1))


@pytest.mark.parametrize("q", [None, ActQuant.static(-2, 3)])
@pytest.mark.parametrize("ceil", [False, True])
@pytest.mark.parametrize("whole", [False, True])
def test_pooling(q, ceil, whole):
    def nhwc(y):
        return y[0].permute(1, 2, 0)

    cases = [((9, 8, 5), 3, 2, 1), ((7, 7, 3), 2, 3, 0)]
    cases += [((5, 6, channels), 2, 2, 0) for channels in (9, 27, 45, 70)]
    for shape, kernel, stride, padding in cases:
        probe = torch.zeros(1, 1, *shape[:2])
        size = F.max_pool2d(probe, kernel, stride, padding, ceil_mode=ceil).shape[2:]
        geometry = {"kernel": [kernel] * 2, "stride": [stride] * 2, "padding": [padding] * 2}
        geometry |= {"ceil_mode": ceil, "count_include_pad": whole}
        out = (*size, shape[2])
        read, found = one_node("pool2d", shape, out, q, q, mode="max", **geometry)
        image = read.permute(2, 0, 1)[None]
        assert torch.equal(found, nhwc(F.max_pool2d(image, kernel, stride, padding, 1, ceil)))
        read, found = one_node("pool2d", shape, out, q, mode="avg", **geometry)
        expected = nhwc(F.avg_pool2d(image, kernel, stride, padding, ceil, whole))
        assert torch.all((found - expected).abs() <= 16 * UNIT * read.abs().max())


@pytest.mark.parametrize("q", [None, ActQuant.static(-2, 3)])
def test_means_and_interpolation(q):
    read, found = one_node("mean_rows", (5, 7, 6), (6,), q)
    assert torch.all((found - read.mean((0, 1))).abs() <= 64 * UNIT * 4)
    read, found = one_node("adaptive_avg_pool2d", (7, 5, 6), (3, 4, 6), q, size=[3, 4])
    image = read.permute(2, 0, 1)[None]
    expected = F.adaptive_avg_pool2d(image, (3, 4))[0].permute(1, 2, 0)
    assert torch.all((found - expected).abs() <= 64 * UNIT * 4)
    for corners in (False, True):
        scale = [6 / 10, 4 / 8] if corners else [7 / 11, 5 / 9]
        attributes = {"mode": "bilinear", "align_corners": corners, "scale": scale}
        attributes["size"] = [11, 9]
        read, found = one_node("interpolate", (7, 5, 6), (11, 9, 6), q, **attributes)
        expected = F.interpolate(image, (11, 9), mode="bilinear", align_corners=corners)
        assert torch.all((found - expected[0].permute(1, 2, 0)).abs() <= 64 * UNIT * 4)


def test_attention_is_close_to_torch():
    q = ActQuant.static(-3, 3)
    heads, dim, tokens = 3, 8, 11
    width = heads * dim
    stride = {"batch": tokens * 3 * width, "token": 3 * width, "head": dim}
    layouts = {n: {"offset": i * width, **stride} for i, n in enumerate("qkv")}
    b = Builder(4)
    at = b.input((2, tokens, 3 * width), q)
    alpha = float(np.float32(q.scale * q.scale * dim**-0.5))
    sizes = {"heads": heads, "head_dim": dim, "batches": 2, "q_tokens": tokens, "k_tokens": tokens}
    b.output(b.node("attention", [at] * 3, (2, tokens, width), **sizes, **layouts, alpha=alpha))
    b.output(at)
    x = b.rng.standard_normal((1, 2, tokens, 3 * width)).astype(np.float32)
    found, read = oracle.run(b.source(), [x])
    qkv = torch.from_numpy(read[0]).double().reshape(2, tokens, 3, heads, dim)
    expected = F.scaled_dot_product_attention(*qkv.permute(2, 0, 3, 1, 4))
    expected = expected.transpose(1, 2).reshape(2, tokens, width)
    # every probability is rounded to 1/255 of the largest one
    assert np.all(np.abs(found[0] - expected.numpy()) <= tokens * 3.1 / 255)


def test_matmul_copy_lookup_and_layers():
    q = ActQuant.static(-3, 3)
    b = Builder(5)
    at = b.input((6, 6), q)
    strides = {"row": 6, "col": 1}
    sizes = {"batches": 1, "m": 6, "n": 6, "k": 6, "alpha": 1.0}
    b.output(b.node("matmul", [at, at], (1, 6, 6), a=strides, b=strides, **sizes))
    index = b.tensor(np.array([3, -1, 0], np.int32))
    moved = b.node("copy", [at], (3, 6), q, index=index, chunk=6)
    table = b.tensor(np.arange(127, -129, -1).astype(np.int8))
    looked = b.node("lookup", [moved], (3, 6), q, table=table)
    layer = b.layer("linear", (9, 6), q, q, bits=4)
    b.node("linear", [looked], (3, 9), q, layer=layer)
    x = b.rng.standard_normal((1, 6, 6)).astype(np.float32)
    values = oracle.trace(b.source(), [x])[0]
    levels = values[0].astype(np.int64) - q.zero_point
    assert np.array_equal(values[1][0], (levels @ levels).astype(np.float32))
    assert np.array_equal(values[2][[0, 2]], values[0][[3, 0]])
    assert np.all(values[2][1] == q.zero_point)
    assert np.array_equal(values[3], (-1 - values[2].astype(int)).astype(np.int8))
    assert values[4].shape == (3, 9)


def test_views_share_their_base_and_an_empty_batch_keeps_shapes():
    q = ActQuant.static(-3, 3)
    b = Builder()
    at = b.input((4, 5, 3), q, "nchw")
    base = b.value((2, 60), q)
    for i in range(2):
        out = b.value((4, 5, 3), q, base=base, offset=60 * i)
        b.program["nodes"].append({"op": "convert", "name": "c", "in": [at], "out": [out]})
    b.output(base)
    x = b.rng.standard_normal((2, 3, 4, 5)).astype(np.float32)
    (y,) = oracle.run(b.source(), [x])
    assert np.array_equal(y[:, 0], y[:, 1])
    assert oracle.run(b.source(), [x[:0]])[0].shape == (0, 2, 60)


def test_malformed_programs_are_refused_by_name():
    def build(op="convert", ins=(0,), shape=(4,), **extra):
        b = Builder()
        b.input((4,))
        b.output(b.node(op, ins, shape, **extra))
        return b.source()

    x = np.zeros((1, 4), np.float32)
    for source, message in (
        (build("nothing"), r"nodes\[0\] nothing0.op: found 'nothing'"),
        (build(ins=(9,)), r"\.in: found \[9\]"),
        (build(ins=(1,)), "before it is written"),
        (build(shape=(5,)), "out: found"),
        (build("unary", fn="sin"), "fn: found 'sin'"),
        (build("linear", layer="l"), "layer: found 'l'"),
        (build("lookup", table="t"), "table: found 't'"),
    ):
        with pytest.raises(ValueError, match=message):
            oracle.run(source, [x])
    with pytest.raises(ValueError, match="input x0: found"):
        oracle.run(build(), [x[:, :3]])


def test_maxima_pass_over_values_that_are_no_numbers():
    x = np.full((1, 2, 19), np.nan, np.float32)
    x[0, 0, 18] = -4
    _, found = one_node("reduce", (2, 19), (2,), x=x, fn="max")
    assert found.tolist() == [-4, -np.inf]
    x = np.full((1, 2, 2, 1), np.nan, np.float32)
    x[0, 1, 0] = 2
    geometry = {"kernel": [2, 2], "stride": [2, 2], "mode": "max"}
    _, found = one_node("pool2d", (2, 2, 1), (1, 1, 1), x=x, **geometry)
    assert found.item() == 2


def test_constants_of_repeated_columns(tmp_path):
    from defakeq_kernels import dfq, runtime

    b = Builder()
    x = b.input((2, 3, 4))
    table = b.rng.standard_normal((2, 5)).astype(np.float32)
    index = np.array([4, 0, 0, 1, 2, 3, 3, 3, 1, 0, 4, 4], np.int32)
    held = b.value((2, 3, 4), tensor=b.tensor(table), index=b.tensor(index))
    b.output(b.node("binary", [x, held], (2, 3, 4), fn="add"))
    image = b.rng.standard_normal((1, 2, 3, 4)).astype(np.float32)
    (found,) = oracle.run(b.source(), [image])
    assert np.array_equal(found, image + table[:, index].reshape(1, 2, 3, 4))
    path = tmp_path / "repeats.dfq"
    path.write_bytes(dfq.dumps(b.tensors, b.network))
    assert runtime.load(path)(image).tobytes() == found.tobytes()

    for wrong, message in ((index + 1, "accepted"), (index[:-1], "accepted")):
        b.tensors[b.values[held]["index"]] = wrong.astype(np.int32)
        with pytest.raises(ValueError, match=rf"index: found .*{message}"):
            oracle.run(b.source(), [image])
        path.write_bytes(dfq.dumps(b.tensors, b.network))
        with pytest.raises(RuntimeError, match=rf"index: found .*{message}"):
            runtime.load(path)


def test_copies_of_a_repeated_index(tmp_path):
    from defakeq_kernels import dfq, runtime

    b = Builder()
    x, y = b.input((4, 1)), b.input((4, 2))
    step = b.tensor(np.array([1, 2, 2], np.int32))
    index = b.tensor(np.array([0, 4, 5], np.int32))
    again = {"index": index, "step": step, "repeats": 4, "chunk": 1}
    b.output(b.node("copy", [x, y], (4, 3), **again))
    images = [b.rng.standard_normal((1, 4, c)).astype(np.float32) for c in (1, 2)]
    path = tmp_path / "repeats.dfq"

    def written():
        path.write_bytes(dfq.dumps(b.tensors, b.network))
        return path

    for run in (
        lambda: oracle.run(b.source(), images)[0],
        lambda: runtime.load(written())(*images),
    ):
        assert np.array_equal(run(), np.concatenate(images, 2))
    node = b.program["nodes"][0]
    assert np.array_equal(dfq.copy_index(b.tensors, node)[-3:], [3, 10, 11])

    for change, message in (
        ((4, 2, 2), "index|step"), ((-1, 2, 2), "index|step"), ((1, 2), "step")
    ):  # fmt: skip
        b.tensors[step] = np.array(change, np.int32)
        for run, error in (
            (lambda: oracle.run(b.source(), images), ValueError),
            (lambda: runtime.load(written()), RuntimeError),
        ):
            with pytest.raises(error, match=rf"({message}): found"):
                run()
