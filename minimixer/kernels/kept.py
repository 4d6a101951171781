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
    """An MLP over so many columns, along the first axis or the last. On a GPU x, and u, which goes
    into GELU; also g, which comes out, along the first axis or if it is small. On Hopper's tensor
    cores x, u and packed weights; along the last axis, unless they are large, g and the slope of
    GELU in place of u (this is said of sizes that they take on other GPUs too)."""
    if kernels == "cpu":
        return None
    x, g = (n * columns * itemsize for n in (size, hidden))  # bytes; as many of u, or of the slope
    if (itemsize, approximate) == (2, "tanh"):
        if is_first and token_mixing.fits(size, hidden, columns):
            return x + g + token_mixing.packed_bytes(size, hidden)
        if not is_first and channel_mixing.fits(columns * itemsize, size, hidden):
            twice = channel_mixing.what_is_kept(g) == "SLOPE"
            return x + g * (1 + twice) + channel_mixing.packed_bytes(size, hidden)
    return x + g * (1 + (is_first or g <= LARGEST))
