"""A run that is stopped and resumed, with all that it needs and with one thing forgotten.

Everybody starts from one checkpoint, written in the middle of the second epoch. What differs in the
end is the largest difference of a weight from those of the run that was never stopped.
"""

import math
import tempfile
from pathlib import Path

import numpy as np
from picture import Picture

from minimixer import AdamW, Mixer, data, schedule
from minimixer import functional as F
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint

IMAGES, BATCH, EPOCHS, STOP = 1280, 64, 3, 30  # 20 steps an epoch: stopped after 10 of the second
FORGOTTEN = {
    "nothing": "nothing: all of it restored",
    "moments": "the optimizer's averages",
    "step": "the step: the schedule begins anew",
    "position": "the place in the epoch",
    "random": "the state of randomness: draws begin anew",
}


def start() -> tuple[Mixer, AdamW]:
    model = Mixer(
        image_size=28, patch_size=7, in_channels=1, num_classes=10, num_blocks=2, hidden_dim=16,
        tokens_mlp_dim=8, channels_mlp_dim=32, stochastic_depth=0.3, dtype="float64",
    )  # fmt: skip
    return model, AdamW(model.parameters(), lr=0.01, weight_decay=0.05)


def go_on(
    model: Mixer, optimizer: AdamW, step: int, stop: int, position: int | None = None
) -> None:
    """From `step` to `stop`. `position`: from where in the order of batches, if not from there."""
    images, labels, _, _ = data.load_mnist()
    batches = data.Batches(images[:IMAGES], labels[:IMAGES], BATCH, max_shift=1)
    total = EPOCHS * len(batches)
    position = step if position is None else position
    for place in range(position, position + stop - step):
        batch, targets = batches.batch(*divmod(place, len(batches)))
        optimizer.lr_factor = schedule(step, total, warmup_steps=total // 10)
        F.cross_entropy(model(batch), targets).backward()
        optimizer.step()
        optimizer.zero_grad()
        step += 1


def weights(model: Mixer) -> np.ndarray:
    return np.concatenate([p.data.ravel() for p in model.parameters()])


def differences() -> dict[str, float]:
    """By what was forgotten: the largest difference of a weight, at the end."""
    total = EPOCHS * IMAGES // BATCH
    straight, optimizer = start()
    go_on(straight, optimizer, 0, total)
    stopped, optimizer = start()
    go_on(stopped, optimizer, 0, STOP)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checkpoint.npz"
        save_checkpoint(path, stopped, optimizer, progress={"step": STOP})
        found = {}
        for what in FORGOTTEN:
            model, optimizer = start()
            step = load_checkpoint(path, model, optimizer)["step"]
            position = None
            if what == "moments":
                optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
            elif what == "random":
                model.random.set(step=0)
            elif what == "step":
                position, step = step, 0
            elif what == "position":
                position = 0
            go_on(model, optimizer, step, step + total - STOP, position)
            found[what] = float(abs(weights(model) - weights(straight)).max())
    return found


def draw() -> dict[str, str]:
    found = differences()
    assert found["nothing"] == 0
    picture = Picture(
        322,
        "A run stopped in the middle of its second epoch and resumed, with something forgotten; "
        "the largest difference of a weight in the end, beside a run that was never stopped: "
        + "; ".join(f"{words}, {found[what]:.2g}" for what, words in FORGOTTEN.items())
        + ".",
    )
    picture.text(220, 26, "resumed, and what was forgotten", "bold")
    picture.text(220, 46, "bars: the largest difference of a weight in the end", "small")
    largest = max(found.values())
    for place, (what, words) in enumerate(FORGOTTEN.items()):
        top, difference = 64 + 50 * place, found[what]
        picture.text(20, top + 14, words, "left")
        length = 330 * difference / largest
        kind = "minus" if what == "nothing" else "plus"
        picture.rect(20, top + 22, max(length, 2), 14, kind, 2)
        said = "exactly 0" if difference == 0 else f"{rounded(difference)}"
        picture.text(28 + length, top + 34, said, "bold left")
    return {"resuming.svg": picture.svg()}


def rounded(number: float) -> str:
    """Two digits."""
    return f"{number:.{max(0, 1 - math.floor(math.log10(number)))}f}"
