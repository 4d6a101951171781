"""From images to tokens: checked, normalised, cut into patches.

An image of H x W pixels becomes S = (H / P) (W / P) patches of P x P pixels, each flattened to one
row of numbers, a token, in (row, column, channel) order. Images of whole numbers (uint8, 0 to 255)
are brought to about -1 ... 1 first: (x / 255 - mean) / std for each channel.

>>> import numpy as np
>>> from minimixer import Tensor
>>> from minimixer.model.images import cut_patches
>>> picture = Tensor(np.arange(16, dtype="float32").reshape(1, 4, 4, 1))
>>> cut_patches(picture, 2).shape            # (S, B, P P channels)
(4, 1, 4)
>>> cut_patches(picture, 2).data[1, 0]       # the second patch: top right
array([2., 3., 6., 7.], dtype=float32)

Now you can do Task 4. Next: `block.py`, the Mixer block.
"""

from typing import Any

import numpy as np

from ..engine.arrays import Array, to_device
from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..engine.tensor import Tensor
from .inputs import as_activations, check_scaling, scaling  # images checked, and normalised


class Normalization:
    """How uint8 images are scaled: mean and std, each a number or one for each channel. ValueError
    unless they are, mean finite and std positive."""

    warned = False  # that images seem not to be normalised (trained.py): once is enough

    def __init__(self, mean: Any, std: Any, channels: int):
        try:
            self.mean: np.ndarray = np.broadcast_to(np.asarray(mean, float), (channels,)).copy()
            self.std: np.ndarray = np.broadcast_to(np.asarray(std, float), (channels,)).copy()
        except (ValueError, TypeError):
            raise ValueError(f"mean and std must be numbers, or {channels} of them") from None
        if not (np.isfinite([self.mean, self.std]).all() and (self.std > 0).all()):
            raise ValueError(f"mean must be finite and std positive, got {mean} and {std}")
        check_scaling(self.mean, self.std, f"mean {mean} and std {std}")
        self._factors: dict[tuple[str, str], tuple[Array, Array]] = {}

    def factors(self, dtype: np.dtype, device: str) -> tuple[Array, Array]:
        """(scale, offset), with which x scale + offset is the normalised x; made once for each
        device, since a copy to a GPU takes longer than their use there."""
        key = (dtype.name, device)
        if key not in self._factors:
            scale, offset = (
                to_device(f.astype(dtype), device) for f in scaling(self.mean, self.std)
            )
            self._factors[key] = scale, offset
        return self._factors[key]

    def apply(self, images: Array, dtype: np.dtype, device: str) -> Array:
        """uint8 images on `device` -> (x / 255 - mean) / std, of `dtype`."""
        scale, offset = self.factors(dtype, device)
        images = images.astype(dtype)
        images *= scale
        images += offset
        return images

    def __repr__(self) -> str:
        return f"Normalization(mean={self.mean.tolist()}, std={self.std.tolist()})"

    def __getstate__(self) -> dict[str, Any]:  # for copies: they may go to another device
        return {"mean": self.mean, "std": self.std, "_factors": {}}


def cut_patches(x: Tensor, patch: int) -> Tensor:
    """x (B, H, W, channels) -> (S, B, patch * patch * channels): tokens in reading order.
    ValueError if `patch` does not divide both H and W."""
    batch, height, width, channels = x.shape
    if patch < 1 or height % patch or width % patch:
        raise ValueError(f"images of {height} x {width} have no patches of {patch} x {patch}")
    rows, columns = height // patch, width // patch
    x = x.reshape(batch, rows, patch, columns, patch, channels)
    x = x.transpose(1, 3, 0, 2, 4, 5)  # (rows, columns, B, P, P, channels)
    return x.reshape(rows * columns, batch, patch * patch * channels)


@replaceable
def to_tokens(
    images: Any, size: tuple[int, int, int], normalization: Normalization, patch: int,
    dtype: np.dtype, device: str,
) -> Tensor:  # fmt: skip
    """Images (B, *size) -> tokens (S, B, patch * patch * channels) of `dtype` on `device`. Arrays
    are checked and normalised, a Tensor is taken as it is. Errors of as_activations."""
    return cut_patches(as_activations(images, size, normalization, dtype, device), patch)
