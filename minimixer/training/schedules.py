"""Gradient descent, and schedules: how its learning rate changes over a run.

A small change d of the weights w changes the loss by g . d, g being the gradient. So a step against
it, with a learning rate lr small enough, makes the loss smaller, by about lr g . g:

    w <- w - lr g

Each g is of a few images (a batch) and a little off; small last steps average that out: lr falls.

>>> from minimixer import schedule
>>> [round(schedule(step, 10, warmup_steps=2), 2) for step in (0, 1, 2, 6, 10)]
[0.5, 1.0, 1.0, 0.5, 0.0]

Next: `optimizer.py`, what all optimizers share: ranges, clipping, steps.
"""

import math

from ..engine.checks import check_number


def schedule(step: int, total_steps: int, warmup_steps: int = 0, decay: str = "cosine") -> float:
    """The factor on the learning rate at `step`, counted from 0.

    Linear from 1 / warmup_steps to 1 during the warm-up, while Adam's averages (optim.py) rest on
    few gradients; then down to 0 at `total_steps` along half a "cosine" or a straight line
    ("linear"), or not at all ("constant"). ValueError for numbers that do not fit together."""
    if decay not in ("cosine", "linear", "constant"):
        raise ValueError(f"decay must be 'cosine', 'linear' or 'constant', got {decay!r}")
    for name, steps in (
        ("step", step),
        ("total_steps", total_steps),
        ("warmup_steps", warmup_steps),
    ):
        check_number(name, steps)
    if not (warmup_steps <= total_steps and total_steps > 0):
        raise ValueError(f"step {step}, {warmup_steps} steps of warm-up out of {total_steps}")
    if step < warmup_steps:
        return (step + 1) / warmup_steps
    progress = min(1.0, (step - warmup_steps) / max(1, total_steps - warmup_steps))
    if decay == "cosine":
        return 0.5 * (1 + math.cos(math.pi * progress))
    return 1 - progress if decay == "linear" else 1.0
