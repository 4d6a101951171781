"""The token-mixing MLP in one kernel each way, its hidden array in registers: token_mixing.cu.

For numbers of two bytes, on GPUs with `wgmma` (hopper.py), and sizes that fit there; all others go
as mlp.py says.
"""

import functools

from ...engine.arrays import Array
from . import hopper
from .cuda import allow_shared, ceil_div, get, multiprocessors, pointer, type_of, usable

FILE = "token_mixing.cu"
TILE, UNITS, STAGES = 128, 64, 2  # columns of a block, hidden units at a time, chunks there
MOST_TOKENS = 200  # what a thread's registers hold


def suits(x: Array, w1: Array, b1: Array) -> bool:
    """Can it take x (S, n), w1 (S, D) and b1 (D,)?"""
    (tokens, columns), units = x.shape, w1.shape[1]
    if not fits(tokens, units, columns) or not hopper.suits(x, w1, b1):
        return False
    return usable(FILE, *_names(x, tokens, units), more=_text(x, tokens))


def fits(tokens: int, units: int, columns: int) -> bool:
    """Are these sizes that it can take?"""
    whole = not units % UNITS and not columns % TILE
    return whole and tokens <= MOST_TOKENS and columns <= hopper.MOST


def pack(w1: Array, b1: Array, w2: Array, back: bool) -> tuple[Array, Array | None]:
    """w1 (S, D), b1 (D,) and w2 (S, D) in the order in which forward, and backward if wanted, read
    them."""
    import cupy

    tokens, units = w1.shape
    size = packed_bytes(tokens, units) // 2
    packed = [cupy.empty(size, w1.dtype) for _ in range(1 + back)] + [None]
    w1, w2 = (cupy.ascontiguousarray(w) for w in (w1, w2))
    kernel = get(FILE, _names(w1, tokens, units)[0], more=_text(w1, tokens))
    kernel((ceil_div(size, 256), 1 + back), (256,), (w1, b1, w2, packed[0], pointer(packed[1])))
    return packed[0], packed[1]


def packed_bytes(tokens: int, units: int) -> int:
    """Of weights packed for one direction."""
    return units // UNITS * shared_bytes(tokens)[0]


def forward(x: Array, packed: Array, units: int, keep_u: bool) -> tuple[Array, Array | None]:
    """(w2 gelu(u) (S, n), u^T (n, D) if wanted) for u = w1^T x + b1."""
    import cupy

    y = cupy.empty(x.shape, x.dtype)
    u = cupy.empty((x.shape[1], units), x.dtype) if keep_u else None
    _run(False, x, packed, units, y, u, None, None)
    return y, u


def backward(dy: Array, u: Array, packed: Array) -> tuple[Array, Array, Array]:
    """(dx (S, n), g^T (n, D), du^T (n, D)) from forward's u."""
    import cupy

    dx, g, du = (cupy.empty(a.shape, a.dtype) for a in (dy, u, u))
    _run(True, dy, packed, u.shape[1], dx, u, g, du)
    return dx, g, du


def _run(back: bool, x: Array, packed: Array, units: int, y: Array, *hidden: Array | None) -> None:
    tokens, columns = x.shape
    kernel = get(FILE, _names(x, tokens, units)[1 + back], more=_text(x, tokens))
    blocks = min(multiprocessors(x.device.id), columns // TILE + 1) // 2 * 2
    size = shared_bytes(tokens)[1]
    allow_shared(kernel, size)
    maps = [hopper.tensor_map(a, tokens, TILE // 2) for a in (x, y)]
    arguments = (*maps, packed, *map(pointer, hidden), columns)
    kernel((blocks,), (384,), arguments, shared_mem=size)


@functools.cache
def shared_bytes(tokens: int) -> tuple[int, int]:
    """(a chunk of both weights, all that a block has): Shape in token_mixing.cu."""
    k, n = 16 * ceil_div(tokens + 1, 16), 8 * ceil_div(tokens, 8)
    chunk = 2 * UNITS * (k + n)
    return chunk, STAGES * (chunk + 2 * TILE * k) + 128


def _names(x: Array, tokens: int, units: int) -> tuple[str, str, str]:
    sizes = f"{type_of(x)},{tokens},{units}"
    return f"pack_weights<{sizes}>", f"mix_tokens<{sizes},false>", f"mix_tokens<{sizes},true>"


def _text(x: Array, tokens: int) -> str:
    ways = (UNITS, "registers"), (UNITS, "transposed"), (8 * ceil_div(tokens, 8), "registers")
    return hopper.text(x.dtype.name, *ways)
