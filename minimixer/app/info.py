"""What is installed here, what runs, and what is missing with what to type for it.

    python -m minimixer info

Whatever is broken is said in its line, and the other lines come all the same.
"""

import importlib.metadata
import importlib.util
import os
import platform
import re
import shlex
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from ..training.checkpoint import BUILT_IN
from ..training.names import printable
from .options import Parser

PACKAGE = Path(__file__).parents[1]
WIDTH = 400  # characters of a line at most: nobody reads a longer error
MOST_GPUS = 4

# Extra: what it is for, and what it brings, as pyproject.toml says it.
EXTRAS = {
    "images": ("pictures of your own", ["pillow"]),
    "weights": ("timm's weights", ["safetensors"]),
    "plots": ("curves and confusion matrices", ["matplotlib"]),
    "distributed": ("several processes", ["mpi4py", "mpich"]),
    "cuda": ("NVIDIA GPUs, CUDA 12",
             ["cupy-cuda12x[ctk]>=14.2", "nvidia-nccl-cu12>=2.18.1", "ml_dtypes"]),
    "cuda13": ("NVIDIA GPUs, CUDA 13",
               ["cupy-cuda13x[ctk]>=14.2", "nvidia-nccl-cu13", "ml_dtypes"]),
    "book": ("the package as pages to read",
             ["pygments", "markdown-it-py", "mdit-py-plugins", "latex2mathml"]),
    "test": ("running the tests",
             ["pytest", "pytest-xdist", "hypothesis", "ml_dtypes", "pillow", "safetensors",
              "nbclient", "ipykernel", "pygments", "markdown-it-py", "mdit-py-plugins",
              "latex2mathml"]),
}  # fmt: skip
# What is imported to see whether it works: not MPI, which would start, nor CuPy, see gpu().
MODULES = {"pillow": "PIL.Image", "safetensors": "safetensors.numpy", "matplotlib": "matplotlib"}


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    Parser(description=__doc__, prog=prog).parse_args(words)
    for name, tell in ("minimixer", package), ("Python", python), ("NumPy", numpy), ("GPU", gpu), \
            ("kernels", kernels), ("models", models), ("extras", extras):  # fmt: skip
        for line in _survive(tell):
            print(f"{name:10} {printable(line, WIDTH)}")
            name = ""
    return 0


def _survive(tell: Callable[[], Iterator[str]]) -> Iterator[str]:
    """The lines of a part, and of its error instead of those that did not come."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield from tell()
    except Exception as error:
        yield f"can't be told: {type(error).__name__}: {error}"


def package() -> Iterator[str]:
    from .. import __version__

    yield f"{__version__}, in {PACKAGE}"
    scripts = PACKAGE.parent / "examples"
    yield (
        f"scripts, for training and more: {scripts}"
        if (scripts / "train_mnist.py").is_file()
        else "scripts, for training and more, are in the repository's examples/: not here"
    )


def python() -> Iterator[str]:
    yield (f"{platform.python_version()}, {platform.system()} {platform.machine()}, "
           f"{os.cpu_count()} cores")  # fmt: skip


def numpy() -> Iterator[str]:
    blas = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
    yield f"{np.__version__}, BLAS {blas['name']} {blas['version']}, {blas_threads()}"


def blas_threads() -> str:
    try:
        from ..kernels.cpu.threads import blas_threads
    except ImportError:
        return "threads unknown"
    count = blas_threads()
    return "threads unknown" if count is None else f"{count} thread{'s' * (count > 1)}"


def gpu() -> Iterator[str]:
    from ..engine.devices import check_device

    try:
        check_device("cuda")
    except ValueError as error:
        yield f"none: {error}"
        return
    import cupy

    count = cupy.cuda.runtime.getDeviceCount()
    for number in range(min(count, MOST_GPUS)):
        found = cupy.cuda.runtime.getDeviceProperties(number)
        name, memory = found["name"].decode(), found["totalGlobalMem"] / 2**30
        yield f"cuda:{number}  {name}, {memory:.0f} GiB, CuPy {cupy.__version__}"
    if count > MOST_GPUS:
        yield f"and {count - MOST_GPUS} more"


def kernels() -> Iterator[str]:
    try:
        from ..kernels import status
    except ImportError:
        yield "none: the plain code runs"
    else:
        yield status().removeprefix("kernels: ")


def models() -> Iterator[str]:
    from ..model.mixer import Mixer

    for name in BUILT_IN:
        model = Mixer.load(name)
        yield (f'{name}: Mixer.load("{name}"), {model.height} x {model.width} pixels, '
               f"{model.num_classes} classes, {model.num_parameters():,} parameters")  # fmt: skip


def extras() -> Iterator[str]:
    for extra, (use, requirements) in EXTRAS.items():
        found = {requirement: _version(_name(requirement)) for requirement in requirements}
        another = extra.startswith("cuda") and importlib.util.find_spec("cupy")
        if another and found[requirements[0]] is None:
            continue  # one CuPy is enough, and two quarrel
        there = [f"{_name(r)} {version}" for r, version in found.items() if version]
        lacking = [shlex.quote(r) for r, version in found.items() if not version]
        parts = [", ".join(there)] * bool(there)
        parts += [f"pip install {' '.join(lacking)}"] * bool(lacking)
        yield f"{extra:11} {use}: {'; '.join(parts)}"


def _name(requirement: str) -> str:
    return re.split(r"[\[<>=]", requirement)[0]


def _version(name: str) -> str | None:
    """Of an installed package, and why it can't be imported; None if it is not here."""
    try:
        version = importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return None
    try:
        importlib.import_module(MODULES.get(name, "sys"))
    except Exception as error:
        return f"{version} is broken ({error}; pip install --force-reinstall {name})"
    return version
