"""Initial weights: random, and of a size that keeps what passes through them at its size.

They are random, since hidden units of equal weights, in and out, get equal gradients and would
stay equal. And were each layer to double its numbers, or to halve them, ten layers would change
them a thousandfold.

>>> import numpy as np
>>> from minimixer.nn.initial import lecun_normal
>>> weight = lecun_normal((400, 50), fan_in=400, seed=0, layer=0)
>>> x = np.random.default_rng(0).standard_normal((200, 400))
>>> round(float((x @ weight).std()), 1)      # as x has it
1.0

Next: `layers.py`, Linear, LayerNorm and stochastic depth, as Modules.
"""

import math

import numpy as np

# random_bits: the same of the same arguments, a Purpose among them; uniform: bits as [0, 1).
from ..engine.random import Purpose, random_bits, uniform


def lecun_normal(
    shape: tuple[int, ...], fan_in: int, seed: int, layer: int, number: int = 0
) -> np.ndarray:
    """Initial weights, float32: normal of variance 1 / fan_in, cut off at two deviations: so a sum
    of `fan_in` terms has the variance of one input (LeCun et al. 1998). A standard normal cut off
    at 2 has deviation 0.8796; divided by that, it has 1 again. The paper's authors draw theirs so.
    `number` tells matrices of one layer apart."""
    size = math.prod(shape)
    values = np.empty(size, dtype=np.float32)
    block = 1 << 18  # at a time: what is on the way takes memory
    for start in range(0, size, block):
        elements = np.arange(start, min(start + block, size), dtype=np.uint64)
        drawn = values[start : start + block]
        todo = np.arange(len(elements))
        attempt = 0
        while todo.size:
            bits = random_bits(seed, Purpose.WEIGHTS, attempt, layer, number, elements[todo])
            # Box and Muller 1958: two uniform numbers make a normal one, as a radius (of the upper
            # bits; 1 - u is never 0) and an angle (of the lowest 24).
            radius = np.sqrt(-2 * np.log(1 - uniform(bits, np.float32)))
            angle = (bits & np.uint64(0xFFFFFF)).astype(np.float32) * np.float32(2**-23 * math.pi)
            drawn[todo] = radius * np.cos(angle)
            todo = todo[abs(drawn[todo]) > 2]
            attempt += 1
    values *= np.float32(1 / (0.87962566 * math.sqrt(fan_in)))
    return values.reshape(shape)
