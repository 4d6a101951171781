"""What the fast forms keep for backward, in bytes, where it is not what the plain code keeps.

training/summary.py asks, to say what a model costs; so it must be known where there is no GPU.

>>> from minimixer.kernels.kept import by_mlp, by_norm
>>> by_norm("cpu", channels=64, rows=4096, stored=4, wide=4, copied=0)   # x, mean, 1 / sigma
1081344
>>> by_mlp("gpu", 10, hidden=40, columns=100, itemsize=4, is_first=True, approximate="tanh")
36000
"""

from .cpu.blocks import SMALL
from .gpu import channel_mixing, token_mixing
from .gpu.side import LARGEST


def by_norm(
    kernels: str, channels: int, rows: int, stored: int, wide: int, copied: int
) -> int | None:
    """LayerNorm of rows of so many channels: x, in numbers of `stored` bytes, mean and 1 / sigma.
    None where the plain code runs. `copied`: bytes of each weight that is kept in another dtype."""
    if kernels == "cpu" and (channels == 1 or rows * channels < SMALL):
        return None
    return rows * channels * stored + 2 * rows * wide + channels * copied


def by_mlp(
    kernels: str, size: int, hidden: int, columns: int, itemsize: int, is_first: bool,
    approximate: str,
) -> int | None:  # fmt: skip
    """An MLP over so many columns, along the first axis or the last: on a GPU x and what goes into
    GELU; what comes out too where the tensor cores of Hopper don't make it again, along the first
    axis or if it is small, and where they do, weights (on other GPUs this is too low)."""
    if kernels == "cpu":
        return None
    again = (itemsize, approximate) == (2, "tanh") and (
        token_mixing.fits(size, hidden, columns)
        if is_first
        else channel_mixing.fits(columns * itemsize, size, hidden)
    )
    twice = not again and (is_first or hidden * columns * itemsize <= LARGEST)
    weights = again * (1 + is_first) * size * hidden
    return ((size + hidden * (1 + twice)) * columns + weights) * itemsize
