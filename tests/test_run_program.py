"""`torch.ops.defakeq.run_program`: the bytes of the runtime, tracing, layouts, refusals."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest
from program_builder import Builder

torch = pytest.importorskip("torch")

from defakeq_kernels import dfq, runtime  # noqa: E402
from defakeq_kernels import ops as dq  # noqa: E402

CHECKS = ("test_schema", "test_autograd_registration", "test_faketensor")
CHECKS += ("test_aot_dispatch_dynamic",)


def network(seed: int = 0) -> bytes:
    """Two inputs, an image and a vector; two outputs, an image and a vector."""
    b = Builder(seed)
    q = b.quant()
    image = b.input((8, 6, 3), q, "nchw")
    vector = b.input((16,))
    conv = b.layer("conv2d", (16, 3, 3, 3), q, q, "relu", padding=1, bits=4)
    hidden = b.node("conv2d", [image], (8, 6, 16), q, layer=conv)
    mean = b.node("mean_rows", [hidden], (16,))
    b.output(hidden, "nchw")
    b.output(b.node("binary", [mean, vector], (16,), None, fn="add"))
    return dfq.dumps(b.tensors, b.network)


SHAPES = ((16, 8, 6), (16,))
FLAT = [3, 16, 8, 6, 1, 16]


def as_tensor(data: bytes) -> torch.Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def images(batch: int = 2, seed: int = 1) -> list[torch.Tensor]:
    rng = np.random.default_rng(seed)
    shapes = ((batch, 3, 8, 6), (batch, 16))
    return [torch.from_numpy(rng.standard_normal(s).astype(np.float32)) for s in shapes]


@pytest.fixture
def program() -> torch.Tensor:
    return as_tensor(network())


def same(found, expected) -> bool:
    pairs = zip(found, expected, strict=True)
    return all(np.asarray(y).tobytes() == np.asarray(e).tobytes() for y, e in pairs)


class Net(torch.nn.Module):
    def __init__(self, data: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("data", data)

    def forward(self, image, vector):
        y, z = dq.run_program(self.data, [image * 2, vector], SHAPES)
        return y + 1, z


@pytest.mark.parametrize("threads", [0, 1, 3])
@pytest.mark.parametrize("batch", [0, 1, 5])
def test_gives_the_bytes_of_the_runtime(program, batch, threads):
    inputs = images(batch)
    found = dq.run_program(program, inputs, SHAPES, threads)
    expected = runtime.loads(network(), 1)(*(x.numpy() for x in inputs))
    assert [tuple(y.shape) for y in found] == [(batch, 16, 8, 6), (batch, 16)]
    assert same(found, expected)


def test_loads_from_memory_as_from_a_file(tmp_path):
    data = network()
    path = tmp_path / "net.dfq"
    path.write_bytes(data)
    inputs = [x.numpy() for x in images()]
    expected = runtime.load(path, 1)(*inputs)
    odd = np.frombuffer(b"x" + data, np.uint8)[1:]
    for form in (data, bytearray(data), memoryview(data), odd):
        assert same(runtime.loads(form, 1)(*inputs), expected)
    with pytest.raises(ValueError, match="data: found a buffer of 1 dimensions and items of 4"):
        runtime.loads(np.zeros(8, np.float32))
    with pytest.raises(RuntimeError, match="header length"):
        runtime.loads(b"")


def test_takes_any_strides(program):
    image, vector = images(4)
    expected = dq.run_program(program, [image, vector], SHAPES)
    wide = torch.zeros(4, 3, 8, 12)
    wide[..., ::2] = image
    forms = [
        (image.contiguous(memory_format=torch.channels_last), vector),
        (wide[..., ::2], vector.T.contiguous().T),
    ]
    for form in forms:
        assert not all(x.is_contiguous() for x in form)
        assert same(dq.run_program(program, form, SHAPES), expected)
    one = dq.run_program(program, [image[1:2], vector[1:2]], SHAPES)
    assert same(one, [y[1:2] for y in expected])


def test_an_unaligned_or_changed_program_is_loaded_as_it_is(program):
    inputs = images()
    expected = dq.run_program(program, inputs, SHAPES)
    shifted = torch.cat([torch.zeros(3, dtype=torch.uint8), program])[3:]
    assert shifted.data_ptr() % 8
    assert same(dq.run_program(shifted, inputs, SHAPES), expected)
    other = network(1)
    assert len(other) == len(program)
    program.copy_(as_tensor(other))
    changed = dq.run_program(program, inputs, SHAPES)
    assert same(changed, runtime.loads(other, 1)(*(x.numpy() for x in inputs)))
    assert not same(changed, expected)


def test_keeps_and_releases_programs(program):
    inputs = images()
    expected = dq.run_program(program, inputs, SHAPES)
    dq.release_programs()
    assert same(dq.run_program(program, inputs, SHAPES), expected)
    many = [as_tensor(network()) for _ in range(40)]
    for data in [*many, *many]:
        assert same(dq.run_program(data, inputs, SHAPES), expected)


@pytest.mark.parametrize("threads", [0, 2])
def test_opcheck(program, threads):
    op = torch.ops.defakeq.run_program.default
    torch.library.opcheck(op, (program, images(), FLAT, threads), test_utils=CHECKS)


def test_compile_fullgraph_is_one_op(program):
    torch._dynamo.reset()
    net = Net(program)
    graphs = []

    def backend(graph, example_inputs):
        graphs.append([n.target for n in graph.graph.nodes if n.op == "call_function"])
        return graph.forward

    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend=backend)
        assert same(compiled(*images()), net(*images()))
    (calls,) = graphs
    assert (
        calls.count(torch.ops.defakeq.run_program.default)
        + calls.count(torch.ops.defakeq.run_program)
        == 1
    )
    with torch.no_grad():
        compiled = torch.compile(net, fullgraph=True, backend="aot_eager", dynamic=True)
        for batch in (2, 3, 5):
            assert same(compiled(*images(batch)), net(*images(batch)))


def test_export_saves_and_runs_every_batch(program, tmp_path):
    net = Net(program)
    batch = torch.export.Dim("batch", min=1, max=16)
    with torch.no_grad():
        shapes = {"image": {0: batch}, "vector": {0: batch}}
        exported = torch.export.export(net, tuple(images()), dynamic_shapes=shapes)
        torch.export.save(exported, tmp_path / "net.pt2")
        loaded = torch.export.load(tmp_path / "net.pt2").module()
        for count in (1, 2, 7):
            assert same(loaded(*images(count)), net(*images(count)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"program": torch.zeros(8)}, "program: found float32.*accepted: a contiguous uint8"),
        ({"program": torch.zeros(4, 4, dtype=torch.uint8)}, "program: found uint8.4, 4"),
        ({"program": torch.zeros(3, dtype=torch.uint8)}, "header length: found a file of 3 bytes"),
        ({"program": torch.zeros(99, dtype=torch.uint8)}, "header: found"),
        (
            {"image": torch.zeros(2, 3, 8, 6).double()},
            "'x0': found float64.*accepted: float32.N, 3",
        ),
        ({"image": torch.zeros(2, 3, 8, 7)}, r"'x0': found float32\[2, 3, 8, 7\].*\[N, 3, 8, 6\]"),
        ({"image": torch.zeros(3, 8, 6)}, "'x0': found float32"),
        ({"vector": torch.zeros(3, 16)}, "'x1': found a batch of 3; accepted: 2|x1.*batch of 3"),
        ({"vector": None}, "inputs: found 1 tensors, accepted: 2"),
        ({"shapes": SHAPES[:1]}, "out_shapes: found .3, 16, 8, 6., accepted: .3, 16, 8, 6, 1, 16."),
        ({"threads": -1}, "threads: found -1, accepted: 0 to 1024"),
        ({"threads": 5000}, "threads: found 5000"),
    ],
)
def test_refuses_by_name(program, change, message):
    image, vector = images()
    given = {"program": program, "image": image, "vector": vector}
    given |= {"shapes": SHAPES, "threads": 0} | change
    inputs = [x for x in (given["image"], given["vector"]) if x is not None]
    with pytest.raises((ValueError, RuntimeError), match=message):
        dq.run_program(given["program"], inputs, given["shapes"], given["threads"])


def test_refuses_a_corrupt_program_and_gradients(program):
    image, vector = images()
    # A sound program of an earlier test may lie at the address that `broken` gets.
    dq.release_programs()
    broken = program.clone()
    broken[-1] ^= 1
    with pytest.raises((ValueError, RuntimeError), match="crc32: found"):
        dq.run_program(broken, [image, vector], SHAPES)
    with pytest.raises(RuntimeError, match="'x0': found a tensor that requires grad"):
        dq.run_program(program, [image.requires_grad_(), vector], SHAPES)


def test_threads_share_a_program(program):
    inputs = [images(seed=s) for s in range(4)]
    expected = [dq.run_program(program, x, SHAPES) for x in inputs]
    wrong = []

    def work(i: int) -> None:
        for _ in range(25):
            if not same(dq.run_program(program, inputs[i], SHAPES, i % 3), expected[i]):
                wrong.append(i)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_forked_child_goes_on(program):
    inputs = images()
    expected = dq.run_program(program, inputs, SHAPES, 2)
    child = os.fork()
    if child == 0:
        os._exit(0 if same(dq.run_program(program, inputs, SHAPES, 2), expected) else 1)
    _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 0
