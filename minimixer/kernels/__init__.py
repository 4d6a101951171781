"""The same functions again, for speed. The tutorial ends before this; nothing here is needed.

On the CPU, still NumPy:

    cpu/threads.py     threads of our own, and BLAS's
    cpu/blocks.py      how arrays are cut, and the measurements behind it
    cpu/reuse.py       memory of large arrays, used again
    cpu/mlp.py         products, GELU, the MLP
    cpu/layer_norm.py  LayerNorm
    cpu/training.py    AdamW, the norm of all gradients

On a GPU:

    gpu/cuda.py        compiling and starting CUDA kernels
    gpu/*.cu           the kernels, each with what it computes and how much memory it moves
    gpu/plans.py       how cuBLAS computes a product
    gpu/cublas.py      matrix products
    gpu/small.py       products too small for it
    gpu/spare_row.py   a bias as one more row of a product
    gpu/sums.py        sums in a fixed order
    gpu/side.py        work beside the main line of a recorded step
    gpu/layers.py      linear and the mean on these
    gpu/gelu.py        GELU
    gpu/mlp.py         the MLP; for Hopper's tensor cores with
    gpu/hopper.py      what their kernels share,
    gpu/token_mixing.py    the token-mixing MLP in one kernel,
    gpu/channel_mixing.py  the channel-mixing MLP's products with GELU
    gpu/layer_norm.py  LayerNorm
    gpu/training.py    the loss, softmax, AdamW, random draws, shifts, patches

And for both:

    node.py            what a fast form may ask of the engine
    fused.py           the trunk of a Mixer, an MLP, a sum with its LayerNorm as one
    unchanged.py       whether the plain code is what they were compared with
    kept.py            what they keep for backward

Each fast form computes what a plain one in the package computes, and tests compare the two. It
does the work where it suits, and while the plain code is unchanged: an operation that is edited or
patched, a subclass, a layer of one's own put into a model run themselves.

>>> from minimixer.kernels import use
>>> use("reference")        # the plain code everywhere, to read or to compare
>>> use("auto")             # what is fastest on each device
>>> use("lean")             # as "auto", in less memory, where gpu/channel_mixing.py may keep less
>>> use("untimed")          # as "auto", but no product's kernel is chosen by timing (gpu/plans.py)
>>> use("auto")

The environment variable MINIMIXER_KERNELS says which at the start.
"""

import importlib.util
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..engine import forms
from . import unchanged

_forms: dict[Any, dict[str, Any]] = {}
_registered: set[Any] = set()  # those of _forms that are not the package's own
_table: list[tuple[Any, dict[str, Any], tuple[str, ...]]] = []
_stands_for: dict[Any, tuple[str, ...]] = {}
_watched: dict[Any, list[Any] | None] = {}  # what must be unpatched; None where it is edited
_CHOICES = {  # each name, and what `status` adds for it
    "auto": "", "lean": ", in less memory", "untimed": ", products untimed", "reference": "",
}  # fmt: skip
_NAMES = " or ".join(", ".join(map(repr, _CHOICES)).rsplit(", ", 1))
_chosen = "auto"
_lacking = ""  # what the fast forms need of the plain code, and an edit took away


def use(which: str) -> None:
    """Choose the fast functions ("auto", "lean", "untimed") or the plain ones ("reference"),
    everywhere in this process and from now on (those that it spawns read MINIMIXER_KERNELS). What a
    function did is undone by the same function's backward, whatever was chosen in between.
    ValueError for another name."""
    global _chosen, _lacking
    if which not in [*_CHOICES]:  # a list: what can't be hashed is a wrong name too
        raise ValueError(f"kernels.use: {_NAMES}, got {which!r}")
    if which != "reference" and not _forms.keys() - _registered:
        try:
            _find()
        except (ImportError, AttributeError) as error:
            if not any(unchanged.state(module) == "edited" for module in unchanged.known()):
                raise
            _lacking = str(error)
    forms.table = {} if which == "reference" else dict(_forms)
    _chosen = which


def chosen() -> str:
    """What `use` chose last."""
    return _chosen


def register(
    plain: Any, compared: Mapping[str, str], *of_the_package: str, **by_library: Any
) -> None:
    """Let a fast form (a `node.Fast` for numpy=, for cupy=) stand in for a Function of one's own.

    compared        the modules of one's own that it stands for, each with `unchanged.digest` of
                    its source: an edited one, or one without a source, runs as it is
    of_the_package  the package's, as "nn.more_loss", that it stands for too
    As the package's own, it steps back while anything in these modules is patched.
    """
    for name, digest in compared.items():
        try:
            path = getattr(sys.modules[name], "__file__", None)
            source = Path(path or "").read_text(encoding="utf-8")
        except OSError:
            return
        if unchanged.digest(source) != digest:
            return
    if any(unchanged.state(module) == "edited" for module in of_the_package):
        return
    unchanged.remember(compared)
    _forms[plain] = by_library
    _watched[plain] = unchanged.watched([*compared, *of_the_package])
    _registered.add(plain)
    use(_chosen)


def status() -> str:
    """Which forms run, and why not the fast ones, in a line."""
    if _chosen == "reference":
        return "kernels: the plain code runs (MINIMIXER_KERNELS, or kernels.use)"
    if not _forms.keys() - _registered:
        return f"kernels: the plain code runs, edited: the fast forms need more of it ({_lacking})"
    modules = dict.fromkeys(module for _, _, standing in _table for module in standing)
    states: dict[str, list[str]] = {}
    for module in modules:
        found = unchanged.state(module)
        if found != "edited" and not unchanged.unpatched(unchanged.watched([module])):
            found = "patched"
        states.setdefault(found, []).append(module.replace(".", "/") + ".py")
    notes = [f"{', '.join(states[s])} {s}" for s in ("edited", "patched") if s in states]
    fast = "kernels: fast" + _CHOICES[_chosen]
    if notes:
        return f"{fast}, but not what stands for {' and '.join(notes)}: that runs as it is"
    return fast + (" (unchecked: there is no source)" if "unchecked" in states else "")


def _find() -> None:
    """What there is to replace what, of NumPy's arrays and of CuPy's; and the modules whose code it
    stands for."""
    from ..engine.rearrange import Mean
    from ..model.block import MixerMLP
    from ..model.images import to_tokens
    from ..model.mixer import Mixer
    from ..nn.draws import RandomCounter
    from ..nn.functional import GELU, LayerNorm, Linear
    from ..nn.loss import CrossEntropy
    from ..nn.loss_scale import update_if_finite
    from ..nn.more_loss import Softmax
    from ..training.gpu_batches import shifted
    from ..training.metrics import correct
    from ..training.norms import gradient_norm
    from ..training.optimizer import Optimizer, count_step
    from . import fused
    from .cpu import layer_norm as cpu_layer_norm
    from .cpu import mlp as cpu
    from .cpu import training as cpu_training
    from .fused import MLP, AddLayerNorm

    # Where several operations are one, the engine has less to do; and some gradients of Parameters
    # are written where they belong before it sees them.
    layer = "engine.products", "nn.parameters"
    walk = "engine.backward", "engine.dispatch", "engine.two_bytes"
    rules = "engine.autograd", "engine.inputs", *walk
    mlp = "model.block", "nn.functional", "engine.erf", *layer, *rules, "engine.precision"
    parts = "nn.layer_norm", "nn.layers", "nn.module", "nn.recompute", "model.mixer"
    trunk = *mlp, *parts, "engine.ops", "engine.tensor"
    adamw, norm = ("training.optim", "training.optimizer"), ("training.norms", "engine.products")
    _table[:] = [
        (Mixer.trunk, {"": fused.Trunk}, trunk),
        (MixerMLP.forward, {"": fused.Alone}, mlp),
        (Linear, {}, ("nn.functional", *layer)),
        (GELU, {"numpy": cpu.FastGELU}, ("nn.functional", "engine.erf")),
        (LayerNorm, {"numpy": cpu_layer_norm.FastLayerNorm}, ("nn.layer_norm", *layer)),
        (Mean, {}, ("engine.rearrange",)),
        (CrossEntropy, {}, ("nn.loss",)),
        (Softmax, {}, ("nn.more_loss", "nn.loss")),
        (Optimizer.update_ranges, {"numpy": cpu_training.AdamWRanges}, adamw),
        (update_if_finite, {}, (*adamw, "nn.loss_scale")),
        (count_step, {}, ("training.optimizer",)),
        (gradient_norm, {"numpy": cpu_training.GradientNorm}, norm),
        ("matmul", {"numpy": cpu.matmul}, ("engine.products",)),
        ("matmuls", {}, ("engine.products",)),
        (shifted, {}, ("training.gpu_batches",)),
        (RandomCounter.keep, {}, ("nn.draws", "engine.random")),
        (correct, {}, ("training.metrics",)),
        (to_tokens, {}, ("model.images", "model.inputs", "engine.tensor", "engine.rearrange")),
        (MLP, {"numpy": cpu.FastMLP}, ()),
        (AddLayerNorm, {"numpy": cpu_layer_norm.FastAddLayerNorm}, ()),
    ]
    if importlib.util.find_spec("cupy"):
        from .gpu import cublas, sums
        from .gpu import gelu as gpu_gelu
        from .gpu import layer_norm as gpu_layer_norm
        from .gpu import layers as gpu
        from .gpu import mlp as gpu_mlp
        from .gpu import training as gpu_training

        on_gpu = {
            Linear: gpu.FastLinear, Mean: gpu.FastMean, GELU: gpu_gelu.FastGELU,
            LayerNorm: gpu_layer_norm.FastLayerNorm, CrossEntropy: gpu_training.FastCrossEntropy,
            Optimizer.update_ranges: gpu_training.AdamWRanges,
            update_if_finite: gpu_training.AdamWIfFinite, count_step: gpu_training.CountStep,
            Softmax: gpu_training.FastSoftmax, gradient_norm: sums.GradientNorm,
            "matmul": cublas.matmul, "matmuls": cublas.matmuls,
            to_tokens: gpu_training.Tokens, shifted: gpu_training.Shifted,
            RandomCounter.keep: gpu_training.Keep, correct: gpu_training.Correct,
            MLP: gpu_mlp.FastMLP, AddLayerNorm: gpu_layer_norm.FastAddLayerNorm,
        }  # fmt: skip
        for plain, forms, _ in _table:
            if plain in on_gpu:
                forms["cupy"] = on_gpu[plain]
    for plain, forms, modules in _table:
        _forms[plain], _stands_for[plain] = forms, modules
    if unchanged.state("engine.products") == "edited":  # small products can't look each time
        del _forms["matmul"], _forms["matmuls"]


def _unchanged(plain: Any) -> bool:
    if plain not in _watched:
        modules = _stands_for[plain]
        edited = any(unchanged.state(module) == "edited" for module in modules)
        _watched[plain] = None if edited else unchanged.watched(modules)
    places = _watched[plain]
    return places is not None and unchanged.unpatched(places)


forms.unchanged = _unchanged
unchanged.remember(unchanged.known())
_asked = os.environ.get("MINIMIXER_KERNELS") or "auto"
if _asked not in _CHOICES:
    raise ValueError(f"MINIMIXER_KERNELS: {_NAMES}, not {_asked!r}")
use(_asked)
