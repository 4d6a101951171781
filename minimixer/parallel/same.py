"""Are all ranks doing the same thing? Hashes tell, without sending what was hashed.

Processes that differ in a setting, in a file or in a weight would train on for hours, each its own
way, and their sum would be the gradient of nothing. So before the first step each rank describes
what it is about to do, in short texts, and these are compared.

>>> from minimixer.parallel.same import describe, differences
>>> describe({"settings": {"lr": 0.1, "out": "runs"}, "step": 3})
{'settings.lr': '0.1', 'settings.out': "'runs'", 'step': '3'}
>>> print(differences([{"lr": "0.1"}, {"lr": "0.1"}, {"lr": "0.2"}]))
lr is 0.2 on rank 2, but 0.1 on rank 0

Next: `sums.py`.
"""

import hashlib
import platform
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import is_array, to_numpy

LONGEST = 40  # characters of a text that is shown as it is


def describe(things: dict[str, Any]) -> dict[str, str]:
    """A short text for each thing: arrays and what is long by their hash, dicts entry by entry."""
    texts: dict[str, str] = {}
    for name, value in things.items():
        if isinstance(value, dict):
            texts |= {f"{name}.{key}": text for key, text in describe(value).items()}
        elif is_array(value):
            array = np.ascontiguousarray(to_numpy(value))
            digest = hashlib.sha256(array.reshape(-1).view(np.uint8).data).hexdigest()
            texts[name] = f"{array.dtype} {array.shape} {digest[:16]}"
        else:
            text = repr(value)
            short = len(text) <= LONGEST
            texts[name] = text if short else hashlib.sha256(text.encode()).hexdigest()[:16]
    return texts


def differences(texts: list[dict[str, str]]) -> str:
    """What the ranks do not have in common with rank 0, in words; "" if there is nothing."""
    found = []
    for name in dict.fromkeys(name for one in texts for name in one):
        first = texts[0].get(name, "missing")
        by_text: dict[str, list[int]] = {}
        for rank, one in enumerate(texts):
            if one.get(name, "missing") != first:
                by_text.setdefault(one.get(name, "missing"), []).append(rank)
        for text, ranks in by_text.items():
            whom = f"rank{'s' * (len(ranks) > 1)} {', '.join(map(str, ranks))}"
            found.append(f"{name} is {text} on {whom}, but {first} on rank 0")
    return "; ".join(found)


def code() -> dict[str, str]:
    """What the numbers depend on besides settings and data: hashes of minimixer's sources and of
    the script and the modules beside it, versions of Python and NumPy (and CuPy if in use)."""
    package = Path(__file__).parents[1]
    sources = [path for path in package.rglob("*") if path.suffix in (".py", ".cu")]
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    folder = Path(main).resolve().parent if main else None
    loaded = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    script = {Path(file).resolve() for file in loaded if file and Path(file).suffix == ".py"}
    script = {path for path in script if path.parent == folder}
    numbers = {name: sys.modules.get(name) for name in ("numpy", "cupy")}
    return {
        "minimixer": _hash_files(sources, package),
        "script": _hash_files(list(script), folder),
        "python": platform.python_version(),
        **{name: module.__version__ for name, module in numbers.items() if module is not None},
    }


def _hash_files(paths: list[Path], root: Path | None) -> str:
    digest = hashlib.sha256()
    for path in sorted(paths):
        content = path.read_bytes()
        name = path.relative_to(root) if root else path
        digest.update(f"{name}\0{len(content)}\0".encode() + content)
    return digest.hexdigest()[:16]
