"""Data sets of real and forged faces: readers, batches, and a generator of miniature ones."""

from __future__ import annotations

from defakeq.data.dataset import FOLDER, NAMES, Batch, Dataset, open_dataset
from defakeq.data.report import Problem, Report
from defakeq.data.sample import Sample

__all__ = [
    "FOLDER",
    "NAMES",
    "Batch",
    "Dataset",
    "Problem",
    "Report",
    "Sample",
    "open_dataset",
]
