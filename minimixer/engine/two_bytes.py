"""Numbers stored in two bytes: widened to float32, computed with, and rounded again.

That surrounds every operation (dispatch.py), forward and backward; one with `any_dtype`, which only
moves numbers about, gets them as they are. With `wide_result`, as of a mean, forward's results are
not rounded. Nor is a gradient of a Parameter: sums stay float32.

>>> from minimixer import Tensor
>>> x = Tensor([1.0, 2.0], dtype="float16")
>>> (x / 3).data                             # 0.33333334 in float32
array([0.3333, 0.6665], dtype=float16)
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from .arrays import Array, is_array, namespace, use_device_of
from .precision import is_half, widen


def rounded(node: Any, arrays: Sequence[Any], options: dict[str, Any], dtype: np.dtype) -> Any:
    """What node.forward makes of the arrays in float32, in the two-byte dtype."""
    wide = [widen(a) if is_array(a) else a for a in arrays]
    result = node.forward(*wide, **options)
    if node.wide_result:
        return result
    if isinstance(result, (tuple, list)):
        return tuple([_round(y, dtype) for y in result])
    return _round(result, dtype)


@np.errstate(over="ignore")  # float16 ends at 65504: beyond is infinite
def _round(array: Any, dtype: np.dtype) -> Array:
    return namespace(array).asarray(array).astype(dtype)


def prepared(node: Any, gradients: list[Array | None]) -> list[Array | None]:
    """What arrived, as node.backward wants it: on the current GPU; in float32 if forward was."""
    use_device_of(next(gradient for gradient in gradients if gradient is not None))
    if is_half(node.input_dtype) and not node.any_dtype:
        return [None if gradient is None else widen(gradient) for gradient in gradients]
    return gradients


def converted(node: Any, index: int, result: Any, shape: tuple[int, ...], leaf: bool) -> Array:
    """What node.backward returned for an input: float32 as the gradient of a two-byte one, rounded;
    for all else an error that says what is wrong with it."""
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


def plain_matmul(
    a: Array, b: Array, out: Array | None, accumulate: bool, multiply: Callable[..., Array]
) -> Array:
    """matmul by `multiply(a, b)` or `multiply(a, b, out=out)`, which know float32 and float64."""
    if accumulate and out is None:
        raise ValueError("matmul: accumulate=True adds to `out`, but no `out` was given")
    dtype = a.dtype if out is None else out.dtype
    if not accumulate and out is not None and out.dtype == a.dtype and not is_half(a.dtype):
        return multiply(a, b, out=out)
    product = multiply(widen(a), widen(b)).astype(dtype, copy=False)
    if out is None:
        return product
    if out.shape != product.shape:
        raise ValueError(f"matmul: `out` is {out.shape}, the product {product.shape}")
    if accumulate:
        out += product
    else:
        out[...] = product
    return out
