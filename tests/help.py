"""What many tests begin with: numbers, Tensors of them, and whether two results are the same."""

import contextlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from strategies import reference_functions

from minimixer import Function, Mixer, Module, Tensor
from minimixer.backend import is_array, to_device, to_numpy

DTYPES = ["float32", "float64"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
by_kernels_and_plainly = pytest.mark.parametrize("kind", ["kernels", "reference"])


def functions(kind: str) -> contextlib.AbstractContextManager[None]:
    """The fast forms where there are any ("kernels"), or the plain code ("reference")."""
    return reference_functions() if kind == "reference" else contextlib.nullcontext()


def draw(shape, seed=0, dtype="float32", low=-1.0, high=1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).uniform(low, high, shape).astype(dtype)


def put(device: str, values: Any, dtype="float32") -> Any:
    return to_device(np.asarray(values, dtype=dtype), device)


def leaf(device: str, values: Any, dtype="float32") -> Tensor:
    return Tensor(put(device, values, dtype), requires_grad=True)


def host(values: Any) -> np.ndarray:
    return to_numpy(values) if is_array(values) else np.asarray(values)


def passing(backward: Callable[[Any], Any]) -> Callable[..., Any]:
    """An operation x -> x, whose gradient is what backward(dy) says."""

    class Passing(Function):
        def forward(self, x):
            return x * 1

        def backward(self, dy):
            return backward(dy)

    return Passing.apply


def raises(error: Exception) -> Any:
    raise error


def same(array: Any, expected: Any) -> None:
    """Equal bits (or equal numbers, where the expected ones are written out)."""
    np.testing.assert_array_equal(to_numpy(array), host(expected))


def close(array: Any, expected: Any, rtol=1e-5, atol=1e-6) -> None:
    np.testing.assert_allclose(to_numpy(array), host(expected), rtol=rtol, atol=atol)


def same_state(model: Module, state: dict[str, np.ndarray]) -> None:
    for name, value in model.state_dict().items():
        np.testing.assert_array_equal(value, state[name], err_msg=name)


def changed(model: Module, before: dict[str, np.ndarray]) -> set[str]:
    """The names of the Parameters that are no longer what they were."""
    return {name for name, value in model.state_dict().items() if (value != before[name]).any()}


def small_mixer(device="cpu", **changes):
    sizes = dict(image_size=8, patch_size=4, in_channels=1, num_classes=3, num_blocks=2,
                 hidden_dim=8, tokens_mlp_dim=6, channels_mlp_dim=10)  # fmt: skip
    return Mixer(**{**sizes, **changes}).to(device)


def redraw(model, seed=0):
    """Every parameter at random, the zero head included."""
    for number, parameter in enumerate(model.parameters()):
        parameter.data = draw(parameter.shape, seed + number, low=-0.5, high=0.5)
    return model
