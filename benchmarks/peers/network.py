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


class Block(torch.nn.Module):
    """A residual block of ResNet, pre-activation, with groups of four channels."""

    def __init__(self, before: int, width: int, stride: int):
        super().__init__()
        self.norm1 = torch.nn.GroupNorm(before // 4, before)
        self.conv1 = torch.nn.Conv2d(before, width, 3, stride, 1)
        self.norm2 = torch.nn.GroupNorm(width // 4, width)
        self.conv2 = torch.nn.Conv2d(width, width, 3, 1, 1)
        self.short = None
        if stride > 1 or before != width:
            self.short = torch.nn.Conv2d(before, width, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """The residual stream after the block."""
        h = torch.relu(self.norm1(x))
        shortcut = x if self.short is None else self.short(h)
        return shortcut + self.conv2(torch.relu(self.norm2(self.conv1(h))))


def resnet18(classes: int) -> torch.nn.Module:
    """ResNet-18 for 32 x 32 images."""
    layers, before = [torch.nn.Conv2d(3, 64, 3, 1, 1)], 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for place in range(2):
            layers.append(Block(before, width, 2 if stage and not place else 1))
            before = width
    head = [torch.nn.GroupNorm(before // 4, before), torch.nn.ReLU()]
    head += [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten()]
    return torch.nn.Sequential(*layers, *head, torch.nn.Linear(before, classes))


def tensors(x: np.ndarray, y: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """Records, with channels before height and width, and labels as tensors."""
    if x.ndim == 5:
        x = x.transpose(0, 1, 4, 2, 3).copy()
    return torch.from_numpy(x), torch.from_numpy(y).long()
