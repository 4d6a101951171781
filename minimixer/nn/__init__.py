"""Layers and their mathematics, each gradient derived by hand, and the Parameters they train.

Start with `loss.py`. What a program needs is named here too: `nn.Linear`, `nn.Module` and so on.
"""

from .layers import (
    GELU,
    Dropout,
    Flatten,
    LayerNorm,
    Linear,
    Module,
    RandomLayer,
    ReLU,
    Sequential,
    StochasticDepth,
    evaluating,
    is_evaluating,
    lecun_normal,
)  # fmt: skip
from .layers import __getattr__ as __getattr__

__all__ = [
    "GELU", "Dropout", "Flatten", "LayerNorm", "Linear", "Module", "RandomLayer", "ReLU",
    "Sequential", "StochasticDepth", "evaluating", "is_evaluating", "lecun_normal",
]  # fmt: skip
