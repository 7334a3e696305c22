"""Activation ranges from sample inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from defakeq.inputs import Batch, as_inputs
from defakeq.plan import LayerPlan, QuantPlan
from defakeq_kernels.quantize import ActQuant
from defakeq_kernels.torch_functions import UNARY

BINS = 2048
PERCENTILE = 99.99
_LEAST_ENERGY = 0.03  # of the mean energy: a nearly black picture must not outweigh all others
OBSERVERS = ("mse", "percentile", "minmax")


class Lattice:
    """Whether all values seen are evenly spaced levels, as those of 8-bit pictures are.

    Quantized elsewhere, every value of a picture would be rounded; midway between two levels, as
    ``2 * pixel / 255 - 1`` puts it, pairs of neighbors would even become one. Noise of one level is
    what many detectors look for.
    """

    _MOST = 256
    _FEWEST = 64

    def __init__(self) -> None:
        self._levels: Tensor | None = torch.empty(0)

    def update(self, flat: Tensor) -> None:
        """Adds values, float32."""
        if self._levels is None:
            return
        if flat[:4096].unique().numel() > self._MOST:
            self._levels = None
            return
        levels = torch.cat([self._levels, flat.unique()]).unique()
        self._levels = levels if levels.numel() <= self._MOST else None

    def _found(self) -> tuple[float, NDArray[np.float64]] | None:
        """The distance of the levels, and the first and the last in it, if there are levels."""
        if self._levels is None or self._levels.numel() < self._FEWEST:
            return None
        levels = self._levels.double().numpy()
        step = float(np.diff(levels).min())
        count = round((levels[-1] - levels[0]) / step)
        if count >= self._MOST:
            return None
        step = float(levels[-1] - levels[0]) / count
        places = (levels - levels[0]) / step
        if np.abs(places - np.rint(places)).max() > 0.02:
            return None
        return step, np.array([levels[0], levels[-1]]) / step

    @staticmethod
    def _midway(ends: NDArray[np.float64]) -> bool:
        return bool(abs(ends[0] - np.floor(ends[0]) - 0.5) < 0.02)

    def half_level(self) -> float | None:
        """Half the distance of the levels, where zero is midway between two of them."""
        found = self._found()
        return found[0] / 2 if found is not None and self._midway(found[1]) else None

    def quantization(self) -> ActQuant | None:
        """The 8-bit quantization with a code for each level and zero among its levels, if any."""
        found = self._found()
        if found is None:
            return None
        step, ends = found
        if self._midway(ends):
            # Just wider steps round every level towards zero, where ties would go both ways.
            step *= 1 + 2.0**-12
            low, high = (int(end) for end in np.trunc(ends))
        else:
            low, high = (int(end) for end in np.rint(ends))
        code = (self._MOST - (high - low + 1)) // 2 - 128 - low
        return ActQuant("static", float(np.float32(step)), code) if -128 <= code <= 127 else None


class RangeObserver:
    """Histograms of all values seen; their range doubles when values fall outside.

    One counts values; in the other an image's values weigh the less the larger they are, so that
    a squared error is a part of its own image's energy, and one image with values far above all
    others does not cost the others their resolution.
    """

    def __init__(self) -> None:
        self.minimum = np.inf
        self.maximum = -np.inf
        self._low = 0.0
        self._high = 0.0
        self._counts: NDArray[np.float64] = np.zeros((2, BINS))  # of values, and their weights
        self._images, self._energy = 0, 0.0
        self._lattice = Lattice()

    @property
    def empty(self) -> bool:
        """Whether no value has been seen."""
        return self.minimum > self.maximum

    def update(self, values: Tensor, images: int = 1) -> None:
        """Adds the values of a floating-point tensor.

        Args:
            values: of `images` images, one after the other.
            images: how many; where the values cannot be cut so, they count as one's.

        Raises:
            ValueError: a value that is not finite.
        """
        flat = values.detach().float().flatten().cpu()
        if flat.numel() == 0:
            return
        low, high = (float(v) for v in torch.aminmax(flat))
        if not np.isfinite(low + high):
            raise ValueError("found a value that is not finite; accepted is finite activations")
        if self.empty:
            margin = max(abs(low), 1e-6) * 1e-3 if low == high else 0.0
            self._low, self._high = low - margin, high + margin
        self._lattice.update(flat)
        self._cover(low, high)
        self.minimum = min(self.minimum, low)
        self.maximum = max(self.maximum, high)
        parts = flat.double().reshape(images if flat.numel() % images == 0 else 1, -1)
        for part in parts:
            counts = torch.histc(part, BINS, self._low, self._high).numpy()
            self._counts[0] += counts
            self._images += 1
            energy = float(part.square().mean())
            self._energy += (energy - self._energy) / self._images
            if self._energy > 0:
                self._counts[1] += counts / len(part) / max(energy, _LEAST_ENERGY * self._energy)

    def half_level(self) -> float | None:
        """Half a step, where all values are evenly spaced levels and zero is midway between two."""
        return self._lattice.half_level()

    def quantization(self, bits: int, method: str = "mse") -> ActQuant:
        """The static quantization chosen for what was seen.

        With 8 bits, values of evenly spaced levels, as of 8-bit pictures, get a code for each.

        Args:
            bits: 4 to 8.
            method: "mse" (the range with the least squared error, as a part of each image's
                energy), "percentile" (99.99 % of the values at each end) or "minmax".

        Raises:
            ValueError: nothing seen, or an unknown method.
        """
        if method not in OBSERVERS:
            raise ValueError(f"observer: found {method!r}; accepted is one of {OBSERVERS}")
        if self.empty:
            raise ValueError("found no activations; accepted is at least one value")
        lattice = self._lattice.quantization() if bits == 8 else None
        if lattice is not None:
            return lattice
        low, high = self.minimum, self.maximum
        if method == "percentile":
            low, high = self._percentiles()
        elif method == "mse":
            low, high = self._least_error(bits)
        return ActQuant.static(low, high, bits)

    def quantization_before(self, function: Callable[[Tensor], Tensor], bits: int = 8) -> ActQuant:
        """The quantization of values that only `function` reads: least error of its results.

        Args:
            function: elementwise.
            bits: 4 to 8.

        Raises:
            ValueError: nothing seen.
        """
        if self.empty:
            raise ValueError("found no activations; accepted is at least one value")
        values, weights = self._histogram()
        wanted = _applied(function, values)

        def error(low: float, high: float) -> float:
            quantization = ActQuant.static(low, high, bits)
            codes = quantization.quantize(values)
            results = _applied(function, quantization.dequantize(codes))
            for code in _ends(quantization):
                there = codes == code
                if weights[there].any():
                    results[there] = np.average(wanted[there], weights=weights[there])
            return float(weights @ np.square(results - wanted))

        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        shares = np.geomspace(0.02, 1.0, 48)
        widest = (low, high)
        for _ in range(2):
            low = _best(shares * widest[0], partial(error, high=high))
            high = _best(shares * widest[1], partial(error, low))
        return ActQuant.static(low, high, bits)

    def results_at_ends(
        self, function: Callable[[Tensor], Tensor], quantization: ActQuant
    ) -> dict[int, float]:
        """The mean result of the values that the first and the last code stand for, by code.

        All values beyond the range are among them. A code that stands for none, or for zero, is
        left out.
        """
        values, weights = self._histogram()
        codes = quantization.quantize(values)
        found = {}
        for code in _ends(quantization):
            there = codes == code
            if weights[there].any():
                wanted = _applied(function, values[there])
                found[code] = float(np.average(wanted, weights=weights[there]))
        return found

    def _histogram(self) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
        """Values, and how much each weighs."""
        counts, weights = self._counts
        return self._centers()[counts > 0].astype(np.float32), weights[counts > 0]

    def _cover(self, low: float, high: float) -> None:
        while low < self._low:
            width = self._high - self._low
            self._low -= width
            self._counts = np.concatenate([np.zeros((2, BINS // 2)), self._halved()], 1)
        while high > self._high:
            width = self._high - self._low
            self._high += width
            self._counts = np.concatenate([self._halved(), np.zeros((2, BINS // 2))], 1)

    def _halved(self) -> NDArray[np.float64]:
        merged: NDArray[np.float64] = self._counts.reshape(2, -1, 2).sum(axis=2)
        return merged

    def _centers(self) -> NDArray[np.float64]:
        step = (self._high - self._low) / BINS
        centers = self._low + step * (np.arange(BINS) + 0.5)
        return np.clip(centers, self.minimum, self.maximum)

    def _percentiles(self) -> tuple[float, float]:
        share = np.cumsum(self._counts[0]) / self._counts[0].sum()
        centers = self._centers()
        low = centers[np.searchsorted(share, 1 - PERCENTILE / 100)]
        high = centers[min(int(np.searchsorted(share, PERCENTILE / 100)), BINS - 1)]
        return float(low), float(high)

    def _least_error(self, bits: int) -> tuple[float, float]:
        values, weights = self._histogram()

        def error(low: float, high: float) -> float:
            quantization = ActQuant.static(low, high, bits)
            restored = quantization.dequantize(quantization.quantize(values))
            return float(weights @ np.square(restored.astype(np.float64) - values))

        # Each end in turn; a range always contains zero.
        low, high = min(self.minimum, 0.0), max(self.maximum, 0.0)
        shares = np.geomspace(0.05, 1.0, 48)
        widest = (low, high)
        for _ in range(2):
            high = _best(shares * widest[1], partial(error, low))
            low = _best(shares * widest[0], partial(error, high=high))
        return low, high


def _applied(
    function: Callable[[Tensor], Tensor], values: NDArray[np.float32]
) -> NDArray[np.float64]:
    results: NDArray[np.float64] = function(torch.from_numpy(values).double()).numpy()
    return results


def _ends(quantization: ActQuant) -> list[int]:
    """The first and the last code, where they do not stand for zero, which stays exact."""
    half = 1 << (quantization.bits - 1)
    return [code for code in (-half, half - 1) if code != quantization.zero_point]


def _best(candidates: NDArray[np.float64], error: Callable[[float], float]) -> float:
    errors = [error(float(candidate)) for candidate in candidates]
    # The widest of equally good ranges.
    return float(candidates[len(errors) - 1 - int(np.argmin(errors[::-1]))])


def calibrate(
    model: nn.Module,
    plan: QuantPlan,
    fused: Mapping[str, str],
    static: list[str],
    batches: Iterable[Batch],
    observer: str,
) -> dict[str, ActQuant]:
    """Static input quantizations by layer name, from the float model with `fused` put back."""
    if not static:
        return {}
    observers = {name: RangeObserver() for name in static}
    images = [1]  # of the present batch
    handles = []
    for name in static:
        module, layer = model.get_submodule(name), plan.layers[name]
        hook = _observing(name, module, layer, observers[name], images)
        handles.append(module.register_forward_pre_hook(hook))
    for name, activation in fused.items():
        handles.append(model.get_submodule(name).register_forward_hook(_applying(activation)))
    if isinstance(batches, (Tensor, Mapping)):
        batches = [batches]
    count = 0
    try:
        with torch.no_grad():
            for batch in batches:
                args, kwargs = as_inputs("calibration", batch)
                model(*args, **kwargs)
                count += 1
    finally:
        for handle in handles:
            handle.remove()
    if count == 0:
        raise ValueError("calibration: found no batch; accepted is at least one")
    acts = {}
    for name in static:
        bits = plan.layers[name].act_bits
        assert bits is not None
        try:
            acts[name] = observers[name].quantization(bits, observer)
        except ValueError as error:
            raise ValueError(f"calibration: layer {name!r}: {error}") from error
    return acts


def _observing(
    name: str, module: nn.Module, layer: LayerPlan, observer: RangeObserver, images: list[int]
) -> Callable[..., None]:
    dim = -3 if isinstance(module, nn.Conv2d) else -1
    index: Tensor | None = None
    if layer.keep_in is not None or layer.half_in:
        inputs = module.weight.shape[1]  # type: ignore[index,union-attr]
        kept = range(inputs) if layer.keep_in is None else layer.keep_in
        index = torch.tensor(sorted(set(kept) - set(layer.half_in or ())))

    def hook(_: nn.Module, args: tuple[Any, ...]) -> None:
        x = args[0]
        if index is not None:
            x = x.index_select(dim, index.to(x.device))
        try:
            batched = x.dim() > -dim and len(x) % images[0] == 0
            observer.update(x, images[0] if batched else 1)
        except ValueError as error:
            raise ValueError(f"calibration: layer {name!r}: {error}") from error

    return hook


def _applying(activation: str) -> Callable[..., Tensor]:
    function = UNARY[activation]
    return lambda module, args, output: function(output)
