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
import statistics
import sys
from typing import Any

import numpy as np

from benchmarks.peers import PACKAGES, Peer, pack, rename, unpack
from benchmarks.timing import time_steps
from support.machine import Growth

DEFAULTS = {"precision": "float32", "device": "cpu", "mode": "compile", "lr": 1e-3,
            "work": ["train", "inference"], "weight_decay": 0.05, "warm_up": 10, "seconds": 2.0,
            "steps": None, "check": False}  # fmt: skip
MODELS = {"torch": ("benchmarks.with_torch", "peer"), "jax": ("benchmarks.with_jax", "peer"),
          "autograd": ("benchmarks.with_primitives", "autograd"),
          "mygrad": ("benchmarks.with_primitives", "mygrad")}  # fmt: skip


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


if __name__ == "__main__":
    main()
