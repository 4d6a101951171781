"""The same functions again, for speed. The tutorial ends before this; nothing here is needed.

On the CPU, still NumPy:

    threads.py        threads of our own, and BLAS's
    blocks.py         how arrays are cut, and the measurements behind it
    reuse.py          memory of large arrays, used again
    cpu.py            products, GELU, the MLP
    cpu_layer_norm.py LayerNorm
    cpu_training.py   AdamW, the norm of all gradients

On a GPU:

    cuda.py           compiling and starting CUDA kernels
    *.cu              the kernels, each with what it computes and how much memory it moves
    cublas.py         matrix products
    spare_row.py      a bias as one more row of a product
    sums.py           sums in a fixed order
    side.py           work beside the main line of a recorded step
    gpu.py            linear, the mean, GELU and the MLP on these
    gpu_layer_norm.py LayerNorm
    gpu_training.py   the loss, AdamW, patches

And for both:

    node.py           what a fast form may ask of the engine
    fused.py          the trunk of a Mixer, an MLP, a sum with its LayerNorm as one
    unchanged.py      whether the plain code is what they were compared with

Each fast form computes what a plain one in the package computes, and tests compare the two. It
does the work where it suits, and while the plain code is unchanged: an operation that is edited or
patched, a subclass, a layer of one's own put into a model run themselves.

>>> use("reference")        # the plain code everywhere, to read or to compare
>>> use("auto")             # what is fastest on each device

The environment variable MINIMIXER_KERNELS says which at the start.
"""

import importlib.util
import os
from typing import Any

from .. import backend
from . import unchanged

_forms: dict[Any, dict[str, Any]] = {}
_table: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = []
_stands_for: dict[Any, tuple[str, ...]] = {}
_watched: dict[Any, list[Any] | None] = {}  # what must be unpatched; None where it is edited
_chosen = "auto"
_lacking = ""  # what the fast forms need of the plain code, and an edit took away


def use(which: str) -> None:
    """Choose between the fast functions ("auto") and the plain ones ("reference"), everywhere in
    this process and from now on (those that it spawns read MINIMIXER_KERNELS). What a function did
    is undone by the same function's backward, whatever was chosen in between. ValueError for
    another name."""
    global _chosen, _lacking
    if which not in ("auto", "reference"):
        raise ValueError(f"kernels.use: 'auto' or 'reference', got {which!r}")
    if which == "auto" and not _forms:
        try:
            _find()
        except (ImportError, AttributeError) as error:
            if not any(unchanged.state(module) == "edited" for module in unchanged.known()):
                raise
            _lacking = str(error)
    backend.forms = dict(_forms) if which == "auto" else {}
    _chosen = which


def status() -> str:
    """Which forms run, and why not the fast ones, in a line."""
    if _chosen == "reference":
        return "kernels: the plain code runs (MINIMIXER_KERNELS, or kernels.use)"
    if not _forms:
        return f"kernels: the plain code runs, edited: the fast forms need more of it ({_lacking})"
    modules = dict.fromkeys(module for _, _, standing in _table for module in standing)
    states: dict[str, list[str]] = {}
    for module in modules:
        found = unchanged.state(module)
        if found != "edited" and not unchanged.unpatched(unchanged.watched([module])):
            found = "patched"
        states.setdefault(found, []).append(f"{module}.py")
    notes = [f"{', '.join(states[s])} {s}" for s in ("edited", "patched") if s in states]
    if notes:
        return f"kernels: fast, but not what stands for {' and '.join(notes)}: that runs as it is"
    return "kernels: fast" + (" (unchecked: there is no source)" if "unchecked" in states else "")


def _find() -> None:
    """What there is to replace what, of NumPy's arrays and of CuPy's; and the modules whose code it
    stands for."""
    from ..block import MixerMLP
    from ..functional import GELU, LayerNorm, Linear
    from ..images import to_tokens
    from ..loss import CrossEntropy
    from ..loss_scale import update_if_finite
    from ..mixer import Mixer
    from ..norms import gradient_norm
    from ..optimizer import Optimizer, count_step
    from ..rearrange import Mean
    from . import cpu, cpu_layer_norm, cpu_training, fused
    from .fused import MLP, AddLayerNorm

    # Where several operations are one, the engine has less to do; and some gradients of Parameters
    # are written where they belong before it sees them.
    layer = "products", "parameters"
    engine = "autograd", "inputs", "backward", "dispatch", "precision"
    mlp = "block", "functional", "erf", *layer, *engine
    trunk = *mlp, "layer_norm", "nn", "module", "recompute", "ops", "tensor", "mixer"
    _table[:] = [
        (Mixer.trunk, {"": fused.Trunk}, trunk),
        (MixerMLP.forward, {"": fused.Alone}, mlp),
        (Linear, {}, ("functional", *layer)),
        (GELU, {"numpy": cpu.FastGELU}, ("functional", "erf")),
        (LayerNorm, {"numpy": cpu_layer_norm.FastLayerNorm}, ("layer_norm", *layer)),
        (Mean, {}, ("rearrange",)),
        (CrossEntropy, {}, ("loss",)),
        (Optimizer.update_ranges, {"numpy": cpu_training.AdamWRanges}, ("optim", "optimizer")),
        (update_if_finite, {}, ("optim", "optimizer", "loss_scale")),
        (count_step, {}, ("optimizer",)),
        (gradient_norm, {"numpy": cpu_training.GradientNorm}, ("norms", "products")),
        ("matmul", {"numpy": cpu.matmul}, ("products",)),
        (to_tokens, {}, ("images", "tensor", "rearrange")),
        (MLP, {"numpy": cpu.FastMLP}, ()),
        (AddLayerNorm, {"numpy": cpu_layer_norm.FastAddLayerNorm}, ()),
    ]
    if importlib.util.find_spec("cupy"):
        from . import cublas, gpu, gpu_layer_norm, gpu_training, sums

        on_gpu = {
            Linear: gpu.FastLinear, GELU: gpu.FastGELU, LayerNorm: gpu_layer_norm.FastLayerNorm,
            Mean: gpu.FastMean, CrossEntropy: gpu_training.FastCrossEntropy,
            Optimizer.update_ranges: gpu_training.AdamWRanges,
            update_if_finite: gpu_training.AdamWIfFinite, count_step: gpu_training.CountStep,
            gradient_norm: sums.GradientNorm, "matmul": cublas.matmul,
            to_tokens: gpu_training.Tokens, MLP: gpu.FastMLP,
            AddLayerNorm: gpu_layer_norm.FastAddLayerNorm,
        }  # fmt: skip
        for plain, forms, _ in _table:
            if plain in on_gpu:
                forms["cupy"] = on_gpu[plain]
    for plain, forms, modules in _table:
        _forms[plain], _stands_for[plain] = forms, modules
    if unchanged.state("products") == "edited":  # small products have no time to look each time
        del _forms["matmul"]


def _unchanged(plain: Any) -> bool:
    if plain not in _watched:
        modules = _stands_for[plain]
        edited = any(unchanged.state(module) == "edited" for module in modules)
        _watched[plain] = None if edited else unchanged.watched(modules)
    places = _watched[plain]
    return places is not None and unchanged.unpatched(places)


backend.unchanged = _unchanged
unchanged.remember(unchanged.known())
_asked = os.environ.get("MINIMIXER_KERNELS") or "auto"
if _asked not in ("auto", "reference"):
    raise ValueError(f"MINIMIXER_KERNELS must be 'auto' or 'reference', not {_asked!r}")
use(_asked)
