"""The same functions again, for speed. The tutorial ends before this; nothing here is needed.

    node.py           what a fast form may ask of the engine
    fused.py          the trunk of a Mixer, an MLP, a sum with its LayerNorm as one

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
    gpu.py            linear, the mean, GELU, the MLP and LayerNorm on these
    gpu_training.py   the loss, AdamW, patches

Each fast form computes what a plain one in the package computes, and tests compare the two. They
are entered in `backend.forms`; dispatch.py asks them whether they suit. `use("reference")` empties
that.

>>> use("reference")        # the plain code everywhere, to read or to compare
>>> use("auto")             # what is fastest on each device
"""

from typing import Any

from .. import backend

_forms: dict[Any, dict[str, Any]] = {}


def use(which: str) -> None:
    """Choose between the fast functions ("auto") and the plain ones ("reference"), everywhere and
    from now on. What a function did is undone by the same function's backward, whatever was chosen
    in between. ValueError for another name."""
    if which not in ("auto", "reference"):
        raise ValueError(f"kernels.use: 'auto' or 'reference', got {which!r}")
    if which == "auto" and not _forms:
        _forms.update(_find())
    backend.forms = dict(_forms) if which == "auto" else {}


def _find() -> dict[Any, dict[str, Any]]:
    """What there is to replace what, of NumPy's arrays and of CuPy's."""
    from ..block import MixerMLP
    from ..functional import GELU, LayerNorm, Linear
    from ..loss import CrossEntropy
    from ..mixer import Mixer
    from ..optim import Adam, AdamW
    from ..rearrange import Mean
    from . import cpu, cpu_layer_norm, cpu_training, cublas, fused, gpu, gpu_training, sums
    from .fused import MLP, AddLayerNorm

    return {
        Mixer.trunk: {"": fused.Trunk},
        MixerMLP.forward: {"": fused.Mlp},
        Linear: {"cupy": gpu.FastLinear},
        MLP: {"numpy": cpu.FastMLP, "cupy": gpu.FastMLP},
        GELU: {"numpy": cpu.FastGELU, "cupy": gpu.FastGELU},
        AddLayerNorm: {"numpy": cpu_layer_norm.FastAddLayerNorm, "cupy": gpu.FastAddLayerNorm},
        LayerNorm: {"numpy": cpu_layer_norm.FastLayerNorm, "cupy": gpu.FastLayerNorm},
        Mean: {"cupy": gpu.FastMean},
        CrossEntropy: {"cupy": gpu_training.FastCrossEntropy},
        AdamW: {"numpy": cpu_training.adamw, "cupy": gpu_training.adamw},
        Adam: {"numpy": cpu_training.adamw, "cupy": gpu_training.adamw},
        "matmul": {"numpy": cpu.matmul, "cupy": cublas.matmul},
        "patches": {"cupy": gpu_training.patches},
        "sum_squares": {"numpy": cpu_training.sum_squares, "cupy": sums.sum_squares},
        "count_step": {"cupy": gpu_training.count_step},
    }


use("auto")
