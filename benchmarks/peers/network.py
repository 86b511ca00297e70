"""The models of the work in PyTorch."""

import numpy as np
import torch

from benchmarks.peers.work import Case


def make(case: Case) -> torch.nn.Module:
    """The model of a case."""
    torch.manual_seed(0)
    layers, before, side = [], case.shape[-1], case.shape[0]
    for width in case.channels:
        layers += [torch.nn.Conv2d(before, width, 3), torch.nn.ReLU()]
        before, side = width, side - 2
    if case.channels:
        layers += [torch.nn.MaxPool2d(2), torch.nn.Flatten()]
        before *= (side // 2) ** 2
    for width in case.hidden:
        layers += [torch.nn.Linear(before, width), torch.nn.ReLU()]
        before = width
    return torch.nn.Sequential(*layers, torch.nn.Linear(before, case.classes))


def tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Records and labels, channels before space."""
    if x.ndim == 5:
        x = x.transpose(0, 1, 4, 2, 3).copy()
    return torch.from_numpy(x), torch.from_numpy(y).long()
