"""minimixer: MLP-Mixer (Tolstikhin et al. 2021) from scratch, in NumPy and CuPy.

The package is a tutorial. Read it in this order; each file builds on those before it alone:

    backend.py      NumPy or CuPy; the one matrix product; random numbers without a state
    erf.py          how a special function is computed
    grad_mode.py    no_grad: whether operations are recorded
    autograd.py     Function, the recorded graph, backward
    ops.py          arithmetic and elementwise functions, each forward beside its backward
    rearrange.py    sums, reshapes, slices: where gradients go when numbers move
    tensor.py       Tensor: the usual signs for all that
    gradcheck.py    finite differences against backward
    loss.py         softmax cross-entropy
    functional.py   linear, gelu, mlp, layer_norm: gradients derived by hand
    parameters.py   Parameter and the flat buffer
    nn.py           Module, layers, initial weights
    mixer.py        the model
    optim.py        SGD, Adam, AdamW, clipping, schedules
    idx.py          IDX files: how to read what somebody else wrote
    data.py         data sets, the embedded MNIST, batches, shifts
    report.py       what a model costs, layer by layer; pictures
    checkpoint.py   saving and resuming
"""

from . import backend, data, functional, nn, ops, optim, rearrange
from .autograd import Function
from .grad_mode import enable_grad, is_grad_enabled, no_grad
from .gradcheck import GradientError, gradcheck
from .mixer import Mixer
from .nn import Dropout, LayerNorm, Linear, Module
from .ops import clip, maximum, where
from .optim import SGD, Adam, AdamW, schedule
from .parameters import Parameter
from .rearrange import concatenate, stack
from .tensor import Tensor

__version__ = "0.1.0"

__all__ = [
    "SGD", "Adam", "AdamW", "Dropout", "Function", "GradientError", "LayerNorm", "Linear", "Mixer",
    "Module", "Parameter", "Tensor", "backend", "clip", "concatenate", "data", "enable_grad",
    "functional", "gradcheck", "is_grad_enabled", "maximum", "nn", "no_grad", "ops", "optim",
    "rearrange", "schedule", "stack", "where",
]  # fmt: skip
