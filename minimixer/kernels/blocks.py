"""How the CPU kernels cut arrays: all sizes, and the measurements that chose them.

A block is what elementwise work proceeds by, so that its temporaries stay in a core's cache; yet
each operation on it costs a call. A part is what a thread works on between two looks at the list of
tasks; products lose time at its borders. Both follow from shapes alone, never from the number of
threads, so that sums have the same bits on any.

Measured on two cores with 1 MiB of second-level cache each (NumPy 2.4, OpenBLAS, float32), in ms:

    BLOCK     elements     2^13  2^14  2^15  2^16  2^17  2^18
              LayerNorm    1.47  1.06  0.89  0.76  0.76  0.77    of (6272, 128)
    ROWS      rows           98   196   392   784  1568
              product      2.18  1.83  1.78  1.80  1.79          (6272, 128) @ (128, 512)
                           20.5  16.7  15.0  14.4  13.8          (3136, 512) @ (512, 2048)
    COLUMNS   columns      1024  2048  4096                      a fourth of these where parts of
              product      2.13  1.90  1.84                      (256, 196) @ (196, 8192)

>>> parts(10, 3)
[slice(0, 3, None), slice(3, 6, None), slice(6, 10, None)]
>>> staggered(12, 4)
[slice(0, 2, None), slice(2, 6, None), slice(6, 10, None), slice(10, 12, None)]
"""

from itertools import pairwise

BLOCK = 1 << 16  # elements
ROWS = 784  # of a part of a product, where the result has long rows
COLUMNS = 2048, 1 << 18  # at least, or so many elements, of a product that is cut between columns
# A product of so many multiplications is cut into so many parts; and a smaller one not at all,
# since another thread takes 50 us to begin.
PRODUCTS = (1 << 29, 8), (1 << 27, 4), (1 << 24, 2)
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
