"""The channel-mixing MLP's products with GELU where they are stored: channel_mixing.cu.

For numbers of two bytes, on GPUs with `wgmma` (hopper.py), and sizes that are whole tiles; all
others go as mlp.py says.
"""

import numpy as np

from ...engine.arrays import Array
from . import hopper
from .cuda import as_bool, ceil_div, get, multiprocessors, pointer, type_of, usable

FILE = "channel_mixing.cu"
ROWS, DEPTH = 128, 64  # of a block's tile; taken at a time


def suits(x: Array, w1: Array, b1: Array) -> bool:
    """Can it take x (n, C), w1 (C, D) and b1 (D,)?"""
    (rows, depth), units = x.shape, w1.shape[1]
    if not fits(rows, depth, units) or not hopper.suits(x, w1, b1):
        return False
    n, m = wide(units, False), wide(units, True)
    forward = [_name(x, n, False, keep) for keep in (False, True)]
    return usable(FILE, *forward, _pack_name(x, n), more=_text(x, n)) and usable(
        FILE, _name(x, m, True, True), _pack_name(x, m), more=_text(x, m)
    )


def fits(rows: int, depth: int, units: int) -> bool:
    """Are these sizes that it can take?"""
    return not (rows % (2 * ROWS) or depth % DEPTH or (units % 128 and units % 192))


def forward(x: Array, w1: Array, b1: Array, keep_u: bool) -> tuple[Array, Array | None]:
    """(g (n, D), u (n, D) if wanted): u = x w1 + b1, g = gelu(u)."""
    import cupy

    shape = len(x), w1.shape[1]
    g = cupy.empty(shape, x.dtype)
    u = cupy.empty(shape, x.dtype) if keep_u else None
    _run(False, keep_u, x, w1, b1, pointer(u), g, 0, 0)
    return g, u


def backward(dy: Array, u: Array, w2: Array) -> tuple[Array, Array]:
    """(du (n, D), its sums in parts (n / 128, D) float32), for dg = dy w2^T; g comes over u."""
    import cupy

    du = cupy.empty(u.shape, u.dtype)
    sums = cupy.empty((len(u) // ROWS, u.shape[1]), "float32")
    _run(True, True, dy, w2.T, 0, u, 0, du, sums)
    return du, sums


def _run(back: bool, keep: bool, a: Array, b: Array, bias: Array, u: Array, *rest: Array) -> None:
    import cupy

    (rows, depth), columns = a.shape, b.shape[1]
    n = wide(columns, back)
    kernel = get(FILE, _name(a, n, back, keep), _text(a, n))
    pack = get(FILE, _pack_name(a, n), _text(a, n))
    packed = cupy.empty(b.size, b.dtype)
    sizes = (columns, depth, *(stride // 2 for stride in b.strides))
    pack((ceil_div(b.size, 256),), (256,), (b, packed, *map(np.int32, sizes)))
    stages = (5 if n > 128 else 6) - back  # as stages() there says
    shared = stages * 2 * DEPTH * (ROWS + n) + 2 * ROWS * n * back + 256 + 32 * n
    if kernel.max_dynamic_shared_size_bytes < shared:
        kernel.max_dynamic_shared_size_bytes = shared
    blocks = min(multiprocessors(a.device.id) // 2 * 2, rows // ROWS * (columns // n))
    tiles = hopper.tensor_map(a, ROWS, DEPTH)
    old_u = hopper.tensor_map(u, ROWS, DEPTH) if back else tiles
    arguments = (tiles, old_u, packed, bias, u, *rest)
    kernel(
        (blocks,), (384,), (*arguments, *map(np.int32, (rows, columns, depth))), shared_mem=shared
    )


def wide(columns: int, back: bool) -> int:
    """Columns of a tile: the more, the less is read twice; backward they leave room for u."""
    first, second = (128, 192) if back else (192, 128)
    return second if columns % first else first


def _text(a: Array, n: int) -> str:
    return hopper.text(a.dtype.name, n, from_shared=True)


def _name(a: Array, n: int, back: bool, keep: bool) -> str:
    return f"mix_channels<{type_of(a)},{n},{as_bool(back)},{as_bool(keep)}>"


def _pack_name(a: Array, n: int) -> str:
    return f"pack_weights<{type_of(a)},{n}>"
