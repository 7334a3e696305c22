"""What the modules refuse, by name, and where they are built and loaded."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from defakeq_kernels.nn import ActQuant, QuantConv2d, QuantLinear  # noqa: E402


class Doubled(torch.nn.Linear):
    def forward(self, x: Any) -> Any:
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("module", "message"),
    [
        (Doubled(4, 4), "module: found Doubled with a forward of its own; accepted is Linear's"),
        (torch.nn.LazyLinear(4), "module.weight: found no value yet"),
        (torch.nn.Linear(4, 4, device="meta"), "module.weight: found no value yet"),
        (torch.nn.Linear(4, 4, dtype=torch.complex64), "module.weight: found torch.complex64"),
        (None, "module: found NoneType; accepted is a torch.nn.Linear"),
    ],
)
def test_modules_without_usable_weights_are_refused(module: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantLinear.from_float(module)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"group_size": 4.0}, "group_size: found 4.0; accepted is a positive multiple of 4"),
        ({"group_size": "4"}, "group_size: found '4'"),
        ({"bits": None}, "bits: found None; accepted is an integer, or 4 integers"),
        ({"keep_out": {1, 2}}, r"keep_out: found \{1, 2\}"),
        ({"symmetric": "no"}, "symmetric: found 'no'; accepted is True or False"),
        ({"scale": "a", "symmetric": True}, "scale: found 'a'"),
        ({"scale": [0.0] * 4, "symmetric": True}, "scale: found 0.0; accepted is 4 normal"),
        ({"scale": [1.0] * 4, "zero_point": [300] * 4}, "zero_point: found 300 to 300"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        QuantLinear.from_float(torch.nn.Linear(4, 4), **options)


@pytest.mark.parametrize("low", ["a", None])
def test_ranges_are_numbers(low: Any) -> None:
    with pytest.raises(ValueError, match=r"low, high: found .*; accepted is two numbers"):
        ActQuant.static(low, 1.0)


@pytest.mark.parametrize(
    ("x", "found"),
    [
        (np.ones((2, 4), np.float32), "ndarray"),
        (None, "NoneType"),
        (torch.ones(2, 4).to_sparse(), "a torch.sparse_coo tensor"),
    ],
)
def test_inputs_are_dense_tensors(x: Any, found: str) -> None:
    layer = QuantLinear.from_float(torch.nn.Linear(4, 4))
    with pytest.raises(ValueError, match=f"x: found {found}; accepted is a dense tensor"):
        layer(x)


def test_defaults_of_torch_change_nothing() -> None:
    model, x = torch.nn.Conv2d(3, 4, 3), torch.randn(1, 3, 5, 5)
    layer = QuantConv2d.from_float(model, bits=4)
    with torch.device("meta"):
        again = QuantConv2d.from_float(model, bits=4)
    assert torch.equal(again(x), layer(x))
    torch.set_default_dtype(torch.float64)
    try:
        bias = layer.dequantized_bias()
    finally:
        torch.set_default_dtype(torch.float32)
    assert bias is not None
    assert bias.dtype == torch.float32


def test_a_state_is_assigned_to_a_layer_without_memory() -> None:
    layer = QuantLinear.from_float(torch.nn.Linear(8, 4), bits=3, half_in=[2])
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    other = QuantLinear.from_float(torch.nn.Linear(8, 4), bits=3, half_in=[5]).to("meta")
    other.load_state_dict(torch.load(file, weights_only=True), assign=True)
    x = torch.randn(2, 8)
    assert torch.equal(other(x), layer(x))
