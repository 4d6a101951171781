"""From outside weights and pictures to a fine-tuned model. The tutorial ends before this; the core
comes here only for `Mixer.from_pretrained`, `export` and `resize`.

    arrays.py             arrays by name from files that somebody else made
    layouts.py            what others call a Mixer's weights
    pretrained.py         models from such files, and such files from models
    remake.py             a model like another
    higher_resolution.py  a model for larger images
    freeze.py             which weights stay as they are
    probe.py              a linear classifier on frozen features, in closed form
    folders.py            labelled pictures on disk: finding and decoding them
    tiff.py               what a TIFF claims, before anybody believes it
    digits.py             a digit of one's own as MNIST has it
    augment.py            crops, flips, RandAugment, mixup: pictures changed at random
    loader.py             batches of pictures, decoded by several processes

timm's weights need safetensors (pip install -e '.[weights]'), pictures Pillow ('.[images]').
"""

import importlib
import pkgutil
from typing import Any


def __getattr__(name: str) -> Any:  # as in minimixer itself: only what is asked for is imported
    if name in _modules():
        return importlib.import_module(f"{__name__}.{name}")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_modules()})


def _modules() -> set[str]:
    return {module.name for module in pkgutil.iter_modules(__path__)}
