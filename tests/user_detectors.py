"""Detectors as a user may write them, good and bad; tests name them on the command line."""

from __future__ import annotations

import torch
from torch import nn


class Mean(nn.Module):
    """The score is the picture's mean; it has a weight so that a checkpoint can miss it."""

    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(()))

    def forward(self, x):
        return self.gain * 4 * x.mean((1, 2, 3))


class Own(Mean):
    def preprocess(self, image):
        return torch.from_numpy(image[::8, ::8].copy()).permute(2, 0, 1).float() / 255

    def score(self, batch):
        return batch.mean((1, 2, 3))


class Wide(nn.Module):
    def forward(self, x):
        return x


class Broken(nn.Module):
    def forward(self, x):
        return x.mean((1, 2, 3)) * float("nan")


class TooMuch(Own):
    def score(self, batch):
        return batch.mean((1, 2, 3)) + 2


class Two(nn.Module):
    def forward(self, x, y):
        return x + y


def number():
    return 3


def unready():
    return {}["config"]
