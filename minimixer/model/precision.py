"""How a model stores what flows between the images and the pooled features: in four bytes, or two.

>>> from minimixer import Mixer
>>> model = Mixer(28, 7, 1, 16, 8, 32, in_channels=1, num_classes=10).set_precision("float16")
>>> model.activation_dtype, model.dtype
(dtype('float16'), dtype('float32'))
"""

import functools
from typing import Any

import numpy as np

from ..engine.around import Called
from ..engine.arrays import device_of, use_device_of
from ..engine.precision import check_precision, is_half
from ..engine.tensor import Tensor
from ..nn.buffer import ParameterBuffer
from ..nn.draws import RandomCounter
from ..nn.loss_scale import scale_gradient
from ..nn.more_module import Model

FIRST_SCALE = 2.0**16  # of float16's gradients: too much, if anything; the optimizer lowers it


def in_precision(method: Called) -> Called:
    """A method of a model that takes images and gives features, with what two-byte activations need
    around it: float16's gradients are scaled on their way in, and back where they leave at the
    images, as at the Parameters (loss_scale.py)."""

    @functools.wraps(method)
    def run(model: Any, images: Any, *more: Any, **options: Any) -> Any:
        if not model.buffer.scaled:
            return method(model, images, *more, **options)
        scale = model.buffer.loss_scale[:1]
        if isinstance(images, Tensor) and images.requires_grad:
            images = scale_gradient(images, 1 / scale)
        return scale_gradient(method(model, images, *more, **options), scale)

    return run  # type: ignore[return-value]


def advised(method: Called) -> Called:
    """A method of a model that takes images, which says what to lower if memory runs out."""

    @functools.wraps(method)
    def run(model: Any, images: Any, *more: Any, **options: Any) -> Any:
        try:
            return method(model, images, *more, **options)
        except MemoryError as error:
            raise MemoryError(
                f"Mixer: {images.shape} images in {model.precision} need more memory than "
                f"{model.device} has; take fewer at a time, a smaller model, two-byte precision "
                f"or, in training, checkpoint_blocks=True ({error})"
            ) from None

    return run  # type: ignore[return-value]


class Precision:
    """What a Mixer has of it, and where its numbers lie."""

    @property
    def dtype(self: Any) -> np.dtype:
        return self.stem.weight.dtype

    @property
    def device(self: Any) -> str:
        return self.stem.weight.device

    @property
    def buffer(self: Any) -> ParameterBuffer:
        """Where the Parameters lie, once `parameters()` has gathered them."""
        return self.stem.weight.buffer

    @property
    def random(self: Any) -> RandomCounter:
        """What random draws in training depend on: seed and step."""
        return self.buffer.random

    def set_precision(self: Model, precision: str) -> Model:
        """How activations are stored and multiplied between the images and the pooled features.

        "float32" (of a float64 model: float64); "tf32": products with short mantissas; "bfloat16",
        "float16": activations in two bytes. Weights, their gradients, LayerNorm's statistics, the
        head and the loss stay float32 in all; float16's loss scale starts anew. ValueError if this
        machine lacks it or the model is float64; what depends on the device is checked again when
        the model is used, since it may move. A checkpoint does not record the precision.
        """
        if precision != "tf32" or self.device != "cpu":  # from where it may yet move to a GPU
            self._dtype_in(precision)
        self.parameters()  # gathers them, as after a deep copy
        buffer = self.buffer
        use_device_of(buffer.values)
        self.precision = precision
        buffer.low = None
        buffer.precision = "tf32" if precision == "tf32" else None
        buffer.scaled = precision == "float16"
        buffer.loss_scale[0] = FIRST_SCALE if buffer.scaled else 1.0
        buffer.loss_scale[1] = 0.0
        return self

    @property
    def activation_dtype(self: Any) -> np.dtype:
        """What activations are stored in; ValueError if the precision can't be had here."""
        return self._dtype_in(self.precision)

    def _dtype_in(self: Any, precision: str) -> np.dtype:
        values = self.buffer.values
        if precision == "float32":
            return values.dtype
        dtype = check_precision(precision, device_of(values))
        if values.dtype != np.float32:
            raise ValueError(
                f"precision {precision} is for float32 models, this one is {values.dtype}: "
                "use set_precision('float32') or .to('float32')"
            )
        return dtype if is_half(dtype) else values.dtype
