"""What an operation is given, where that is not simply arrays of one kind.

Beside the arrays of Variables (autograd.py) there may be Python numbers, arrays of one number,
Parameters of another dtype than the activations that meet them, integers, or what does not fit at
all. Each is brought to one floating dtype on one device, or refused in a sentence that says what to
do. No mathematics needs to know of it. A Function says what it takes:

    takes_numbers   inputs may be Python numbers, or arrays without axes (0-d) beside a Tensor
    optional        the positions of inputs that may be None
    integers        what becomes of integers and booleans, which have no gradient: "", they are
                    refused; "kept", taken as they are; "float32", read as that
"""

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np

from .arrays import Array, describe, is_array, namespace, native, same_device
from .precision import FLOAT_DTYPES, is_half

if TYPE_CHECKING:
    from .tensor import Tensor

Result: TypeAlias = "Tensor"  # for annotations in what Tensor is made of
Operation = Callable[..., Result]  # of Tensors, arrays or numbers


def read_inputs(
    function: Any, inputs: Sequence[Any], values: Sequence[Any]
) -> tuple[list[Any], Any]:
    """The arrays of the inputs, checked: one floating dtype, one device; and the first of them.

    `values` are the inputs, and the arrays of those that are Variables. Activations, that is all
    that are not Parameters, must agree; Parameters are read as they are.
    """
    name = function.__name__
    arrays = list(values)
    parameters = False
    first = None  # the first activation: what the others must match
    for index, value in enumerate(values):
        if inputs[index] is not value:  # a Variable, whose array it is
            if inputs[index].is_parameter:
                parameters = True
                continue
        elif function.takes_numbers and isinstance(value, (bool, int, float, np.generic)):
            # NumPy's numbers would promote float32 arrays: make them plain ones
            arrays[index] = value.item() if isinstance(value, np.generic) else value
            continue
        elif value is None and index in function.optional:
            continue
        elif is_array(value):
            if value.ndim == 0 and function.takes_numbers and _is_a_number(value, inputs, values):
                arrays[index] = value.item()
                continue
            arrays[index] = value = value if value.dtype.isnative else native(value)
        else:
            raise _unexpected(function, index, value)
        if value.dtype not in FLOAT_DTYPES and not is_half(value.dtype):
            return _read_whole_numbers(function, inputs, values)
        if first is None:
            first = value
        else:
            _check_match(name, first, value)
    if parameters:
        for index, value in enumerate(inputs):
            if value is not values[index] and value.is_parameter:
                if first is None:
                    first = value.data
                arrays[index] = value.read(first.dtype)
                _check_match(name, first, arrays[index])
    elif first is None and arrays and arrays[0] is not None:  # numbers alone, as Tensor reads them
        arrays[0] = first = np.asarray(arrays[0], dtype=np.float32)
    return arrays, first


def _unexpected(function: Any, position: int, value: Any) -> TypeError:
    kinds = "a Tensor, an array or a number" if function.takes_numbers else "a Tensor"
    return TypeError(
        f"{function.__name__}: expected {kinds} as input {position}, got {value!r:.60}"
    )


def _is_a_number(array: Array, inputs: Sequence[Any], values: Sequence[Any]) -> bool:
    """A 0-d NumPy array beside a Tensor is no more than a Python number, which never promotes."""
    tensors = (given is not value for given, value in zip(inputs, values, strict=True))
    return namespace(array) is np and any(tensors)


def _read_whole_numbers(
    function: Any, inputs: Sequence[Any], values: Sequence[Any]
) -> tuple[list[Any], Any]:
    """As read_inputs, where integers or booleans are among them: alone, as `integers` says, or
    single numbers beside floats, `(losses * mask).sum() / mask.sum()`; else a TypeError."""
    for position, value in enumerate(values):
        left_out = value is None and position in function.optional
        if not (left_out or is_array(value) or isinstance(value, (bool, int, float, np.generic))):
            raise _unexpected(function, position, value)
    odd = [a for a in values if is_array(a) and a.dtype.kind in "iub"]
    kinds = {a.dtype.kind in "iub" for a in values if is_array(a)}
    if kinds == {True} and function.integers:
        for array in odd:
            if not same_device(array, odd[0]):
                _check_match(function.__name__, odd[0], array)
        values = [v.item() if isinstance(v, np.generic) else v for v in values]
        if function.integers == "float32" or any(isinstance(v, float) for v in values):
            values = [v.astype(np.float32) if is_array(v) else v for v in values]
        return values, next(v for v in values if is_array(v))
    single = function.takes_numbers and all(array.ndim == 0 for array in odd)
    if odd and len(kinds) == 2 and single:
        numbers = [a.item() if is_array(a) and a.dtype.kind in "iub" else None for a in values]
        return read_inputs(
            function,
            [v if n is None else n for v, n in zip(inputs, numbers, strict=True)],
            [v if n is None else n for v, n in zip(values, numbers, strict=True)],
        )
    met = next(
        a for a in values if is_array(a) and not (a.dtype in FLOAT_DTYPES or is_half(a.dtype))
    )
    raise TypeError(
        f"{function.__name__}: works on float32, float64 or two-byte floats, got {describe(met)}; "
        "convert it first, for example with .to('float32')"
    )


def _check_match(name: str, first: Array, other: Array) -> None:
    if first.dtype != other.dtype:
        problem = "different dtypes"
    elif not same_device(first, other):
        problem = "different devices"
    else:
        return
    raise TypeError(
        f"{name}: inputs of {problem}: {describe(first)} and {describe(other)}; "
        "bring them together with .to(...)"
    )


def explained(error: Exception, name: str, arrays: Sequence[Any]) -> Exception:
    """The error, with the operation's name and what it was given in front."""
    met = ", ".join(describe(a) if is_array(a) else f"{a!r:.60}" for a in arrays)
    kind = TypeError if isinstance(error, TypeError) else ValueError
    return kind(f"{name} of {met}: {error}")
