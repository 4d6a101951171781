"""Layers and their mathematics, each gradient derived by hand, and the Parameters they train.

Start with `loss.py`. What a program needs is named here too: `nn.Linear`, `nn.Module` and so on.
"""

from typing import Any

from ..engine.habits import missing
from .initial import lecun_normal
from .layers import LayerNorm, Linear, RandomLayer, StochasticDepth, evaluating, is_evaluating
from .module import Module
from .more_layers import GELU, Dropout, Flatten, ReLU, Sequential

__all__ = [
    "GELU", "Dropout", "Flatten", "LayerNorm", "Linear", "Module", "RandomLayer", "ReLU",
    "Sequential", "StochasticDepth", "evaluating", "is_evaluating", "lecun_normal",
]  # fmt: skip


def __getattr__(name: str) -> Any:  # what is not there
    raise missing("nn", name, "nn")
