"""minimixer: MLP-Mixer (Tolstikhin et al. 2021) from scratch, in NumPy and CuPy.

The package is a tutorial. Read it in this order; each file builds on those before it alone:

    precision.py    how numbers are stored: float32, bfloat16 and so on
    backend.py      NumPy or CuPy; random numbers without a state
    products.py     the one matrix product
    erf.py          how a special function is computed
    grad_mode.py    no_grad: whether operations are recorded
    dispatch.py     what surrounds an operation: fast forms, two bytes, the right GPU
    inputs.py       what an operation is given: numbers, Parameters, integers
    autograd.py     Function, and the record of what was done
    backward.py     the walk back along it
    ops.py          arithmetic and elementwise functions, each forward beside its backward
    rearrange.py    sums, reshapes, slices: where gradients go when numbers move
    habits.py       what is typed out of habit, and what to write instead
    tensor.py       Tensor: the usual signs for all that
    gradcheck.py    finite differences against backward
    checks.py       numbers and sizes that make sense
    loss.py         softmax cross-entropy
    more_loss.py    softmax alone, and the squared error
    loss_scale.py   gradients in float16
    layer_norm.py   LayerNorm, its gradient derived by hand
    functional.py   linear and gelu: likewise
    parameters.py   Parameter and the flat buffer
    describe.py     a model as a tree, and as a table
    module.py       Module: Parameters and sub-modules by name
    initial.py      initial weights
    nn.py           layers
    recompute.py    layers that forget and compute again, to save memory
    variants.py     the sizes of the paper's models
    images.py       from images to tokens
    block.py        the Mixer block
    mixer.py        the model
    schedules.py    how the learning rate changes
    norms.py        the norm of all gradients
    optimizer.py    what all optimizers share: ranges, clipping, steps
    optim.py        SGD, Adam, AdamW
    names.py        names from outside, made fit to show
    files.py        reading what may be anything; writing whole files; locks
    npz.py          .npz files: arrays by name, from anybody
    idx.py          IDX files: how to read what somebody else wrote
    datasets.py     the embedded MNIST, and data sets in its format
    data.py         random batches and shifts
    metrics.py      accuracy and the like, from logits
    staging.py      batches to a GPU and results back, while both sides work on
    fingerprint.py  whether a model is still the same
    recording.py    a list of requests to a GPU, and the memory that they use
    graph.py        a training step recorded and replayed: one launch instead of hundreds
    report.py       what a model costs, layer by layer; pictures
    checkpoint.py   saving and resuming

After it: `kernels/`, the same functions again for speed, `transfer/`, weights and pictures from
outside, and `parallel/`, several processes that train one model; nothing above needs them.
"""

import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from typing import Any

from . import backend, data, functional, nn, ops, optim, rearrange
from .autograd import Function
from .grad_mode import enable_grad, is_grad_enabled, no_grad
from .gradcheck import GradientError, gradcheck
from .graph import record
from .habits import missing
from .mixer import Mixer
from .nn import GELU, Dropout, Flatten, LayerNorm, Linear, Module, ReLU, Sequential
from .ops import clip, maximum, where
from .optim import SGD, Adam, AdamW
from .parameters import Parameter
from .rearrange import concatenate, stack
from .schedules import schedule
from .staging import fetch
from .tensor import Tensor

if importlib.util.find_spec(f"{__name__}.kernels"):  # the same again for speed
    from . import kernels as kernels

__version__ = "0.1.0"


def on_demand(package: str) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """__getattr__ and __dir__ of a package whose modules, `minimixer.transfer` say, are imported
    when somebody asks for them: so it is imported in a tenth of a second, and needs no package
    that only some of them do."""

    def modules() -> set[str]:
        return {module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)}

    def find(name: str) -> Any:
        if name in modules():
            return importlib.import_module(f"{package}.{name}")
        raise missing(package, name, package)

    return find, lambda: sorted({*vars(sys.modules[package]), *modules()})


__getattr__, __dir__ = on_demand(__name__)

__all__ = [
    "GELU", "SGD", "Adam", "AdamW", "Dropout", "Flatten", "Function", "GradientError", "LayerNorm",
    "Linear", "Mixer", "Module", "Parameter", "ReLU", "Sequential", "Tensor", "backend", "clip",
    "concatenate", "data", "enable_grad", "fetch", "functional", "gradcheck", "is_grad_enabled",
    "maximum", "nn", "no_grad", "ops", "optim", "rearrange", "record", "schedule", "stack", "where",
]  # fmt: skip
