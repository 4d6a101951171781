"""minimixer: MLP-Mixer (Tolstikhin et al. 2021) from scratch, in NumPy and CuPy.

The package is a tutorial. Before it come `examples/mixer_by_hand.py` and `examples/tiny.py`, a page
each. Then its four rooms; none needs the rooms after it, but to save, load and sum up a model.
Between the pages stand essays with pictures, docs/book/; and where a page says so, there is a task:
`python -m minimixer tasks --out DIR` writes them. `python -m minimixer book --out DIR` makes all of
it a site: notes beside code, formulas typeset.

    engine/autograd.py      Function, and the record of what was done
    engine/backward.py      the walk back along it
    engine/grad_mode.py     no_grad: whether operations are recorded
    engine/ops.py           arithmetic, each forward beside its backward
    engine/rearrange.py     sums, means, reshapes: where gradients go when numbers move
    engine/tensor.py        Tensor: the usual operators for all that
    engine/gradcheck.py     finite differences against backward
    nn/loss.py              softmax cross-entropy
    nn/layer_norm.py        LayerNorm, its gradient derived by hand
    nn/functional.py        linear and gelu: likewise
    nn/parameters.py        Parameter, a window into one flat buffer
    nn/module.py            Module: Parameters and sub-modules by name
    nn/initial.py           initial weights
    nn/layers.py            Linear, LayerNorm and stochastic depth, as Modules
    model/images.py         from images to tokens
    model/block.py          the Mixer block
    model/mixer.py          the model
    training/schedules.py   gradient descent, and how its learning rate changes
    training/optimizer.py   what all optimizers share: ranges, clipping, steps
    training/optim.py       SGD, Adam, AdamW
    training/data.py        random batches and shifts
    training/loop.py        a whole training run

Appendices: what pages call by name, to look up when you want to know more.

    engine/arrays.py        NumPy or CuPy: what differs between them
    engine/devices.py       which devices there are
    engine/random.py        random numbers without a state
    engine/precision.py     how numbers are stored: float32, bfloat16 and so on
    engine/inputs.py        what an operation is given: numbers, Parameters, integers
    engine/dispatch.py      what surrounds an operation: fast forms, two bytes, the right GPU
    engine/forms.py         which fast forms there are
    engine/two_bytes.py     computing with numbers of two bytes
    engine/aside.py         gradients computed beside the main line of work
    engine/products.py      the one matrix product
    engine/more_ops.py      elementwise functions, powers, choices
    engine/more_rearrange.py  extremes, variances, joins
    engine/more_tensor.py   comparisons and other methods of Tensor
    engine/erf.py           how a special function is computed
    engine/checks.py        numbers and sizes that make sense
    engine/around.py        context managers that are decorators too
    engine/weighted_sum.py  what gradcheck differentiates
    engine/watching.py      whether anybody writes into arrays of others
    engine/drawing.py       the recorded graph as a picture
    engine/habits.py        what is typed out of habit, and what to write instead
    nn/buffer.py            the flat buffer behind Parameters
    nn/state.py             weights by name, out and in
    nn/more_module.py       a module's buffer, and the rest of its methods
    nn/more_layers.py       Sequential, activations, dropout
    nn/more_loss.py         softmax alone, and the squared error
    nn/targets.py           what a loss compares scores with
    nn/draws.py             random factors in training
    nn/describe.py          a model as a tree, and as a table
    nn/recompute.py         layers that forget and compute again, to save memory
    nn/loss_scale.py        gradients in float16
    model/variants.py       the sizes of the paper's models
    model/inputs.py         plain arrays of images on their way into a model
    model/precision.py      activations in two bytes
    model/trained.py        files, predictions, features of a model
    model/inspect.py        everything that a forward pass computes, by name
    training/settings.py    what an optimizer is told; its state
    training/same_model.py  whether a model is still the one its optimizer was made for
    training/norms.py       the norm of all gradients
    training/prefetch.py    batches made ahead by a thread
    training/gpu_batches.py the same batches, made on a GPU
    training/idx.py         IDX files: how to read what somebody else wrote
    training/datasets.py    the embedded MNIST, and data sets in its format
    training/metrics.py     accuracy and the like, from logits
    training/names.py       names from outside, made fit to show
    training/files.py       reading what may be anything; writing whole files; locks
    training/npz.py         .npz files: arrays by name, from anybody
    training/checkpoint.py  saving and resuming
    training/summary.py     what a model costs, layer by layer
    training/report.py      pictures of how it learned

After it the machinery; any of these rooms can be taken away, and the book still runs:

    kernels/    the same functions again for speed
    graph/      a training step recorded on a GPU and replayed
    weights/    other people's checkpoints
    pictures/   images of one's own
    parallel/   several processes that train one model
    app/        what `python -m minimixer` does
"""

import importlib.util
import pkgutil
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from . import nn
from .engine.autograd import Function
from .engine.grad_mode import enable_grad, is_grad_enabled, no_grad
from .engine.habits import missing
from .engine.more_ops import clip, maximum, where
from .engine.more_rearrange import concatenate, stack
from .engine.tensor import Tensor
from .engine.watching import GradientError
from .model.mixer import Mixer
from .nn import functional
from .nn.layers import LayerNorm, Linear, Module
from .nn.more_layers import GELU, Dropout, Flatten, ReLU, Sequential
from .nn.parameters import Parameter
from .training import data, optim
from .training.optim import SGD, Adam, AdamW
from .training.schedules import schedule

if TYPE_CHECKING:  # for editors: what is found when somebody asks for it
    from .engine.gradcheck import gradcheck as gradcheck
    from .graph.recorded import record as record
    from .graph.staging import fetch as fetch

if importlib.util.find_spec(f"{__name__}.kernels"):  # the same again for speed
    from . import kernels as kernels

__version__ = "0.1.0"

for _module in (data, functional, optim):  # by their short names
    sys.modules[f"{__name__}.{_module.__name__.rpartition('.')[2]}"] = _module


def on_demand(
    package: str, names: dict[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """__getattr__ and __dir__ of a package whose modules, `minimixer.weights` say, are imported
    when somebody asks for them: so it is imported in a tenth of a second, and needs no package
    that only some of them do. `names`: what else is looked up then, and in which module."""

    def modules() -> set[str]:
        return {module.name for module in pkgutil.iter_modules(sys.modules[package].__path__)}

    def find(name: str) -> Any:
        if names and name in names:
            return getattr(importlib.import_module(f"{package}.{names[name]}"), name)
        if name in modules():
            return importlib.import_module(f"{package}.{name}")
        raise missing(package, name, package)

    return find, lambda: sorted({*vars(sys.modules[package]), *modules(), *(names or ())})


_later = {"gradcheck": "engine.gradcheck", "draw_graph": "engine.drawing"}
if importlib.util.find_spec(f"{__name__}.graph"):  # one launch a step
    _later |= {"record": "graph.recorded", "fetch": "graph.staging"}
__getattr__, __dir__ = on_demand(__name__, _later)

__all__ = [
    "GELU", "SGD", "Adam", "AdamW", "Dropout", "Flatten", "Function", "GradientError", "LayerNorm",
    "Linear", "Mixer", "Module", "Parameter", "ReLU", "Sequential", "Tensor", "backend", "clip",
    "concatenate", "data", "draw_graph", "enable_grad", "functional", "gradcheck",
    "is_grad_enabled", "maximum", "nn", "no_grad", "ops", "optim", "rearrange", "schedule", "stack",
    "where",
]  # fmt: skip

__all__ += [name for name in ("fetch", "record") if name in _later]
