"""The models of ``models.py`` as PyTorch modules."""

from __future__ import annotations

import torch
from torch import nn

from benchmarks.peers.models import (
    BLOCKS,
    CLASSES,
    CNN_FILTERS,
    HEADS,
    STAGES,
    TOKENS,
    VOCABULARY,
    WIDE,
    WIDTH,
)


def build(name: str) -> nn.Module:
    return {
        "tiny": lambda: _dense(32, 32, layers=2),
        "cnn": _cnn,
        "mlp": lambda: _dense(WIDE, WIDE, layers=4),
        "transformer": Transformer,
        "resnet18": _resnet18,
    }[name]()


def _dense(inputs: int, width: int, layers: int) -> nn.Module:
    hidden: list[nn.Module] = []
    for _ in range(layers):
        hidden += [nn.Linear(inputs, width), nn.ReLU()]
        inputs = width
    return nn.Sequential(*hidden, nn.Linear(width, CLASSES))


def _cnn() -> nn.Module:
    layers: list[nn.Module] = []
    channels = 3
    for filters in CNN_FILTERS:
        layers += [
            nn.Conv2d(channels, filters, 3, padding=1),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.MaxPool2d(2),
        ]
        channels = filters
    return nn.Sequential(
        *layers, nn.Flatten(), nn.Linear(16 * channels, 37), nn.ReLU(), nn.Linear(37, CLASSES)
    )


class Block(nn.Module):
    """Attention and two dense layers, each after a normalization and with a shortcut."""

    def __init__(self) -> None:
        super().__init__()
        self.before_attention = nn.LayerNorm(WIDTH)
        self.attention = nn.MultiheadAttention(WIDTH, HEADS, batch_first=True)
        self.dense = nn.Sequential(
            nn.LayerNorm(WIDTH),
            nn.Linear(WIDTH, 4 * WIDTH),
            nn.GELU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.before_attention(x)
        x = x + self.attention(y, y, y, need_weights=False)[0]
        return x + self.dense(x)


class Transformer(nn.Module):
    """Computes logits from tokens [batch, ``TOKENS``]."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.blocks = nn.Sequential(*(Block() for _ in range(BLOCKS)))
        self.norm = nn.LayerNorm(WIDTH)
        self.head = nn.Linear(WIDTH, CLASSES)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        assert tokens.shape[1] == TOKENS
        return self.head(self.norm(self.blocks(self.embedding(tokens))).mean(dim=1))


class Residual(nn.Module):
    """Two convolutions with a shortcut, which has a convolution if the shape changes."""

    def __init__(self, channels: int, filters: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(channels, filters, 3, stride, 1, bias=False),
            nn.BatchNorm2d(filters),
            nn.ReLU(),
            nn.Conv2d(filters, filters, 3, 1, 1, bias=False),
            nn.BatchNorm2d(filters),
        )
        self.shortcut = (
            nn.Identity()
            if channels == filters
            else nn.Sequential(
                nn.Conv2d(channels, filters, 1, stride, bias=False), nn.BatchNorm2d(filters)
            )
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def _resnet18() -> nn.Module:
    layers: list[nn.Module] = [nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    channels = 64
    for filters, first_stride in STAGES:
        for stride in (first_stride, 1):
            layers.append(Residual(channels, filters, stride))
            channels = filters
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, CLASSES)
    )
