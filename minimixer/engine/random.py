"""Random numbers without a state: each is one integer hash of what it is for.

They are not drawn from a hidden generator that steps forward. So any of them can be computed again,
on any device, in any order:

>>> import numpy as np
>>> from minimixer.engine.random import Purpose, random_bits
>>> [hex(b) for b in random_bits(7, Purpose.DROPOUT, 3, 0, 0, np.arange(2))]
['0x1673302a9d842364', '0x3c16016e89a9b92']
"""

import functools
import sys
from enum import IntEnum
from typing import Any

import numpy as np

from .arrays import Array, is_array, namespace


class Purpose(IntEnum):
    """What a random number is for: the same counters under two purposes are unrelated."""

    WEIGHTS = 1
    SHUFFLE = 2
    SHIFT = 3
    DROPOUT = 4  # this and the next: of layers, nn/
    STOCHASTIC_DEPTH = 5


# The last step of SplitMix64 (Steele, Lea, Flood 2014, "Fast splittable pseudorandom number
# generators"): every input bit flips each output bit with probability one half.
_GOLDEN, _MULTIPLY_1, _MULTIPLY_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_CUDA_FOLD = f"""
__device__ unsigned long long fold(unsigned long long bits, unsigned long long field) {{
    bits = (bits ^ field) + {_GOLDEN:#x}ULL;
    bits = (bits ^ (bits >> 30)) * {_MULTIPLY_1:#x}ULL;
    bits = (bits ^ (bits >> 27)) * {_MULTIPLY_2:#x}ULL;
    return bits ^ (bits >> 31);
}}
"""


def _fold(bits: np.ndarray, field: Array) -> np.ndarray:
    """Mix one more counter into the hash; uint64 arithmetic wraps around as intended."""
    bits = (bits ^ field) + np.uint64(_GOLDEN)
    bits ^= bits >> np.uint64(30)
    bits *= np.uint64(_MULTIPLY_1)
    bits ^= bits >> np.uint64(27)
    bits *= np.uint64(_MULTIPLY_2)
    bits ^= bits >> np.uint64(31)
    return bits


@functools.cache
def _cuda_random_bits() -> Any:
    fields = ("seed", "purpose", "step", "layer", "example", "element")
    code = "bits = 0;" + "".join(f"bits = fold(bits, {field});" for field in fields)
    return sys.modules["cupy"].ElementwiseKernel(
        ", ".join(f"uint64 {field}" for field in fields),
        "uint64 bits",
        code,
        "minimixer_random_bits",
        preamble=_CUDA_FOLD,
    )


def random_bits(
    seed: int, purpose: int, step: Array, layer: int, example: Array, element: Array
) -> Array:
    """64 random bits for each element: uint64, of the shape that the arguments broadcast to.

    A pure function of its six counters (integers below 2^64, or arrays of such): no state, the
    same bits on CPU and GPU. It runs where its array arguments are; `step` may be an array of
    one element on the device.
    """
    counters = (seed, int(purpose), step, layer, example, element)
    if any(is_array(c) and namespace(c) is not np for c in counters):
        return _cuda_random_bits()(*counters)
    bits = np.zeros((), dtype=np.uint64)[None]  # 1-d: NumPy warns when a uint64 scalar wraps
    for counter in counters:
        bits = _fold(bits, np.asarray(counter).astype(np.uint64))
    return bits if any(np.ndim(c) for c in counters) else bits[0]


def uniform(bits: Array, dtype: Any) -> Array:
    """uint64 random bits -> numbers in [0, 1), as fine as `dtype` resolves near 1."""
    digits = 24 if np.dtype(dtype) == np.float32 else 53
    return (bits >> np.uint64(64 - digits)).astype(dtype) * 2.0**-digits
