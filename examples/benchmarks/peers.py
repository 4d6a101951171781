"""What benchmark_peers.py asks of a peer, and where the peers' weights lie otherwise than ours."""

import re
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

BETAS, ADAM_EPSILON, NORM_EPSILON = (0.9, 0.999), 1e-8, 1e-6
PACKAGES = {"torch": ["torch"], "jax": ["jax", "flax", "optax"], "autograd": ["autograd"],
            "mygrad": ["mygrad"]}  # fmt: skip
RENAMED = {
    "torch": [(r"\.w([12])$", r".fc\1.weight"), (r"\.b([12])$", r".fc\1.bias")],
    "jax": [(r"\.w([12])$", r".fc\1.kernel"), (r"\.b([12])$", r".fc\1.bias"),
            (r"(norm[12]?)\.weight", r"\1.scale"), ("weight$", "kernel"), (r"blocks\.", "blocks_")],
    "autograd": [],
    "mygrad": [],
}  # fmt: skip


class Peer(NamedTuple):
    version: str
    work: dict[str, Callable]  # () -> step, which returns loss or logits when its work is done
    check: Callable  # () -> logits, loss and the gradients under the peer's names
    forget: Callable  # frees what earlier work left and restarts the peaks of memory
    memory: Callable  # () -> {"peak_bytes": ...} of a GPU


def rename(name: str, peer: str) -> str:
    for mine, theirs in RENAMED[peer]:
        name = re.sub(mine, theirs, name)
    return name


def axes(name: str, rank: int, peer: str) -> tuple[int, ...]:
    """PyTorch's matrices are (out, in), Flax's (in, out), and so are minimixer's but one."""
    if peer not in ("torch", "jax"):
        return tuple(range(rank))
    if rank == 4:  # the stem, a convolution: from (row, column, in, out)
        return (3, 2, 0, 1) if peer == "torch" else (0, 1, 2, 3)
    flip = rank == 2 and (peer == "torch") != name.endswith("token_mixing.w2")
    return (1, 0) if flip else tuple(range(rank))


def pack(name: str, value: np.ndarray, patch: int, peer: str) -> np.ndarray:
    """The weight in the peer's layout."""
    if name == "stem.weight" and peer in ("torch", "jax"):
        value = value.reshape(patch, patch, -1, value.shape[-1])
    return np.ascontiguousarray(value.transpose(axes(name, value.ndim, peer)))


def unpack(name: str, value: np.ndarray, shape: tuple[int, ...], peer: str) -> np.ndarray:
    """And back to minimixer's."""
    return value.transpose(np.argsort(axes(name, value.ndim, peer))).reshape(shape)
