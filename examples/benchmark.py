"""Time a training step (forward, backward, AdamW) of a small Mixer against PyTorch's.

    python examples/benchmark.py                                  minimixer alone
    python examples/benchmark.py --torch-python ENV/bin/python    and PyTorch, of that environment

Each side runs in a fresh process, in turn, and starts from the same random weights; their losses
must agree before any time counts. What means something on a noisy machine is the ratio.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

# 28 x 28 images, P 4, C 128, D_S 64, D_C 512, N 4, batch 128: the sizes that peers are timed at
SIZES = {"image_size": 28, "patch_size": 4, "in_channels": 1, "num_classes": 10, "num_blocks": 4,
         "hidden_dim": 128, "tokens_mlp_dim": 64, "channels_mlp_dim": 512}  # fmt: skip
BATCH, WARM_UP, LR, DECAY = 128, 3, 1e-3, 0.05


def main() -> None:
    options = make_parser().parse_args()
    if options.worker:
        step = {"minimixer": minimixer_step, "torch": torch_step}[options.worker](options.problem)
        print(json.dumps(measure(step, options.steps)))
        return
    sides = {"minimixer": sys.executable}
    if options.torch_python:
        sides["torch"] = options.torch_python
    runs: dict[str, list[dict]] = {side: [] for side in sides}
    with tempfile.TemporaryDirectory() as directory:
        problem = str(Path(directory) / "problem.npz")
        write_problem(problem)
        for _ in range(options.pairs):
            for side, python in sides.items():
                command = [python, __file__, "--worker", side, "--problem", problem]
                command += ["--steps", str(options.steps)]
                result = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
                runs[side].append(json.loads(result.stdout))
                print(f"{side:10}", "{ms:7.1f} ms a step, {mib:5.0f} MiB".format(**runs[side][-1]))
    losses = {round(run["loss"], 4) for side in runs.values() for run in side}
    if len(losses) > 1:
        raise SystemExit(f"the sides do not compute the same: losses {losses}")
    if "torch" in runs:
        for key, what in (("ms", "time"), ("mib", "peak memory")):
            pairs = zip(runs["minimixer"], runs["torch"], strict=True)
            ratios = sorted(mine[key] / theirs[key] for mine, theirs in pairs)
            median = statistics.median(ratios)
            print(f"{what}: {median:.2f} of PyTorch's ({ratios[0]:.2f} to {ratios[-1]:.2f})")


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--torch-python", help="a Python that has PyTorch and NumPy")
    parser.add_argument("--pairs", type=int, default=5, help="processes of each side (default: 5)")
    parser.add_argument("--steps", type=int, default=10, help="timed steps of each (default: 10)")
    parser.add_argument("--worker", choices=("minimixer", "torch"), help=argparse.SUPPRESS)
    parser.add_argument("--problem", help=argparse.SUPPRESS)
    return parser


def write_problem(path: str) -> None:
    """Images, labels and weights, the head's too, all at random."""
    from minimixer import Mixer

    random = np.random.default_rng(0)
    arrays = {
        name: random.normal(1.0 if name.endswith("norm.weight") else 0.0, 0.05, value.shape)
        for name, value in Mixer(**SIZES, seed=None).state_dict().items()
    }
    arrays["images"] = random.standard_normal((BATCH, 28, 28, 1))
    labels = random.integers(0, 10, BATCH)
    np.savez(path, labels=labels, **{k: v.astype(np.float32) for k, v in arrays.items()})


def measure(step, steps: int) -> dict[str, float]:
    """The loss after the first step, the median time of the later ones, the peak of memory."""
    losses, times = [], []
    for _ in range(WARM_UP + steps):
        start = time.perf_counter()
        losses.append(step())
        times.append(time.perf_counter() - start)
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"loss": losses[1], "ms": 1e3 * statistics.median(times[WARM_UP:]), "mib": mib}


def minimixer_step(path: str):
    from minimixer import AdamW, Mixer
    from minimixer import functional as F

    problem = dict(np.load(path))
    images, labels = problem.pop("images"), problem.pop("labels")
    model = Mixer(**SIZES, seed=None)
    model.load_state_dict(problem)
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=DECAY)

    def step() -> float:
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


def torch_step(path: str):
    import torch
    from torch.nn import functional as F

    problem = {name: torch.tensor(value) for name, value in np.load(path).items()}
    images, labels = problem.pop("images"), problem.pop("labels")
    w = {name: value.requires_grad_() for name, value in problem.items()}
    patches = images.reshape(BATCH, 7, 4, 7, 4).transpose(2, 3).reshape(BATCH, 49, 16)
    groups = [
        {"params": [v for v in w.values() if v.ndim > 1], "weight_decay": DECAY},
        {"params": [v for v in w.values() if v.ndim == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=LR)

    def norm(x, name):
        return F.layer_norm(x, (x.shape[-1],), w[f"{name}.weight"], w[f"{name}.bias"], 1e-6)

    def mlp(x, name, transposed):
        p = {key: w[f"{name}.{key}"] for key in ("w1", "b1", "w2", "b2")}
        hidden = F.gelu(F.linear(x, p["w1"].T, p["b1"]), approximate="tanh")
        return F.linear(hidden, p["w2"] if transposed else p["w2"].T, p["b2"])

    def step() -> float:
        optimizer.zero_grad()
        x = F.linear(patches, w["stem.weight"].T, w["stem.bias"])
        for i in range(SIZES["num_blocks"]):
            block = f"blocks.{i}"
            y = norm(x, f"{block}.norm1").transpose(1, 2)
            x = x + mlp(y, f"{block}.token_mixing", True).transpose(1, 2)
            x = x + mlp(norm(x, f"{block}.norm2"), f"{block}.channel_mixing", False)
        logits = F.linear(norm(x, "norm").mean(1), w["head.weight"].T, w["head.bias"])
        loss = F.cross_entropy(logits, labels)
        loss.backward()
        optimizer.step()
        return loss.item()

    return step


if __name__ == "__main__":
    main()
