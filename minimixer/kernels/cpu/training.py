"""AdamW and the gradients' norm again, for NumPy: in blocks, in place.

The loss has no fast form: softmax in blocks of rows took 1 to 27% longer than on whole arrays.
"""

import math
from typing import Any

import numpy as np

from ...engine.arrays import Array, namespace
from ...training.norms import gradient_norm
from ...training.optim import Adam, AdamW
from ...training.settings import CLIP, LR_FACTOR, STEP
from .blocks import BLOCK, parts
from .threads import blas_on_one_thread


class AdamWRanges:
    """AdamW.update over all ranges, in 13 passes over each block instead of 20: constants are
    multiplied beforehand, as Python's numbers."""

    @staticmethod
    def suits(optimizer: Any, ranges: list[Any]) -> bool:
        on_cpu = namespace(optimizer.buffer.values) is np
        plain = type(optimizer) in (AdamW, Adam) and "update" not in vars(optimizer)
        return on_cpu and plain

    @staticmethod
    def run(optimizer: Any, ranges: list[Any]) -> None:
        buffer = optimizer.buffer
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


class GradientNorm:
    """By block, added in float64. BLAS's own threads would be faster at this, and in the way of
    what comes next (threads.py). Squares that may have overflowed, or come too near to 0, as one
    look at the sum tells, are left to the plain code."""

    @staticmethod
    def suits(arrays: list[Array]) -> bool:
        return namespace(arrays[0]) is np

    @staticmethod
    def run(arrays: list[Array]) -> Array:
        dtype = arrays[0].dtype
        limits = np.finfo(dtype)
        totals = [_sum_squares(array) for array in arrays]
        if all(float(limits.tiny) ** 0.5 < t < float(limits.max) ** 0.5 for t in totals):
            return np.sqrt(sum(np.array(t).astype(dtype) for t in totals)).reshape(())
        return gradient_norm.plain(arrays)  # type: ignore[attr-defined]


def _sum_squares(array: Array) -> float:
    with blas_on_one_thread, np.errstate(over="ignore"):
        return float(
            np.sum([float(np.dot(array[part], array[part])) for part in parts(array.size, BLOCK)])
        )
