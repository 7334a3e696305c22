"""Modules that run on packed weights: drop-in replacements of ``Linear`` and ``Conv2d``."""

from __future__ import annotations

from defakeq_kernels.nn.layers import QuantConv2d, QuantLayer, QuantLinear
from defakeq_kernels.packed import PackedWeight
from defakeq_kernels.quantize import ActQuant

__all__ = ["ActQuant", "PackedWeight", "QuantConv2d", "QuantLayer", "QuantLinear"]
