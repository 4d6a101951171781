"""The loss, softmax, the optimizer's update, random draws, shifts and patches, on CUDA kernels."""

import contextlib
from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace, one, to_device, use_device_of
from ...engine.precision import is_floating, is_half, wide
from ...engine.random import Purpose
from ...engine.tensor import Tensor
from ...model.images import Normalization
from ...model.inputs import check_finite, check_shape
from ...nn.draws import RandomCounter
from ...nn.loss import CrossEntropy
from ...nn.loss_scale import FINITE, adjust_scale
from ...nn.more_loss import Softmax
from ...training.optim import Adam, AdamW
from ..node import Fast
from .cuda import C_NAMES, c_name, ceil_div, get, multiprocessors, pack, pointer, type_of, usable
from .side import fork, join
from .sums import can_sum, sum_columns

# ---- the loss -----------------------------------------------------------------------------------


class FastCrossEntropy(Fast, CrossEntropy):
    """Losses and gradient of a row of scores in one kernel. A label out of range makes it NaN."""

    def suits(self, z: Array, target: Array, smoothing: float, reduction: str) -> bool:
        dtype = wide(z.dtype)  # in which it will be given
        return usable("cross_entropy.cu", f"cross_entropy<{c_name(dtype)}>") and can_sum(dtype)

    def forward(self, z: Array, target: Array, smoothing: float, reduction: str) -> Array:
        xp = namespace(z)
        batch, classes = z.shape
        z = xp.ascontiguousarray(z)
        labels, targets = target, None
        if target.ndim == 2:
            labels, targets = None, xp.ascontiguousarray(target)
        else:
            labels = xp.ascontiguousarray(labels, dtype=np.int64)
        scale = 1 / batch if reduction == "mean" else 1.0
        losses = xp.empty(batch, dtype=z.dtype)
        self.dz: Array = xp.empty_like(z) if self.needs[0] else None
        kernel = get("cross_entropy.cu", f"cross_entropy<{type_of(z)}>")
        kernel((batch,), (min(1024, 32 * ceil_div(classes, 32)),), (
            z, pointer(labels), pointer(targets), float(smoothing), scale, np.int32(classes),
            losses, pointer(self.dz),
        ))  # fmt: skip
        if reduction == "none":
            return losses
        return sum_columns(losses.reshape(1, -1), scale).reshape(())

    def backward(self, dloss: Array) -> Array:
        return self.dz if dloss is one(dloss) else self.dz * dloss[..., None]


class Correct:
    """In one kernel, if that pays: one block does all."""

    MOST = 1 << 20  # logits

    @staticmethod
    def suits(logits: Array, labels: Array) -> bool:
        if namespace(logits) is np or namespace(labels) is np:
            return False
        rows = logits.ndim == 2 and labels.shape == logits.shape[:1] and labels.dtype.kind in "iu"
        if not rows or not is_floating(logits.dtype) or not 0 < logits.size <= Correct.MOST:
            return False
        use_device_of(logits)
        return usable("cross_entropy.cu", f"count_right<{type_of(logits)}>")

    @staticmethod
    def run(logits: Array, labels: Array) -> Array:
        xp, (rows, classes) = namespace(logits), logits.shape
        logits, labels = xp.ascontiguousarray(logits), xp.ascontiguousarray(labels, dtype=np.int64)
        right = xp.empty((), np.int64)
        kernel = get("cross_entropy.cu", f"count_right<{type_of(logits)}>")
        kernel((1,), (1024,), (logits, labels, rows, np.int32(classes), right))
        return right


class FastSoftmax(Fast, Softmax):
    """Along rows of up to 1,024 numbers, as attention's weights are: one pass there, one back."""

    def suits(self, z: Array, axis: int) -> bool:
        if not (z.size and axis in (-1, z.ndim - 1) and z.shape[-1] <= 1024):
            return False
        return usable("softmax.cu", self.name("softmax", z), self.name("softmax_backward", z))

    @staticmethod
    def name(what: str, z: Array) -> str:
        return f"{what}<{type_of(z)},{1 << (ceil_div(z.shape[-1], 32) - 1).bit_length()}>"

    def forward(self, z: Array, axis: int) -> Array:
        z = namespace(z).ascontiguousarray(z)
        p = self.by_rows("softmax", z)
        self.p: Array = p if self.needs[0] else None
        return p

    def backward(self, dp: Array) -> Array:
        return self.by_rows("softmax_backward", namespace(dp).ascontiguousarray(dp), self.p)

    def by_rows(self, what: str, *arrays: Array) -> Array:
        out, length = namespace(arrays[0]).empty_like(arrays[0]), arrays[0].shape[-1]
        rows = out.size // length
        kernel = get("softmax.cu", self.name(what, out))
        kernel((ceil_div(rows, 4),), (128,), (*arrays, rows, np.int32(length), out))
        return out


# ---- the optimizer ------------------------------------------------------------------------------


class AdamWRanges:
    """AdamW.update over all ranges, and the low-precision copy, in one kernel each."""

    @staticmethod
    def suits(optimizer: Any, ranges: list[Any]) -> bool:
        on_gpu = namespace(optimizer.buffer.values) is not np
        plain = type(optimizer) in (AdamW, Adam) and "update" not in vars(optimizer)
        return on_gpu and plain and usable("adamw.cu", _name(optimizer))

    @staticmethod
    def run(optimizer: Any, ranges: list[Any]) -> None:
        _adamw(optimizer, ranges)


class AdamWIfFinite(AdamWRanges):
    """update_if_finite: the kernel looks itself, and changes nothing otherwise."""

    @staticmethod
    def run(optimizer: Any, ranges: list[Any]) -> None:
        norm, control = optimizer.gradient_norm(), optimizer.control
        control[FINITE] = namespace(norm).isfinite(norm)
        _adamw(optimizer, ranges)
        adjust_scale(optimizer.buffer.loss_scale, control[FINITE : FINITE + 1])


def _name(optimizer: Any) -> str:
    buffer = optimizer.buffer
    low_dtype = (buffer.values if buffer.low is None else buffer.low).dtype
    width = pack(64, buffer.dtype, buffer.values)  # ranges begin and end at multiples of 64
    return f"adamw<{type_of(buffer.values)},{c_name(low_dtype)},{width}>"


def _adamw(optimizer: Any, ranges: list[Any]) -> None:
    buffer = optimizer.buffer
    width = pack(64, buffer.dtype, buffer.values)
    kernel = get("adamw.cu", _name(optimizer))
    blocks = 16 * multiprocessors(buffer.values.device.id)
    beside = namespace(buffer.values).cuda.get_current_stream().is_capturing()
    for number, (start, stop, lr, decay) in reversed([*enumerate(ranges)]):  # the main line's last
        w, g, m, v, low = (
            0 if array is None else array[start:stop]
            for array in (buffer.values, buffer.gradients, *optimizer.state.values(), buffer.low)
        )
        with fork() if beside and number else contextlib.nullcontext():
            kernel((min(ceil_div(stop - start, 256 * width), blocks),), (256,), (
                w, g, m, v, low, stop - start, optimizer.control, lr, decay, *optimizer.betas,
                optimizer.eps,
            ))  # fmt: skip
    join()


class CountStep:
    """In one kernel."""

    @staticmethod
    def suits(control: Array, counters: Array) -> bool:
        return namespace(control) is not np and usable("adamw.cu", "count_step")

    @staticmethod
    def run(control: Array, counters: Array) -> None:
        get("adamw.cu", "count_step")((1,), (1,), (control, counters))


# ---- random draws -------------------------------------------------------------------------------


class Keep:
    """RandomCounter.keep in one kernel."""

    @staticmethod
    def suits(
        random: RandomCounter, x: Any, p: float, purpose: Purpose, layer: int,
        shape: tuple[int, int],
    ) -> bool:  # fmt: skip
        plain = type(random) is RandomCounter and vars(random).keys() == {"seed", "counters"}
        on_gpu = namespace(x.data) is not np and namespace(random.counters) is not np
        if not (plain and on_gpu and 0 not in shape):
            return False
        use_device_of(random.counters)
        return usable("keep.cu", f"keep<{c_name(x.dtype)}>")

    @staticmethod
    def run(
        random: RandomCounter, x: Any, p: float, purpose: Purpose, layer: int,
        shape: tuple[int, int],
    ) -> Array:  # fmt: skip
        factors = namespace(random.counters).empty(shape, x.dtype)
        numbers = map(np.uint64, (random.seed, purpose, layer))
        get("keep.cu", f"keep<{type_of(factors)}>")((ceil_div(factors.size, 256),), (256,), (
            random.counters, *numbers, float(p), shape[1], factors.size, factors,
        ))  # fmt: skip
        return factors


# ---- images -------------------------------------------------------------------------------------


class Shifted:
    """In one kernel."""

    @staticmethod
    def suits(images: Array, shifts: Array) -> bool:
        if namespace(images) is np or not images.size or images.itemsize not in _WORDS:
            return False
        return usable("shift.cu", _shift_name(images))

    @staticmethod
    def run(images: Array, shifts: Array) -> Array:
        xp = namespace(images)
        images, shifts = xp.ascontiguousarray(images), xp.ascontiguousarray(shifts)
        moved, sizes = xp.empty_like(images), map(np.int32, images.shape[1:])
        kernel, blocks = get("shift.cu", _shift_name(images)), ceil_div(images.size, 256)
        kernel((blocks,), (256,), (images, shifts, moved, images.size, *sizes))
        return moved


_WORDS = {1: "unsigned char", 2: "short", 4: "int", 8: "long long"}  # to copy numbers with


def _shift_name(images: Array) -> str:
    return f"shift<{_WORDS[images.itemsize]}>"


class Tokens:
    """Of plain images, in one kernel; their values are checked if they come from the CPU."""

    @staticmethod
    def suits(
        images: Any, size: tuple[int, int, int], normalization: Normalization, patch: int,
        dtype: np.dtype, device: str,
    ) -> bool:  # fmt: skip
        first = f"cut_patches<unsigned char,{c_name(dtype)},1>"
        return device != "cpu" and not isinstance(images, Tensor) and usable("patches.cu", first)

    @staticmethod
    def run(
        images: Any, size: tuple[int, int, int], normalization: Normalization, patch: int,
        dtype: np.dtype, device: str,
    ) -> Tensor:  # fmt: skip
        images = check_shape(images, size)
        return Tensor(_cut(_on_gpu(images, dtype, device), normalization, patch, dtype, device))


def _on_gpu(images: Array, dtype: np.dtype, device: str) -> Array:
    if images.dtype.name not in C_NAMES:
        raise TypeError(
            f"Mixer: images must be uint8, or floats of 2 to 8 bytes, not {images.dtype}"
        )
    if images.dtype != np.uint8 and not (is_half(images.dtype) and namespace(images) is not np):
        if namespace(images) is np:
            images = check_finite(images, dtype if dtype == np.float16 else wide(dtype))
        else:
            images = images.astype(wide(dtype), copy=False)
    images = to_device(images, device)
    return namespace(images).ascontiguousarray(images)


def _cut(
    images: Array, normalization: Normalization, patch: int, dtype: np.dtype, device: str
) -> Array:
    batch, height, width, channels = images.shape
    tokens = (height // patch) * (width // patch)
    out = namespace(images).empty((tokens, batch, patch * patch * channels), dtype=dtype)
    scale = offset = None
    if images.dtype == np.uint8:
        scale, offset = normalization.factors(wide(dtype), device)
    at_once = 16 // max(images.itemsize, out.itemsize)
    if (patch * channels) % at_once or images.data.ptr % 16 or out.data.ptr % 16:
        at_once = 1
    kernel = get("patches.cu", f"cut_patches<{type_of(images)},{type_of(out)},{at_once}>")
    blocks = min(ceil_div(out.size, 256 * at_once), 32 * multiprocessors(out.device.id))
    kernel((blocks,), (256,), (
        images, pointer(scale), pointer(offset), out, out.size,
        *map(np.int32, (batch, height, width, channels, patch)),
    ))  # fmt: skip
    return out
