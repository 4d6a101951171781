"""The loss, the optimizer's update and the cutting of images into patches, on CUDA kernels."""

import contextlib
from typing import Any

import numpy as np

from ..backend import Array, is_half, namespace, one, to_device, wide
from ..images import check_finite
from ..loss import CrossEntropy
from ..mixer import Mixer
from .cuda import C_NAMES, c_name, ceil_div, get, multiprocessors, pack, pointer, type_of, usable
from .node import Fast
from .side import fork, join
from .sums import can_sum, sum_columns

# ---- the loss -----------------------------------------------------------------------------------


class FastCrossEntropy(Fast, CrossEntropy):
    """Losses and gradient of a row of scores in one kernel. A label out of range makes it NaN."""

    def suits(self, z, target, smoothing, reduction):
        dtype = wide(z.dtype)  # in which it will be given
        return usable("cross_entropy.cu", f"cross_entropy<{c_name(dtype)}>") and can_sum(dtype)

    def forward(self, z, target, smoothing, reduction):
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
        self.dz = xp.empty_like(z) if self.needs[0] else None
        kernel = get("cross_entropy.cu", f"cross_entropy<{type_of(z)}>")
        kernel((batch,), (min(1024, 32 * ceil_div(classes, 32)),), (
            z, pointer(labels), pointer(targets), float(smoothing), scale, np.int32(classes),
            losses, pointer(self.dz),
        ))  # fmt: skip
        if reduction == "none":
            return losses
        return sum_columns(losses.reshape(1, -1), scale).reshape(())

    def backward(self, dloss):
        return self.dz if dloss is one(dloss) else self.dz * dloss[..., None]


# ---- the optimizer ------------------------------------------------------------------------------


def adamw(optimizer: Any, ranges: list[Any]) -> bool:
    """AdamW.update over all ranges, and the low-precision copy, in one kernel each. False, and
    nothing done, if there is no kernel or the optimizer has an update of its own."""
    buffer = optimizer.buffer
    low_dtype = (buffer.values if buffer.low is None else buffer.low).dtype
    width = pack(
        64, buffer.dtype, buffer.values
    )  # ranges start and stop at multiples of 64 elements
    name = f"adamw<{type_of(buffer.values)},{c_name(low_dtype)},{width}>"
    if "update" in vars(optimizer) or not usable("adamw.cu", name):
        return False
    kernel = get("adamw.cu", name)
    blocks = 16 * multiprocessors(buffer.values.device.id)
    beside = namespace(buffer.values).cuda.get_current_stream().is_capturing()
    for number, (start, stop, lr, decay) in enumerate(ranges):
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
    return True


def count_step(control: Array, counters: Array) -> bool:
    """Optimizer._count_step in one kernel."""
    if not usable("adamw.cu", "count_step"):
        return False
    get("adamw.cu", "count_step")((1,), (1,), (control, counters))
    return True


# ---- images -------------------------------------------------------------------------------------


def patches(model: Any, images: Array, dtype: np.dtype) -> Array | None:
    """Mixer.patches of plain images, whose values are checked if they come from the CPU. None if
    there is no kernel, or the model converts them in its own way."""
    if type(model).convert is not Mixer.convert or "convert" in vars(model):
        return None
    if not usable("patches.cu", f"cut_patches<unsigned char,{c_name(dtype)},1>"):
        return None
    values = model.stem.weight.data
    xp = namespace(values)
    if images.dtype.name not in C_NAMES:
        raise TypeError(
            f"Mixer: images must be uint8, or floats of 2 to 8 bytes, not {images.dtype}"
        )
    if images.dtype != np.uint8 and not (is_half(images.dtype) and namespace(images) is not np):
        if namespace(images) is np:
            images = check_finite(images, dtype if dtype == np.float16 else values.dtype)
        else:
            images = images.astype(values.dtype, copy=False)
    images = xp.ascontiguousarray(to_device(images, model.device))
    batch, height, width, channels = images.shape
    patch = model.patch_size
    tokens = (height // patch) * (width // patch)
    out = xp.empty((tokens, batch, patch * patch * channels), dtype=dtype)
    scale = offset = None
    if images.dtype == np.uint8:
        scale, offset = model.normalization.factors(wide(dtype), model.device)
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
