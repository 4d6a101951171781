"""A module's weights by name: taken out, and put in if everything fits.

>>> from minimixer import Linear
>>> layer, other = Linear(2, 3, seed=1), Linear(2, 3, seed=2)
>>> other.load_state_dict(layer.state_dict())
>>> bool((other.weight.data == layer.weight.data).all())
True
"""

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..engine.arrays import Array, is_array, to_numpy
from ..engine.autograd import Variable
from ..engine.checks import all_finite
from .parameters import Parameter

Items = Iterable[tuple[str, Any]]  # (path, Parameter or Module), all that is in a module


def state_of(items: Items) -> dict[str, np.ndarray]:
    """Every Parameter as a NumPy array (a copy), under each of its paths."""
    return {path: np.array(to_numpy(p.data)) for path, p in items if isinstance(p, Parameter)}


def load_state(items: Items, state: dict[str, Any], owner: str) -> None:
    """Take all values from a state_dict. Nothing is changed unless everything fits.

    ValueError names each entry that is missing, unexpected, of another shape or not finite,
    and shared Parameters that were given two different values.
    """
    if not hasattr(state, "items"):
        raise TypeError(f"load_state_dict: expected a dict of arrays, got {state!r:.60}")
    own = {path: value for path, value in items if isinstance(value, Parameter)}
    arrays = {
        name: value.data if isinstance(value, Variable) else value if is_array(value)
        else np.asarray(value) for name, value in state.items()
    }  # fmt: skip
    problems = [f"missing: {name}" for name in own if name not in arrays]
    problems += [f"unexpected: {name}" for name in arrays if name not in own]
    chosen: dict[int, str] = {}
    for name, parameter in own.items():
        array = arrays.get(name)
        if array is None:
            continue
        if array.shape != parameter.shape:
            problems.append(f"{name}: shape {array.shape}, but the model has {parameter.shape}")
        elif array.dtype.kind not in "fiu":
            problems.append(f"{name}: {array.dtype} is not a number")
        elif not all_finite(array, parameter.dtype):
            problems.append(f"{name}: as {parameter.dtype} it holds NaN or infinity")
        elif not _equal(array, arrays[chosen.setdefault(id(parameter), name)]):
            problems.append(f"{name} and {chosen[id(parameter)]} are one shared Parameter")
    if problems:
        raise ValueError(
            f"load_state_dict: {len(problems)} entries do not fit this {owner}:\n  "
            + "\n  ".join(problems)
        )
    for name, parameter in own.items():
        parameter.data = arrays[name]


def _equal(a: Array, b: Array) -> bool:
    return a is b or np.array_equal(to_numpy(a), to_numpy(b), equal_nan=True)
