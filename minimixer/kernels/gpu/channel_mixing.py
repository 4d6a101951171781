"""The channel-mixing MLP's products with GELU where they are stored: channel_mixing.cu.

For numbers of two bytes, on GPUs with `wgmma` (hopper.py), channels in eights, hidden units in
whole tiles, and arrays that are not small; all others go as mlp.py says.
"""

from typing import Literal

import numpy as np

from ...engine.arrays import Array
from .. import chosen
from . import hopper
from .cuda import (
    allow_shared,
    as_bool,
    ceil_div,
    get,
    multiprocessors,
    pointer,
    type_of,
    usable,
)
from .side import LARGEST

FILE = "channel_mixing.cu"
ROWS, DEPTH = 128, 64  # of a block's tile; taken at a time
SMALLEST = LARGEST + 1  # bytes of u: with less cuBLAS is as fast, and packs no weights
MOST_KEPT = 320 << 20  # bytes of g that are kept, and of the slope: Mixer-B/16's for 256 images

Kept = Literal["NOTHING", "U", "SLOPE"]  # for backward: see channel_mixing.cu


def suits(x: Array, w1: Array, b1: Array) -> bool:
    """Can it take x (n, C), w1 (C, D) and b1 (D,)?"""
    (depth, units), itemsize = w1.shape, x.dtype.itemsize
    if not fits(len(x) * itemsize, depth, units) or not hopper.suits(x, w1, b1):
        return False
    kept = what_is_kept(len(x) * units * itemsize)
    names = [_name(x, units, False, "NOTHING"), *(_name(x, units, b, kept) for b in (False, True))]
    return usable(FILE, *names, _pack_name(x), more=_text(x, units))


def what_is_kept(size: int, wanted: bool = True) -> Kept:
    """What to keep for backward, if it is wanted and g takes `size` bytes: the slope and g, or u
    alone, which takes half as much."""
    if not wanted:
        return "NOTHING"
    return "SLOPE" if size <= MOST_KEPT and chosen() != "lean" else "U"


def fits(column: int, depth: int, units: int) -> bool:
    """Are these sizes that it can take, and should? `column`: bytes of a column."""
    whole = not (depth % 8 or (units % 128 and units % 192))
    return whole and column * units >= SMALLEST and column <= 2 * hopper.MOST


def pack(w1: Array, w2: Array, kept: Kept) -> tuple[Array, Array | None]:
    """w1 (C, D) and w2 (D, C) in the order in which forward, and backward if it is to come, read
    them."""
    import cupy

    depth, units = w1.shape
    size = packed_bytes(depth, units) // 2
    back = kept != "NOTHING"
    packed = [cupy.empty(size, w1.dtype) for _ in range(1 + back)] + [None]
    w1, w2 = (cupy.ascontiguousarray(w) for w in (w1, w2))
    w2 = w2.copy() if w2.data.ptr % 16 else w2  # which is read by 16 bytes
    sizes = units, depth, *(tile_columns(units, b, kept) for b in (False, True))
    get(FILE, _pack_name(w1), _text(w1, units))(
        (ceil_div(size, 8 * 256), 1 + back), (256,),
        (w1, w2, packed[0], pointer(packed[1]), *map(np.int32, sizes)),
    )  # fmt: skip
    return packed[0], packed[1]


def packed_bytes(depth: int, units: int) -> int:
    """Of weights packed for one direction."""
    return 2 * ceil_div(depth, DEPTH) * DEPTH * units


def forward(x: Array, packed: Array, b1: Array, kept: Kept) -> tuple[Array, Array | None]:
    """(g (n, D), what is kept (n, D), or None): u = x w1 + b1, g = gelu(u)."""
    import cupy

    shape = len(x), len(b1)
    g = cupy.empty(shape, x.dtype)
    old = None if kept == "NOTHING" else cupy.empty(shape, x.dtype)
    _run(False, kept, x, packed, len(b1), b1, pointer(old), g, 0, 0)
    return g, old


def backward(dy: Array, old: Array, kept: Kept, packed: Array) -> tuple[Array, Array]:
    """(du (n, D), its sums over each 128 rows, float32 (..., D)), du of dg = dy w2^T. What was
    kept, `old`, is written over: u by g, the slope by du."""
    import cupy

    rows, units = old.shape
    du = cupy.empty_like(old) if kept == "U" else old
    sums = cupy.empty((2 * ceil_div(rows, 2 * ROWS), units), "float32")
    _run(True, kept, dy, packed, units, 0, old, 0, du, sums)
    return du, sums


def _run(back: bool, kept: Kept, a: Array, packed: Array, units: int, *rest: Array) -> None:
    (rows, depth), n = a.shape, tile_columns(units, back, kept)
    kernel = get(FILE, _name(a, units, back, kept), _text(a, units))
    stages = (5 if n > 128 else 6) - back  # as stages() there says
    shared = stages * 2 * DEPTH * (ROWS + n) + 2 * ROWS * n * back + 256 + 32 * n
    allow_shared(kernel, shared)
    tiles = ceil_div(rows, 2 * ROWS) * (units // n)
    blocks = 2 * min(multiprocessors(a.device.id) // 2, tiles)
    left = hopper.tensor_map(a, ROWS, DEPTH)
    before = hopper.tensor_map(rest[1], ROWS, DEPTH) if back else left
    arguments = (left, before, packed, *rest, *map(np.int32, (rows, units, depth)))
    kernel((blocks,), (384,), arguments, shared_mem=shared)


def tile_columns(units: int, back: bool, kept: Kept) -> int:
    """Columns of a tile: the more, the less is read twice. Backward that makes g again is 4% faster
    with fewer."""
    first, second = (128, 192) if back and kept == "U" else (192, 128)
    return second if units % first else first


def _text(a: Array, units: int) -> str:
    # The slope's backward has as many as forward.
    ways = ((tile_columns(units, back, "U"), "shared") for back in (False, True))
    return hopper.text(a.dtype.name, *ways)


def _name(a: Array, units: int, back: bool, kept: Kept) -> str:
    return f"mix_channels<{type_of(a)},{tile_columns(units, back, kept)},{as_bool(back)},{kept}>"


def _pack_name(a: Array) -> str:
    return f"pack_weights<{type_of(a)}>"
