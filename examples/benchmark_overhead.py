"""What the engine itself costs: operations so small that only Python's time counts.

    python examples/benchmark_overhead.py [--peer-python PYTHON] [--runs 5]

    linear     a Linear(2, 3) on a (4, 2) array, forward and backward, beside PyTorch
    scalars    backward through 10,000 sums and products of numbers, beside HIPS autograd
    both ways  the same, forward and backward

Each side runs in a fresh process, in turn; the smallest time of many counts. Gradients are compared
first. A peer that PYTHON (default: this one) lacks is left out.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time

from benchmarks.timing import ratios, spread

OPERATIONS = 10_000
PEERS = {"linear": "torch", "scalars": "autograd", "both ways": "autograd"}


def chain(x):
    for _ in range(OPERATIONS // 2):
        x = x * 1.0001 + 0.0001
    return x


def smallest(function, count: int, repeats: int) -> float:
    """Seconds of one call."""
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        for _ in range(count):
            function()
        times.append((time.perf_counter() - start) / count)
    return min(times)


def smallest_backward(forward, repeats: int = 15) -> tuple[float, float]:
    """Seconds of backward, and of both; forward() returns what runs backward."""
    backwards, both = [], []
    for _ in range(repeats):
        start = time.perf_counter()
        backward = forward()
        between = time.perf_counter()
        backward()
        end = time.perf_counter()
        backwards.append(end - between)
        both.append(end - start)
    return min(backwards), min(both)


def minimixer() -> dict:
    import numpy as np

    from minimixer import Linear, Tensor

    layer, dy = Linear(2, 3), np.ones((4, 3), "float32")
    x, x0 = Tensor(np.ones((4, 2), "float32")), Tensor(1.0, requires_grad=True)

    def linear():
        layer(x).backward(dy)
        layer.zero_grad()

    backward, both = smallest_backward(lambda: chain(x0).backward)
    x0.grad = None
    chain(x0).backward()
    return {"linear": smallest(linear, 1000, 15), "scalars": backward, "both ways": both,
            "gradient": float(x0.grad)}  # fmt: skip


def torch() -> dict:
    import torch

    layer, dy, x = torch.nn.Linear(2, 3), torch.ones(4, 3), torch.ones(4, 2)

    def linear():
        layer(x).backward(dy)
        layer.zero_grad()

    return {"linear": smallest(linear, 1000, 15)}


def autograd() -> dict:
    import numpy as np
    from autograd import make_vjp

    def forward():
        back, _ = make_vjp(chain)(np.float32(1.0))
        return lambda: back(np.float32(1.0))

    backward, both = smallest_backward(forward)
    return {"scalars": backward, "both ways": both, "gradient": float(forward()())}


def start(side: str, python: str) -> dict:
    """What one side measures in a fresh process; nothing if the package is not there."""
    missing = [python, "-c", f"import importlib.util as u; exit(u.find_spec({side!r}) is None)"]
    if side != "minimixer" and subprocess.run(missing).returncode:
        return {}
    command = [sys.executable if side == "minimixer" else python, __file__, "--side", side]
    return json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--peer-python", default=sys.executable, metavar="PYTHON")
    parser.add_argument("--runs", type=int, default=5)
    parser.add_argument(
        "--side", choices=["minimixer", "torch", "autograd"], help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.side:
        print(
            json.dumps(
                {"minimixer": minimixer, "torch": torch, "autograd": autograd}[options.side]()
            )
        )
        return
    sides = ("minimixer", "torch", "autograd")
    turns = [
        {side: start(side, options.peer_python) for side in sides} for _ in range(options.runs)
    ]
    gradients = [turns[0][side].get("gradient") for side in ("minimixer", "autograd")]
    if gradients[1] is not None and abs(gradients[0] / gradients[1] - 1) > 1e-3:
        raise SystemExit(f"benchmark_overhead: the gradients are {gradients}")
    for work, peer in PEERS.items():
        own = [1e6 * turn["minimixer"][work] for turn in turns]
        line = f"{work:10} minimixer {statistics.median(own):10.2f} us"
        if work in turns[0][peer]:
            theirs = [1e6 * turn[peer][work] for turn in turns]
            line += f"   {peer} {statistics.median(theirs):10.2f} us   ratio "
            line += spread(ratios(own, theirs))
        print(line)


if __name__ == "__main__":
    main()
