"""All operations by name, of Tensors, arrays or numbers. They are in engine/ops.py and
engine/more_ops.py: whoever wants to replace one replaces it there."""

from .engine.more_ops import (
    Abs,
    Clip,
    Erf,
    Exp,
    Log,
    Maximum,
    Power,
    Relu,
    Sqrt,
    Tanh,
    Where,
    absolute,
    clip,
    erf,
    exp,
    log,
    maximum,
    power,
    relu,
    sqrt,
    tanh,
    where,
)  # fmt: skip
from .engine.ops import (
    Add,
    Divide,
    MatMul,
    Multiply,
    Negative,
    Subtract,
    add,
    divide,
    matmul,
    multiply,
    negative,
    subtract,
    sum_to_shape,
)  # fmt: skip

__all__ = [
    "Abs", "Add", "Clip", "Divide", "Erf", "Exp", "Log", "MatMul", "Maximum", "Multiply",
    "Negative", "Power", "Relu", "Sqrt", "Subtract", "Tanh", "Where", "absolute", "add", "clip",
    "divide", "erf", "exp", "log", "matmul", "maximum", "multiply", "negative", "power", "relu",
    "sqrt", "subtract", "sum_to_shape", "tanh", "where",
]  # fmt: skip
