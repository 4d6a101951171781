"""What a model is given: plain arrays of images, checked, normalised and brought to where it is.

>>> import numpy as np
>>> from minimixer.model.inputs import check_shape
>>> check_shape(np.zeros((2, 28, 28)), (28, 28, 1))
Traceback (most recent call last):
ValueError: Mixer: images must be an array (B, 28, 28, 1), got (2, 28, 28)
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array, is_array, namespace, native, to_device
from ..engine.precision import is_floating, is_half, wide, widen
from ..engine.tensor import Tensor


def as_activations(
    images: Any, size: tuple[int, int, int], normalization: Any, dtype: np.dtype, device: str
) -> Tensor:
    """Images (B, *size), an array or a Tensor, as a Tensor of `dtype`, the activations'. Errors of
    check_shape and normalize, which only arrays go through."""
    array = check_shape(images, size)
    if not isinstance(images, Tensor):
        half = dtype == np.float16  # which ends at 65504
        images = Tensor(normalize(array, normalization, wide(dtype), device, half))
    return images.to(dtype) if is_half(dtype) else images


def check_shape(images: Any, expected: tuple[int, int, int]) -> Array:
    """The array of `images`; ValueError unless it is (B, *expected) with B > 0."""
    array = images.data if isinstance(images, Tensor) else images
    if not is_array(array) or array.ndim != 4 or array.shape[1:] != expected:
        raise ValueError(
            f"Mixer: images must be an array (B, {', '.join(map(str, expected))}), got "
            f"{array.shape if is_array(array) else type(array).__name__}"
        )
    if len(array) == 0:
        raise ValueError(f"Mixer: the batch is empty: {array.shape}")
    return array


def check_finite(images: Array, dtype: np.dtype) -> Array:
    """The images in `dtype`; ValueError if one of their numbers is not finite there."""
    with np.errstate(over="ignore"):  # the next line says it better
        images = images.astype(dtype, copy=False)
    if not bool(namespace(images).isfinite(widen(images)).all()):
        raise ValueError(f"Mixer: the images, as {dtype}, contain NaN or infinity")
    return images


def normalize(
    images: Array, normalization: Any, dtype: np.dtype, device: str, half: bool = False
) -> Array:
    """Images (B, H, W, channels) as an array of `dtype` on `device`, uint8 ones by the model's
    Normalization (images.py). ValueError: NaN or infinity, as float16 with `half`; TypeError:
    neither uint8 nor floating-point."""
    images = to_device(native(images), device)
    if images.dtype == np.uint8:
        return normalization.apply(images, dtype, device)
    if is_floating(images.dtype):
        return check_finite(images, np.dtype(np.float16) if half else dtype)
    raise TypeError(f"Mixer: images must be uint8, or floats of 2 to 8 bytes, not {images.dtype}")


def scaling(mean: np.ndarray, std: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scale, offset), with which x scale + offset is (x / 255 - mean) / std."""
    return 1 / (255 * std), -mean / std


def check_scaling(mean: np.ndarray, std: np.ndarray, given: str) -> None:
    """ValueError unless (x / 255 - mean) / std is usable for x from 0 to 255, and tells 0 from 1,
    in float32, the coarsest dtype of a model. `given`: how they are called in the message."""
    with np.errstate(over="ignore", under="ignore", invalid="ignore"):
        scale, offset = (f.astype(np.float32) for f in scaling(mean, std))
        black, dark, white = offset, scale + offset, 255 * scale + offset
        apart = dark - black > 1e-18  # LayerNorm squares what is made of them
        usable = (apart & (abs(black) < 1e18) & (abs(white) < 1e18)).all()
    if not usable:
        raise ValueError(f"(x / 255 - mean) / std can't be had in float32 for {given}")
