"""What the fast forms keep for backward, in bytes, where it is not what the plain code keeps.

training/summary.py asks, to say what a model costs; so it must be known where there is no GPU.

>>> from minimixer.kernels.kept import Kept, by_norm
>>> by_norm("cpu", channels=64, rows=4096, stored=4, wide=4, copied=0)   # x, mean, 1 / sigma
1081344
>>> Kept("gpu").by_mlp(10, 40, columns=100, itemsize=4, is_first=True, approximate="tanh")
36000
"""

import math
import os

from .cpu.blocks import SMALL
from .gpu import channel_mixing, token_mixing
from .gpu.side import LARGEST

_most = 0.0  # bytes


def keep(gib: float | str) -> None:
    """On a GPU g, what comes out of channel mixing's GELU, is kept for backward in as many blocks,
    from the first on, as take so many GiB together (0 unless told, here or by MINIMIXER_KEEP). In
    others backward makes it again, from rounded numbers, which takes longer. A recorded step stays
    as it is. ValueError for what is no number of at least 0."""
    global _most
    try:
        most = float(gib) * 2**30
    except (TypeError, ValueError):
        most = math.nan
    if not most >= 0:
        raise ValueError(f"kernels.keep, MINIMIXER_KEEP: GiB, 0 or more; got {gib!r}")
    _most = most


keep(os.environ.get("MINIMIXER_KEEP") or 0)


def by_norm(
    kernels: str, channels: int, rows: int, stored: int, wide: int, copied: int
) -> int | None:
    """LayerNorm of rows of so many channels: x, in numbers of `stored` bytes, mean and 1 / sigma.
    None where the plain code runs. `copied`: bytes of each weight that is kept in another dtype."""
    if kernels == "cpu" and (channels == 1 or rows * channels < SMALL):
        return None
    return rows * channels * stored + 2 * rows * wide + channels * copied


class Kept:
    """What MLPs keep, one after the other: on a GPU those of a step, or in a table a model's."""

    def __init__(self, kernels: str = "gpu"):
        self.kernels = kernels
        self.total = 0  # bytes of channel mixing's g, where they are many

    def take(self, nbytes: int) -> bool:
        """May so much more be kept? Then it counts from now on, if it is not small."""
        if nbytes <= LARGEST:
            return True
        if self.total + nbytes > _most:
            return False
        self.total += nbytes
        return True

    def give_back(self, nbytes: int) -> None:
        if nbytes > LARGEST:
            self.total -= nbytes

    def by_mlp(
        self, size: int, hidden: int, columns: int, itemsize: int, is_first: bool, approximate: str
    ) -> int | None:
        """An MLP over so many columns, along the first axis or the last: on a GPU x and what goes
        into GELU; what comes out unless Hopper's token mixing makes it again (on other GPUs this is
        too low), in channel mixing as far as `keep` says; and weights packed for Hopper."""
        if self.kernels == "cpu":
            return None
        on_hopper = (itemsize, approximate) == (2, "tanh") and (
            token_mixing.fits(size, hidden, columns)
            if is_first
            else channel_mixing.fits(columns * itemsize, size, hidden)
        )
        twice = not on_hopper if is_first else self.take(hidden * columns * itemsize)
        weights = on_hopper * (1 + is_first) * size * hidden
        return ((size + hidden * (1 + twice)) * columns + weights) * itemsize
