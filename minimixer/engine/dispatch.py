"""What surrounds forward and backward, so that no operation has to think of it.

An operation (a Function, autograd.py) is written for arrays of float32 or float64. Three things are
arranged around it, here and nowhere else:

    choose      Where a fast form of it (kernels/) suits these inputs, that does the work. It is
                asked once, before forward; backward is then its own.
    run         Numbers stored in two bytes are widened to float32, computed with, and what comes
                out is rounded; a Function that only moves numbers about gets them as they are.
                Work is asked of the GPU that holds the numbers.
    run_back, converted    The same for backward.
    surrounded  The whole walk back: without warnings, and not over before all gradients are there.

What is no Function has fast forms too: `replaceable` marks it, and asks at each call.
"""

import contextvars
import functools
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from . import backend
from .backend import Array, describe, is_array, is_half, namespace, use_device_of, widen

# What NumPy shall do about infinities and NaN stands in a context variable. (A `with np.errstate`,
# which makes its value anew, takes five times as long as to set it.)
_before = contextvars.copy_context()
with np.errstate(all="ignore"):
    _within = contextvars.copy_context()
((_errors, _ignored),) = [pair for pair in _within.items() if _before.get(pair[0]) is not pair[1]]


def quietly(function: Callable, /, *inputs: Any, **options: Any) -> Any:
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
    form = backend.form_of(type(node), first) if type(node) in backend.forms else None
    if form is None:
        return node
    try:
        node.check(*arrays, **options)
    except (ValueError, TypeError) as error:
        raise explained(error, type(node).__name__, arrays) from None
    fast = form()
    fast.needs = node.needs
    fast.read(inputs)
    suits = fast.suits(*arrays, **options) and backend.unchanged(type(node))
    return fast if suits else node


def replaceable(plain: Callable) -> Callable:
    """Mark a function, or a method, that a fast form may stand in for: the first that suits."""

    @functools.wraps(plain)
    def function(*inputs: Any, **options: Any) -> Any:
        for form in backend.forms.get(function, {}).values():
            if form.suits(*inputs, **options) and backend.unchanged(function):
                return form.run(*inputs, **options)
        return plain(*inputs, **options)

    function.plain = plain  # type: ignore[attr-defined]
    return function


# ---- forward ------------------------------------------------------------------------------------


def run(name: str, node: Any, first: Any, arrays: Sequence[Any], options: dict[str, Any]) -> Any:
    """What node.forward makes of the arrays, an array or a tuple of them. `name`, and what it was
    given, go in front of its errors."""
    if first is not None and type(first) is not np.ndarray:
        use_device_of(first)
    try:
        if first is not None and first.dtype.itemsize == 2 and not node.any_dtype:
            return _rounded(node, arrays, options, first.dtype)
        if node.quiet:
            return quietly(node.forward, *arrays, **options)
        return node.forward(*arrays, **options)
    except (ValueError, TypeError, OverflowError) as error:
        raise explained(error, name, arrays) from None


def _rounded(node: Any, arrays: Sequence[Any], options: dict[str, Any], dtype: np.dtype) -> Any:
    if not is_half(dtype):  # int16, which has no gradient
        return node.forward(*arrays, **options)
    wide = [widen(a) if is_array(a) else a for a in arrays]
    result = quietly(node.forward, *wide, **options)
    if node.wide_result:
        return result
    if isinstance(result, (tuple, list)):
        return tuple([_round(y, dtype) for y in result])
    return _round(result, dtype)


@np.errstate(over="ignore")  # float16 ends at 65504: beyond is infinite
def _round(array: Any, dtype: np.dtype) -> Array:
    return namespace(array).asarray(array).astype(dtype)


def explained(error: Exception, name: str, arrays: Sequence[Any]) -> Exception:
    """The error, with the operation's name and what it was given in front."""
    met = ", ".join(describe(a) if is_array(a) else f"{a!r:.60}" for a in arrays)
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name} of {met}: {error}")


# ---- backward -----------------------------------------------------------------------------------


def surrounded(walk: Callable, /, *inputs: Any) -> None:
    """walk(*inputs). Infinite slopes, and NaN behind them, are what the derivatives are, and no
    reason to warn. What fast forms compute beside the walk is waited for."""
    try:
        quietly(walk, *inputs)
    finally:
        backend.join()


def run_back(node: Any, gradients: list[Array | None]) -> Sequence[Any]:
    """What node.backward makes of the gradients that arrived: one for each input, or None."""
    if type(gradients[0]) is not np.ndarray or node.input_dtype.itemsize == 2:
        gradients = _prepared(node, gradients)
    results = node.backward(*gradients)
    results = results if isinstance(results, (tuple, list)) else (results,)
    if len(results) != len(node.needs):
        raise ValueError(
            f"{type(node).__name__}.backward returned {len(results)} gradients for "
            f"{len(node.needs)} inputs"
        )
    return results


def _prepared(node: Any, gradients: list[Array | None]) -> list[Array | None]:
    """What arrived, as node.backward wants it: on the current GPU; in float32 if forward was."""
    use_device_of(next(gradient for gradient in gradients if gradient is not None))
    if is_half(node.input_dtype) and not node.any_dtype:
        return [None if gradient is None else widen(gradient) for gradient in gradients]
    return gradients


def converted(node: Any, index: int, result: Any, shape: tuple[int, ...], leaf: bool) -> Array:
    """float32 as the gradient of a two-byte input, rounded; for all else an error that says what
    is wrong with it."""
    name, dtype = f"{type(node).__name__}.backward", node.input_dtype
    if not is_array(result) and not isinstance(result, np.generic):
        raise TypeError(f"{name} returned {result!r:.60} for input {index}; it must be an array")
    if result.shape != shape:
        raise ValueError(
            f"{name} returned a gradient of shape {result.shape} for input {index} of shape "
            f"{shape}: was a broadcast not undone?"
        )
    if result.dtype == dtype:  # which is another object, from a file say
        return result
    if not (is_half(dtype) and result.dtype == np.float32):
        raise TypeError(f"{name} returned {result.dtype} as the gradient of input {index}, {dtype}")
    return result if leaf else result.astype(dtype)  # leaves convert it themselves
