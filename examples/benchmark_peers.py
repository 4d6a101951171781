"""The peers' side of benchmark.py: the same Mixer in PyTorch, JAX, HIPS autograd and MyGrad.

    python examples/benchmark_peers.py PEER PROBLEM.npz RESULT.npz '{"config": {...}, ...}'

PEER is one of torch, jax, autograd and mygrad, whose models are in benchmarks/: with_torch.py,
with_jax.py and with_primitives.py. PROBLEM.npz holds every weight under minimixer's names and in
its layouts, `images` (B, H, W, in) and `labels` (B,).
The settings, all but `config` optional, are

    config      the sizes: image_size ... channels_mlp_dim, as Mixer's arguments
    precision   "float32", "tf32" or "bfloat16": training in mixed precision (weights and optimizer
                in float32), inference in bfloat16 alone
    device      "cpu" or "cuda"
    mode        "eager", "compile", "max-autotune", "reduce-overhead", or "graph" (all of a step of
                the eager model in one CUDA graph), for PyTorch
    work        what to time, of "train", "gradients" (forward and backward) and "inference"
    seconds     for how long, after `warm_up` steps; or `steps`: exactly so many
    check       true: also compute logits, loss and gradients of the weights as loaded
    lr, weight_decay

RESULT.npz receives the seconds of every step, `WORK.times`, and the check's `logits`, `loss` and
`grad.NAME`, laid out as the weights. The last line on stdout, JSON, has median times and memory: on
the CPU `growth_bytes`, by how much the process grew after the model was built; on a GPU the peak of
bytes in use, PyTorch's of the timed steps, JAX's of the whole process, to which it adds
`planned_bytes`, what the compiled program itself needs, without the compiler's own trials.
"""

import contextlib
import importlib
import json
import re
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

BETAS, ADAM_EPSILON, NORM_EPSILON = (0.9, 0.999), 1e-8, 1e-6
DEFAULTS = {"precision": "float32", "device": "cpu", "mode": "compile", "lr": 1e-3,
            "work": ["train", "inference"], "weight_decay": 0.05, "warm_up": 10, "seconds": 2.0,
            "steps": None, "check": False}  # fmt: skip
PACKAGES = {"torch": ["torch"], "jax": ["jax", "flax", "optax"], "autograd": ["autograd"],
            "mygrad": ["mygrad"]}  # fmt: skip
MODELS = {"torch": ("benchmarks.with_torch", "peer"), "jax": ("benchmarks.with_jax", "peer"),
          "autograd": ("benchmarks.with_primitives", "autograd"),
          "mygrad": ("benchmarks.with_primitives", "mygrad")}  # fmt: skip
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


def main() -> None:
    if len(sys.argv) != 5 or sys.argv[1] not in PACKAGES:
        raise SystemExit("usage: benchmark_peers.py PEER PROBLEM.npz RESULT.npz SETTINGS")
    peer, problem, result, settings = sys.argv[1:]
    with contextlib.redirect_stdout(sys.stderr):
        report = run(peer, problem, result, DEFAULTS | json.loads(settings))
    print(json.dumps(report))


def run(name: str, problem: str, result: str, settings: dict) -> dict[str, Any]:
    weights = dict(np.load(problem))
    images, labels = weights.pop("images"), weights.pop("labels")
    patch = settings["config"]["patch_size"]
    packed = {rename(k, name): pack(k, value, patch, name) for k, value in weights.items()}
    try:
        module, function = MODELS[name]
        make = getattr(importlib.import_module(module), function)
        peer = make(packed, images, labels, settings)
    except ImportError as error:
        packages = " and ".join(PACKAGES[name])
        print(f"benchmark_peers.py: {name} needs {packages}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    report = {"peer": name, "version": peer.version, "loss": None}
    arrays = {}
    for work in settings["work"]:
        report[work], arrays[f"{work}.times"], first = measure(peer, work, settings)
        if work != settings["work"][0]:  # starts with what the first has left
            report[work].pop("growth_bytes", None)
        if work == "train":
            report["loss"] = first
    if settings["check"]:  # after the timing, whose peaks of memory it would raise
        peer.forget()
        logits, loss, gradients = peer.check()
        arrays |= {"logits": logits, "loss": np.float32(loss)}
        for k, value in weights.items():
            arrays[f"grad.{k}"] = unpack(k, gradients[rename(k, name)], value.shape, name)
        report["loss"] = float(loss)
    np.savez(result, **arrays)
    return report


def measure(peer: Peer, work: str, settings: dict) -> tuple[dict, np.ndarray, Any]:
    """The report, the seconds of each timed step, and what the very first step returned."""
    peer.forget()
    step = peer.work[work]()
    growth = Growth()
    first = step()
    first = first.tolist() if hasattr(first, "tolist") else first
    for _ in range(settings["warm_up"] - 1):
        step()
    peer.forget()
    step()  # fills the caches of memory again
    times = time_steps(step, settings)
    report = {"ms": 1e3 * statistics.median(times), "steps": len(times), **peer.memory()}
    if settings["device"] == "cpu":
        report["growth_bytes"] = growth.bytes()
    return report, np.array(times), first


def time_steps(step: Callable, settings: dict) -> list[float]:
    """Seconds of each of `settings["steps"]` steps, or of as many as `settings["seconds"]` hold."""
    times: list[float] = []
    steps, left = settings["steps"], settings["seconds"]
    while len(times) < steps if steps else len(times) < 5 or left > 0:
        start = time.perf_counter()
        step()
        times.append(time.perf_counter() - start)
        left -= times[-1]
    return times


class Growth:
    """By how much this process's memory has grown since, at its peak."""

    def __init__(self) -> None:
        with contextlib.suppress(OSError):  # Linux: forget how large it once was
            Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")
        self.before = self._resident("VmRSS")

    def bytes(self) -> int:
        return max(0, self._resident("VmHWM") - self.before)

    @staticmethod
    def _resident(which: str) -> int:
        with contextlib.suppress(OSError):
            found = re.search(
                rf"{which}:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8")
            )
            if found:
                return 1024 * int(found[1])
        import resource  # which Windows lacks

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak


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


if __name__ == "__main__":
    main()
