"""Random factors in training: what is dropped in this step, and what is kept.

>>> import numpy as np
>>> from minimixer.engine.random import Purpose
>>> from minimixer.nn.draws import RandomCounter
>>> random = RandomCounter(seed=1)
>>> random.set(step=5)
>>> random.keep(np.ones(4, "float32"), 0.5, Purpose.DROPOUT, layer=0, shape=(1, 4))
array([[2., 2., 0., 0.]], dtype=float32)
"""

import contextlib
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from ..engine.arrays import Array, namespace, use_device_of
from ..engine.dispatch import replaceable  # a fast form (kernels/) may do its work
from ..engine.precision import wide
from ..engine.random import Purpose, random_bits, uniform


class RandomCounter:
    """What random draws in a training step depend on, next to their own numbers.

    seed      an integer
    counters  uint64 array on the model's device: the step, and the number within the step of the
              first example of this batch (not 0 if a batch is cut into pieces)

    The optimizer advances the step. A draw is a pure function of these: see random_bits.
    """

    def __init__(self, seed: int = 0):
        self.seed = seed
        self.counters: Array = np.zeros(2, dtype=np.uint64)

    @property
    def step(self) -> Array:
        return self.counters[:1]

    def set(self, step: int, first_example: int = 0) -> None:
        self.counters[0] = step
        self.counters[1] = first_example

    def start_at(self, example: int) -> None:
        """What comes next is a part of the batch, from this example on."""
        use_device_of(self.counters)
        self.counters[1] = example

    def examples(self, count: int) -> Array:
        """The numbers of the examples of a batch, uint64 (count,), on the model's device."""
        return namespace(self.counters).arange(count, dtype=np.uint64) + self.counters[1:]

    @replaceable
    def keep(self, x: Any, p: float, purpose: Purpose, layer: int, shape: tuple[int, int]) -> Array:
        """0 with probability p, else 1 / (1 - p), for `shape`, the examples and the elements of
        each: of x's dtype, on its device."""
        xp, (examples, elements) = namespace(x.data), shape
        bits = random_bits(
            self.seed,
            purpose,
            xp.asarray(self.step)[:, None],
            layer,
            xp.asarray(self.examples(examples))[:, None],
            xp.arange(elements, dtype=np.uint64)[None, :],
        )
        dtype = wide(x.dtype)
        factors = (uniform(bits, dtype) >= p) * dtype.type(1 / (1 - p))
        return factors.astype(x.dtype, copy=False)


class _Thread(threading.local):
    evaluating = False


_thread = _Thread()


@contextlib.contextmanager
def evaluating() -> Iterator[None]:
    """Within it, in this thread, every module computes as after eval(); none is changed."""
    before, _thread.evaluating = _thread.evaluating, True
    try:
        yield
    finally:
        _thread.evaluating = before


def is_evaluating() -> bool:
    """Is this thread within `evaluating()`?"""
    return _thread.evaluating
