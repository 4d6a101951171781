"""What one does with a model once it is there: files, predictions, features, its size.

The methods that hand over to a later room say where, and import it when they are called.
"""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, Unpack

import numpy as np

from ..engine.arrays import Array, to_numpy
from ..engine.checks import check_sizes
from ..engine.forms import form_of
from ..engine.grad_mode import no_grad
from ..engine.precision import as_dtype, is_floating, widen
from ..engine.tensor import Tensor
from ..nn import functional as F
from ..nn.layers import LayerNorm, Module, evaluating
from ..nn.loss_scale import scale_gradient
from ..nn.more_loss import softmax
from .inputs import check_shape, normalize
from .inspect import Listener
from .variants import Arguments, Changes, Sizes, check_config, expected_shapes, variant

if TYPE_CHECKING:
    from ..training.summary import Summary
    from .mixer import Mixer


class Trained:
    """The half of Mixer that training needs nothing of."""

    expected_shapes: Any = staticmethod(expected_shapes)  # whoever loads a file asks before

    if TYPE_CHECKING:  # what an editor is to know of `model(images)`, which calls `forward`

        def __call__(self, *images: Any) -> Tensor: ...

    @classmethod
    def from_name(cls, name: str, **changes: Unpack[Arguments]) -> Self:
        """A variant of the paper ("mixer_s32" ... "mixer_h14") with fresh weights; `changes` are
        arguments of Mixer, such as num_classes."""
        return cls(**variant(name, **changes))

    def predict_logits(self: Any, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> scores (N, K), computed without dropout, a batch at a time. A
        warning, once, if the images are floats that seem not to be normalised."""
        check_sizes(batch_size=batch_size)
        self.check_shape(images)
        if self.head is None:
            raise ValueError("this model has no head to predict with (num_classes=0)")
        if not (self.normalization.warned or isinstance(images, Tensor)):
            doubt = not_normalized(images[:batch_size], self.normalization)
            if doubt:
                self.normalization.warned = True
                warnings.warn(doubt, stacklevel=2)
        with no_grad(), evaluating():
            parts = [
                to_numpy(self(images[i : i + batch_size]).data)
                for i in range(0, len(images), batch_size)
            ]
        return np.concatenate(parts)

    def predict_proba(self: Any, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> class probabilities (N, K), computed without dropout."""
        return softmax(self.predict_logits(images, batch_size))

    def predict(self: Any, images: Any, batch_size: int = 256) -> np.ndarray:
        """images (N, H, W, in) -> the most probable class of each, int64 (N,)."""
        return self.predict_proba(images, batch_size).argmax(axis=1)

    def inspect(self: Any, images: Any) -> dict[str, Tensor]:
        """Everything that model(images) computes, by name, in this order; images come first:

            patches (B, S, P*P*in), tokens (B, S, C); of each block, "blocks.0.norm1" and so on:
            norm1 (B, S, C), token_mixing.hidden (B, D_S, C), token_mixing (what it adds),
            norm2, channel_mixing.hidden (B, S, D_C), channel_mixing, and "blocks.0", its output;
            norm (B, S, C), pooled (B, C), logits (B, K).

        A block or an MLP of one's own is one entry: what its forward returned. Tensors, whose
        gradients lead to `images` and to the Parameters, and which keep all that backward needs,
        also with checkpoint_blocks; within no_grad() they keep nothing. The plain modules run, and
        logits agree with the model's to rounding. Errors of forward.
        """
        return self._heard(images)

    def features(self: Any, images: Any, blocks: Any) -> list[Tensor]:
        """The outputs (B, S, C) of some blocks, counted from 0, or from -1 at the end."""
        count = len(self.blocks)
        for number in (blocks := list(blocks)):
            if not isinstance(number, (int, np.integer)) or number not in range(-count, count):
                raise IndexError(f"there is no block {number!r:.40}, of {count}")
        names = [f"blocks.{number % count}" for number in blocks]
        heard = self._heard(images, set(names))
        if missing := sorted(set(names) - set(heard)):
            raise ValueError(
                f"features: {', '.join(missing)} can't be listened to: no forward of it ran, or a "
                "method of the model was replaced by a function that calls the original's"
            )
        return [heard[name] for name in names]

    def _heard(self: Any, images: Any, blocks: set[str] | None = None) -> dict[str, Tensor]:
        """What all parts return, or these blocks alone: images first, and gradients of it not
        scaled (float16)."""
        heard: dict[str, Tensor] = {}
        scale = self.buffer.loss_scale[:1] if self.buffer.scaled else None

        def tell(name: str, x: Tensor) -> None:
            if blocks is None or name in blocks:
                if x.ndim == 3:  # of the trunk
                    x = (x if scale is None else scale_gradient(x, scale)).swapaxes(0, 1)
                heard[name] = x

        logits = Listener(tell, inside=blocks is None).run(self, images)
        if self.head is not None:
            tell("logits", logits)
        return heard

    def convert(self: Any, images: Any) -> Tensor:
        """A plain array as a Tensor of the model's dtype, on its device, checked and normalised."""
        array = self.check_shape(images)
        if isinstance(images, Tensor):
            return images
        half = self.activation_dtype == np.float16  # which ends at 65504
        return Tensor(normalize(array, self.normalization, self.dtype, self.device, half))

    def check_shape(self: Any, images: Any) -> Any:
        """The array of `images`; ValueError unless it is (B, H, W, in_channels) with B > 0."""
        return check_shape(images, self.size)

    @property
    def mean(self: Any) -> np.ndarray:
        return self.normalization.mean

    @property
    def std(self: Any) -> np.ndarray:
        return self.normalization.std

    # ---- handed over to other rooms -------------------------------------------------------------

    @classmethod
    def load(cls: Any, path: str | Path, norm: Callable[[int], Module] = LayerNorm) -> "Mixer":
        """The model in a checkpoint, in eval mode, on the CPU. ValueError if it can't be read.
        `norm`: the class again, if the model was made with one.

        "digits" is a model that comes with the package: a run like README's first, on MNIST, with
        99.1% of its test images right. A file of that name goes first; Path("digits") is a file.
        """
        from ..training.checkpoint import load_model

        return load_model(path, cls, **({} if norm is LayerNorm else {"norm": norm}))

    def save(self: Any, path: str | Path) -> None:
        """Write the model, without an optimizer, to a checkpoint: checkpoint.save_checkpoint."""
        from ..training.checkpoint import save_checkpoint

        save_checkpoint(path, self)

    @classmethod
    def from_pretrained(cls: Any, path: str | Path, **changes: Unpack[Changes]) -> "Mixer":
        """The model in a file of the authors', of timm's or of our own: weights/pretrained.py."""
        from ..weights.pretrained import load_pretrained

        return load_pretrained(path, **changes)

    def export(self: Any, path: str | Path, format: str) -> None:
        """Write the weights as the authors' "npz" or as "timm"'s: weights/pretrained.py."""
        from ..weights.pretrained import export

        export(self, path, format)

    def resize(self: Any, image_size: int | tuple[int, int]) -> "Mixer":
        """A new model for larger images: weights/higher_resolution.py."""
        from ..weights.higher_resolution import resize

        return resize(self, image_size)

    def summary(self: Any, batch_size: int = 1) -> "Summary":
        """A table of every layer's output shape, parameters, multiplications and memory."""
        from ..training.summary import Summary

        check_sizes(batch_size=batch_size)
        kernels = "cpu" if self.device == "cpu" else "gpu"
        if form_of(F.LayerNorm, self.stem.weight.data) is None:
            kernels = "reference"
        return Summary(self.config, batch_size, self.activation_dtype.itemsize, kernels)

    @staticmethod
    def summary_of(
        name: str, batch_size: int = 1, precision: str = "float32", on_gpu: bool = False,
        **changes: Unpack[Sizes],
    ) -> "Summary":  # fmt: skip
        """What `summary` says, from the sizes alone: no weights are made. `on_gpu`: of a GPU."""
        from ..training.summary import Summary

        check_sizes(batch_size=batch_size)
        itemsize = as_dtype("float32" if precision == "tf32" else precision).itemsize
        kernels = "gpu" if on_gpu else "cpu" if form_of(F.LayerNorm, np.empty(0)) else "reference"
        return Summary(check_config(**variant(name, **changes)), batch_size, itemsize, kernels)


def not_normalized(images: Array, normalization: Any) -> str | None:
    """Why these floats, taken as they are, are hardly what the model was trained on; or None.

    Normalised images of mean > 0 have numbers below 0, and none far from 0 beside the largest that
    a pixel can give.
    """
    if not is_floating(images.dtype):
        return None
    low, high = (float(widen(f)) for f in (images.min(), images.max()))
    mean, std = normalization.mean, normalization.std
    darkest, brightest = float((-mean / std).min()), float(((1 - mean) / std).max())
    in_unit = 0 <= low < high <= 1 and darkest < -0.1
    above = low >= 0 and max(1.5, 2 * brightest) < high
    far = max(-low, high) > 10 * max(1, -darkest, brightest)
    if not (in_unit or above or far) or not np.isfinite([low, high]).all():
        return None
    return (
        f"predict: floats from {low:.3g} to {high:.3g} are taken as normalised already, where this "
        f"model's lie between {darkest:.3g} and {brightest:.3g}; pass uint8 images, or "
        f"(x / 255 - mean) / std. If it was trained on such numbers, call set_normalization(0, 1)"
    )
