"""What collects and moves numbers, by name. It is in engine/rearrange.py and
engine/more_rearrange.py: whoever wants to replace an operation replaces it there."""

from .engine.more_rearrange import (
    Concatenate,
    Index,
    Max,
    Min,
    Stack,
    Std,
    To,
    Var,
    concatenate,
    index,
    max,
    min,
    stack,
    std,
    to,
    var,
)  # fmt: skip
from .engine.rearrange import Mean, Reshape, Sum, Transpose, mean, reshape, sum, transpose

__all__ = [
    "Concatenate", "Index", "Max", "Mean", "Min", "Reshape", "Stack", "Std", "Sum", "To",
    "Transpose", "Var", "concatenate", "index", "max", "mean", "min", "reshape", "stack", "std",
    "sum", "to", "transpose", "var",
]  # fmt: skip
