"""What only a GPU can show: `pytest -m gpu`. Without one everything here is skipped."""

from __future__ import annotations

import copy
import sys
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("triton")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]

sys.path.insert(0, str(Path(__file__).parent / "triton"))
from interpreted import *  # noqa: E402, F403  the same checks, compiled
from interpreted import check, conv, linear  # noqa: E402
from interpreted_program import *  # noqa: E402, F403

from defakeq import QuantPlan, convert, networks  # noqa: E402
from defakeq.graphed import GraphedModule  # noqa: E402
from defakeq_kernels.nn import ActQuant, QuantConv2d  # noqa: E402
from defakeq_kernels.triton.bounds import error_bound  # noqa: E402

STATIC = ActQuant.static(-2, 3)


def network() -> Any:
    """Two integer convolutions and a linear layer on them."""
    first = conv(64, 96, 3, {"padding": 1}, bits=4, act=STATIC, activation="silu")
    second = conv(96, 64, 3, {"stride": 2}, bits=torch.tensor([8, 3] * 32), act=STATIC)
    last = linear(10, 64, bits=8, act=ActQuant.dynamic("row"))
    mean = torch.nn.AdaptiveAvgPool2d(1)
    return torch.nn.Sequential(first, second, mean, torch.nn.Flatten(), last).eval()


def images(n: int, size: int = 24) -> Any:
    return torch.randn(n, 64, size, size).to(memory_format=torch.channels_last)


@torch.no_grad()
def test_layers_move_and_keep_their_bytes() -> None:
    layer = conv(64, 96, 3, {"padding": 1}, bits=4, act=STATIC, activation="gelu")
    x = images(2)
    wanted = layer(x)
    moved = copy.deepcopy(layer).to("cuda")
    assert torch.equal(moved(x.cuda()).cpu(), wanted)
    assert moved.explain()["device"].startswith("cuda")
    assert torch.equal(copy.deepcopy(moved)(x.cuda()).cpu(), wanted)
    other = QuantConv2d(layer.packed_weight(), act=STATIC, activation="gelu").cuda()
    other.load_state_dict(moved.state_dict())
    assert torch.equal(other(x.cuda()).cpu(), wanted)
    assert torch.equal(moved.cpu()(x), wanted)


@torch.no_grad()
@pytest.mark.parametrize("m", [1, 7, 16, 33, 300])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_bfloat16(bits: int, m: int) -> None:
    layer = linear(96, 1024, bits=bits, group_size=128)
    x = torch.randn(m, 1024).bfloat16()
    y = layer.cuda()(x.cuda()).cpu()
    exact = torch.nn.functional.linear(
        x.double(), layer.dequantized_weight().double(), layer.dequantized_bias().double()
    )
    assert y.dtype == torch.bfloat16
    assert torch.all((y.double() - exact).abs() <= error_bound(layer.dequantized_weight(), x, y))


@pytest.mark.parametrize("shape", [(1, 4096, 4096), (513, 1000, 1111), (64, 3000, 777)])
def test_large_products_are_exact(shape: tuple[int, int, int]) -> None:
    m, n, k = shape
    layer = linear(n, k, bits=4, act=ActQuant("static", 0.1, 5))
    check(layer, torch.randint(-128, 128, (m, k), dtype=torch.int8))


@torch.no_grad()
def test_opcheck_and_compile() -> None:
    layer = linear(40, 64, bits=4, act=STATIC).cuda()
    x = torch.randn(5, 64, device="cuda")
    tests = ("test_schema", "test_faketensor", "test_autograd_registration")
    torch.library.opcheck(torch.ops.defakeq.linear, (x, layer.packed, 40, False), test_utils=tests)
    # integer layers only: the compiler may add a float mean in another order
    model = network().cuda()[:2]
    x = images(2).cuda()
    compiled = torch.compile(model, fullgraph=True)
    assert torch.equal(compiled(x), model(x))


@torch.no_grad()
def test_graphs_are_captured_once_a_shape_and_results_stay() -> None:
    model = network().cuda()
    graphed = GraphedModule(model, keep=2)
    kept = []
    for n in (1, 3, 1, 2, 3):
        x = images(n).cuda()
        kept.append((graphed(x), model(x)))
    assert all(torch.equal(a, b) for a, b in kept)
    assert len(graphed._captured) == 2
    with pytest.raises(ValueError, match="input 0: found a tensor on cpu"):
        graphed(images(1))


def test_a_capture_of_inference_mode_serves_other_calls() -> None:
    model = network().cuda()
    x = images(2).cuda()
    with torch.no_grad():
        wanted = model(x)
    graphed = GraphedModule(model)
    with torch.inference_mode():
        assert torch.equal(graphed(x), wanted)
    assert torch.equal(graphed(x), wanted)
    for _ in range(2):
        assert torch.equal(graphed(x.clone().requires_grad_()), wanted)
    assert len(graphed._captured) == 1


@torch.no_grad()
def test_launches_are_on_the_current_stream() -> None:
    layer = linear(64, 4096, bits=4, group_size=128).cuda()
    x = torch.randn(1, 4096, device="cuda").half()
    wanted = layer(x)
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        y = torch.zeros_like(x)
        torch.cuda._sleep(20_000_000)
        y.copy_(x)
        found = layer(y)
    torch.cuda.current_stream().wait_stream(stream)
    assert torch.equal(found, wanted)


@torch.no_grad()
def test_views_at_any_offset() -> None:
    layer = linear(48, 512, bits=4, act=STATIC)
    whole = torch.randint(-128, 128, (40, 523), dtype=torch.int8)
    for first in (0, 1, 8, 11):
        x = whole[3:, first : first + 512]
        assert torch.equal(copy.deepcopy(layer).cuda()(whole.cuda()[3:, first : first + 512]).cpu(),
                           layer(x))  # fmt: skip


@torch.no_grad()
def test_a_whole_network_is_captured() -> None:
    model = networks.build("resnet34")
    x = networks.images(3, 64)
    plan = QuantPlan.uniform(model, 4, act_bits=8)
    wanted = convert(model, x[:1], plan, x, backend="program")(x)
    graphed = convert(model, x[:1], plan, x, backend="program", device="cuda", cuda_graph=True)
    first = graphed(x.cuda())
    assert torch.equal(graphed(x.cuda()), first)
    assert torch.equal(graphed.model(x.cuda()), first)
    assert torch.equal(first.cpu(), wanted)  # no step of it is a float function of torch's


@torch.no_grad()
def test_many_rows_fit_the_grid() -> None:
    layer = linear(8, 32, bits=4, act=STATIC)
    x = torch.randint(-128, 128, (3_000_000, 32), dtype=torch.int8)
    x[-2:] = x[:2]
    y = layer.cuda()(x.cuda())
    assert torch.equal(y[-2:], y[:2])
    assert torch.equal(y[:2].cpu(), copy.deepcopy(layer).cpu()(x[:2]))


@torch.no_grad()
def test_runs_are_identical() -> None:
    model = network().cuda()
    x = images(4).cuda()
    first = model(x)
    assert all(torch.equal(model(x), first) for _ in range(10))


@torch.no_grad()
def test_channels_last_is_neither_copied_nor_lost() -> None:
    layer = conv(64, 96, 1, bits=4, act=STATIC)
    layer = QuantConv2d(layer.packed_weight(), act=STATIC, out=STATIC).cuda()
    x = torch.zeros(8, 64, 64, 64, dtype=torch.int8, device="cuda")
    x = x.to(memory_format=torch.channels_last)
    layer(x)
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    y = layer(x)
    assert y.is_contiguous(memory_format=torch.channels_last)
    assert torch.cuda.max_memory_allocated() - before <= y.numel() + 512


def test_wrong_devices_are_named() -> None:
    layer = linear(40, 64, bits=4, act=STATIC).cuda()
    with pytest.raises(ValueError, match="packed: found a tensor on cpu"):
        torch.ops.defakeq.linear(torch.zeros(1, 64).cuda(), linear(40, 64).packed, 40, False)
    with pytest.raises(ValueError, match=r"x: found torch\.float64"):
        layer(torch.zeros(1, 64, dtype=torch.float64).cuda())
