"""Is this still the same model? What a module computes, as a value that can be compared.

A recorded step (recorded.py) repeats what was once asked of a GPU. So it may stand for a function
only while everything that the function would look at in Python is as it was. Arrays on the GPU are
read anew at each replay; what remains are the modules, which of them come in which order, and all
other attributes: numbers, text, settings.

>>> from minimixer import Dropout, Module
>>> from minimixer.graph.fingerprint import Fingerprint
>>> layer, model = Dropout(0.5), Module()
>>> model.layers = [layer, Dropout(0.1)]
>>> fingerprint = Fingerprint(model)
>>> layer.p = 0.25
>>> fingerprint == Fingerprint(model)
False
>>> fingerprint = Fingerprint(model)
>>> fingerprint.is_current()                 # a quick look, at every step
True
>>> _ = model.layers.pop()
>>> fingerprint.is_current(), fingerprint == Fingerprint(model)
(False, False)

Next: `staging.py`, batches on their way to the GPU.
"""

from operator import is_
from typing import Any

import numpy as np

from ..engine.autograd import Variable
from ..nn.layers import Module


class Fingerprint:
    """Of a module and all below it: numbers, text and arrays of the CPU by value, lists, tuples
    and dicts by what is in them, all other objects by identity (a change inside goes unseen)."""

    def __init__(self, module: Module):
        self._changes = Module.changes
        self._seen: list[Any] = []  # containers
        self._members: list[tuple[Any, tuple]] = []  # what may change with no attribute being set
        self._value = tuple(
            [
                (path, Same(module), name, self._look(value))
                for path, module in module.named_modules()
                for name, value in vars(module).items()
            ]
        )
        self._hash = hash(self._value)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fingerprint) and self._value == other._value

    def __hash__(self) -> int:
        return self._hash

    def is_current(self) -> bool:
        """Has no attribute of any module been set since, and no list or dict been changed?"""
        if self._changes != Module.changes:
            return False
        for container, members in self._members:
            if len(container) != len(members) or not all(map(is_, container, members)):
                return False
        return True

    def _look(self, value: Any) -> Any:
        if isinstance(value, (list, tuple, dict)):
            if any(value is container for container in self._seen):
                return Same(value)  # looked at before, or holds itself
            self._seen.append(value)
            if isinstance(value, list):
                self._members.append((value, tuple(value)))
            elif isinstance(value, dict):
                views = value.keys(), value.values()
                self._members.extend([(view, tuple(view)) for view in views])
            items = value.items() if isinstance(value, dict) else enumerate(value)
            return (type(value), *[(key, self._look(item)) for key, item in items])
        return token(value)


class Same:
    """Equal to another one if that holds the very same object. It keeps the object alive, so that
    no other one can take its place in memory."""

    __slots__ = ("value",)
    value: Any

    def __init__(self, value: Any):
        self.value = value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Same) and self.value is other.value

    def __hash__(self) -> int:
        return id(self.value)


def token(value: Any) -> Any:
    """Something to stand for `value` in a key: 1, 1.0 and True are three."""
    if isinstance(value, np.ndarray):
        return (value.dtype.str, value.shape, value.tobytes())
    if isinstance(value, (list, tuple)):
        return (type(value), *map(token, value))
    if isinstance(value, (Module, Variable)):
        return Same(value)
    try:
        hash(value)
    except TypeError:
        return Same(value)
    return (type(value), value)
