"""How the CPU kernels cut arrays: all sizes, and the measurements that chose them.

A block is what elementwise work proceeds by, so that its temporaries stay in a core's cache; yet
each operation on it costs a call. A part is what a thread works on between two looks at the list of
tasks; products lose time at its borders. Both follow from shapes alone, never from the number of
threads, so that sums have the same bits on any.

Milliseconds on two cores with 1 MiB of second-level cache each (NumPy 2.4, OpenBLAS, float32):

    BLOCK      elements               2^13  2^14  2^15  2^16  2^17  2^18
               LayerNorm, (6272, 128) 1.47  1.06  0.89  0.76  0.76  0.77

    ROWS       rows of a part           98   196   392   784  1568
               (6272, 128) @ (128, 512)       2.18  1.83  1.78  1.80  1.79
               (3136, 512) @ (512, 2048)      20.5  16.7  15.0  14.4  13.8
               784 is four parts of the second: of two, the last thread would be waited for longer

    COLUMNS    columns of a part      1024  2048  4096
               (256, 196) @ (196, 8192)       2.13  1.90  1.84

    PRODUCT    side of square matrices       256   320   512  1024  2048
               BLAS's threads               0.09  0.16  0.64   4.7  37.3
               ours, in 1 part              0.15  0.28  1.19
               2 parts                      0.16  0.32  1.19   5.1  38.4
               4 parts                      0.16  0.25  0.75   5.5  40.6
               8 parts                      0.19  0.27  0.82   6.4  44.2
               BLAS's are faster at a product alone, and in the way of all that follows: with them a
               training step of the small model takes 136 ms instead of 95 (threads.py)

>>> from minimixer.kernels.cpu.blocks import parts, staggered
>>> parts(10, 3)
[slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
>>> staggered(12, 4)
[slice(0, 2, None), slice(2, 6, None), slice(6, 10, None), slice(10, 12, None)]
"""

from itertools import pairwise

BLOCK = 1 << 16  # elements
ROWS = 784  # of a part of a product, where the result has long rows
COLUMNS = 2048, 1 << 18  # at least, or so many elements, of a product that is cut between columns
PRODUCT, PARTS = 1 << 25, 4  # a product of so many multiplications is cut into so many parts
HALVED = 1 << 27  # multiplications: a weight's gradient from here on is two tasks
TINY = 1 << 12  # multiplications: nothing that BLAS would start a thread for
SMALL = 1 << 15  # elements: for fewer the plain code, which has less to prepare, is as fast


def parts(length: int, size: int) -> list[slice]:
    """[0, length) in slices of about `size`, as equal as they can be."""
    count = max(1, round(length / max(1, size)))
    return _between([length * i // count for i in range(count + 1)])


def staggered(length: int, size: int) -> list[slice]:
    """The same, but the first and the last are half as long: two threads that begin together then
    fall out of step, one computing GELU while the other multiplies. One slice if it is short."""
    count = round(length / max(1, size))
    if count < 2:
        return [slice(0, length)]
    return _between([0, *[length * (2 * i + 1) // (2 * count) for i in range(count)], length])


def _between(borders: list[int]) -> list[slice]:
    return [slice(a, b) for a, b in pairwise(borders) if a < b]
