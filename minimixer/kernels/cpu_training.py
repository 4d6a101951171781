"""The loss, AdamW and the gradients' norm again, for NumPy: in blocks, in place."""

import math
from typing import Any

import numpy as np

from ..backend import Array
from ..loss import CrossEntropy
from ..optim import CLIP, LR_FACTOR, STEP
from .blocks import BLOCK, parts
from .threads import blas_on_one_thread


class FastCrossEntropy(CrossEntropy):
    """In blocks of rows."""

    def rows(self, z, target, smoothing):
        if z.size <= BLOCK:
            return super().rows(z, target, smoothing)
        loss = np.empty(len(z), dtype=z.dtype)
        dz = np.empty_like(z) if self.needs[0] else None
        for part in parts(len(z), max(1, BLOCK // z.shape[1])):
            loss[part], dz_part = super().rows(z[part], target[part], smoothing)
            if dz is not None:
                dz[part] = dz_part
        return loss, dz


def adamw(optimizer: Any, ranges: list[Any]) -> bool:
    """AdamW.update over all ranges, in 13 passes over a block instead of 16. False, and nothing
    done, for gradients that come from float16: those may be not finite."""
    buffer = optimizer.buffer
    if optimizer.scaled:
        return False
    b1, b2 = optimizer.betas
    factor, step, clip = (float(optimizer.control[i]) for i in (LR_FACTOR, STEP, CLIP))
    corrected = math.sqrt(1 - b2 ** (step + 1))  # m' / (sqrt v' + eps) with both corrections
    rate = factor * corrected / (1 - b1 ** (step + 1))  # is rate m / (sqrt v + eps corrected)
    moments = optimizer.state.values()
    scratch = np.empty(BLOCK, dtype=buffer.dtype)
    for start, stop, lr, decay in ranges:
        for begin in range(start, stop, BLOCK):
            place = slice(begin, min(begin + BLOCK, stop))
            w, g, m, v = (a[place] for a in (buffer.values, buffer.gradients, *moments))
            change = scratch[: len(w)]
            np.multiply(g, clip * (1 - b1), out=change)
            m *= b1
            m += change
            np.multiply(g, clip * math.sqrt(1 - b2), out=change)
            change *= change
            v *= b2
            v += change
            np.sqrt(v, out=change)
            change += optimizer.eps * corrected
            np.divide(m, change, out=change)
            change *= lr * rate
            if decay:
                w *= 1 - lr * decay * factor
            w -= change
        buffer.refresh(start, stop)
    return True


def sum_squares(array: Array) -> Array:
    """(n,) -> (1, 1): partial sums by block, added in order, in float64."""
    with blas_on_one_thread:
        sums = [float(np.dot(array[part], array[part])) for part in parts(array.size, BLOCK)]
    return np.array([[math.fsum(sums)]]).astype(array.dtype)
