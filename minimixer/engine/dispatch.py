"""What surrounds forward and backward, so that no operation has to think of it.

An operation (a Function, autograd.py) is written for arrays of float32 or float64. Three things are
arranged around it, here and nowhere else:

    choose      Where a fast form of it (kernels/) suits these inputs, that does the work. It is
                asked once, before forward; backward is then its own.
    run         Numbers stored in two bytes are computed with in float32 (two_bytes.py). Work is
                asked of the GPU that holds the numbers. NumPy does not warn of what is right.
    run_back    The same for backward; and `surrounded` for the whole walk.

What is no Function has fast forms too: `replaceable` marks it, and asks at each call.
"""

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import forms
from .around import Called  # what a decorator takes, and gives back
from .arrays import Array, use_device_of
from .aside import join
from .inputs import explained
from .precision import is_half
from .two_bytes import prepared, rounded

# What NumPy shall do about infinities and NaN stands in a context variable. (A `with np.errstate`,
# which makes its value anew, takes five times as long as to set it.)
_before = contextvars.copy_context()
with np.errstate(all="ignore"):
    _within = contextvars.copy_context()
((_errors, _ignored),) = [pair for pair in _within.items() if _before.get(pair[0]) is not pair[1]]


def quietly(function: Callable[..., Any], /, *inputs: Any, **options: Any) -> Any:
    """function(*inputs, **options), without warnings from NumPy."""
    token = _errors.set(_ignored)
    try:
        return function(*inputs, **options)
    finally:
        _errors.reset(token)


# ---- fast forms ---------------------------------------------------------------------------------


def choose(
    node: Any, inputs: Sequence[Any], first: Any, arrays: Sequence[Any], options: dict[str, Any]
) -> Any:
    """The node that does the work: `node`, of plain code, or one of a fast form that suits."""
    if type(node) not in forms.table or (form := forms.form_of(type(node), first)) is None:
        return node
    try:
        node.check(*arrays, **options)
    except (ValueError, TypeError) as error:
        raise explained(error, type(node).__name__, arrays) from None
    fast = form()
    fast.needs = node.needs
    fast.read(inputs)
    suits = fast.suits(*arrays, **options) and forms.unchanged(type(node))
    return fast if suits else node


def replaceable(plain: Called) -> Called:
    """Mark a function, or a method, that a fast form may stand in for: the first that suits."""

    @functools.wraps(plain)
    def function(*inputs: Any, **options: Any) -> Any:
        for form in forms.table.get(function, {}).values():
            if form.suits(*inputs, **options) and forms.unchanged(function):
                return form.run(*inputs, **options)
        return plain(*inputs, **options)

    function.plain = plain  # type: ignore[attr-defined]
    return function  # type: ignore[return-value]


# ---- forward ------------------------------------------------------------------------------------


def run(name: str, node: Any, first: Any, arrays: Sequence[Any], options: dict[str, Any]) -> Any:
    """What node.forward makes of the arrays, an array or a tuple of them. `name`, and what it was
    given, go in front of its errors."""
    try:
        if type(first) is np.ndarray and first.dtype.itemsize > 2 and not node.quiet:
            return node.forward(*arrays, **options)
        return _run_with_care(node, first, arrays, options)
    except (ValueError, TypeError, OverflowError) as error:
        raise explained(error, name, arrays) from None


def _run_with_care(node: Any, first: Any, arrays: Sequence[Any], options: dict[str, Any]) -> Any:
    if first is not None:
        use_device_of(first)
        if is_half(first.dtype) and not node.any_dtype:
            return quietly(rounded, node, arrays, options, first.dtype)
        if node.quiet:
            return quietly(node.forward, *arrays, **options)
    return node.forward(*arrays, **options)


# ---- backward -----------------------------------------------------------------------------------


def surrounded(walk: Callable[..., Any], /, *inputs: Any) -> None:
    """walk(*inputs). Infinite slopes, and NaN behind them, are what the derivatives are, and no
    reason to warn. What fast forms compute beside the walk is waited for."""
    try:
        quietly(walk, *inputs)
    finally:
        join()


def run_back(node: Any, gradients: list[Array | None]) -> Sequence[Any]:
    """What node.backward makes of the gradients that arrived: one for each input, or None."""
    if type(gradients[0]) is not np.ndarray or node.input_dtype.itemsize == 2:  # else: as they are
        gradients = prepared(node, gradients)
    results = node.backward(*gradients)
    results = results if isinstance(results, (tuple, list)) else (results,)
    if len(results) != len(node.needs):
        raise ValueError(
            f"{type(node).__name__}.backward returned {len(results)} gradients for "
            f"{len(node.needs)} inputs"
        )
    return results
