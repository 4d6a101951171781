"""A small training run: the loss of every step, each epoch's mean, and the learning rate.

The loop is that of minimixer/training/loop.py, with the losses kept. float64, so that the picture
is the same on every machine.
"""

import numpy as np
from picture import Picture, n

from minimixer import AdamW, Mixer, data, schedule
from minimixer import functional as F
from minimixer.training.loop import accuracy

EPOCHS, BATCH, LR = 4, 64, 0.01


def run() -> tuple[np.ndarray, np.ndarray, int, float]:
    """(loss of each step, factor of lr, steps in an epoch, accuracy on 1,000 test images)"""
    images, labels, test_images, test_labels = data.load_mnist()
    model = Mixer(
        image_size=28, patch_size=7, in_channels=1, num_classes=10, num_blocks=2, hidden_dim=32,
        tokens_mlp_dim=16, channels_mlp_dim=64, dtype="float64",
    )  # fmt: skip
    batches = data.Batches(images[:4000], labels[:4000], BATCH, max_shift=1)
    optimizer = AdamW(model.parameters(), lr=LR, weight_decay=0.05)
    steps, losses, factors = EPOCHS * len(batches), [], []
    for epoch in range(EPOCHS):
        for batch, targets in batches.epoch(epoch):
            optimizer.lr_factor = schedule(len(losses), steps, warmup_steps=steps // 10)
            factors.append(optimizer.lr_factor)
            loss = F.cross_entropy(model(batch), targets)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
    model.eval()
    right = accuracy(model, test_images[:1000], test_labels[:1000])
    return np.array(losses), np.array(factors), len(batches), right


def draw() -> dict[str, str]:
    losses, factors, length, right = run()
    means = losses.reshape(EPOCHS, length).mean(axis=1)
    picture = Picture(
        372,
        f"The loss of {len(losses)} steps falls from log 10 = {losses[0]:.2f}, quickly and then "
        f"slowly, and jumps about from batch to batch. The means of {EPOCHS} epochs are "
        f"{', '.join(f'{m:.2f}' for m in means)}. Below: the learning rate grows for a tenth of "
        f"the steps, then falls to 0 along half a cosine. Of 1,000 test digits {right:.0%} are "
        "right in the end.",
    )
    left, right_edge = 48, 424
    x = np.linspace(left, right_edge, len(losses) + 1)
    top, bottom, low, base = 44, 236, 276, 334

    def height(loss):
        return bottom - (bottom - top) * np.asarray(loss) / 2.5

    for epoch in range(EPOCHS):
        start, stop = x[epoch * length], x[(epoch + 1) * length]
        if epoch % 2 == 0:
            picture.rect(start, top, stop - start, base - top, "shade")
        picture.text((start + stop) / 2, 362, f"epoch {epoch}", "small")
    for loss in (0, 1, 2):
        picture.path(f"M{left} {n(height(loss))}H{right_edge}", "thin")
        picture.text(left - 8, height(loss) + 5, str(loss), "small right")
    picture.text(220, 26, f"{len(losses)} steps of {BATCH} digits", "bold")
    picture.curve(x[1:], height(losses), "forth", opacity=0.7)
    for epoch, mean in enumerate(means):
        start, stop = x[epoch * length], x[(epoch + 1) * length]
        picture.path(f"M{n(start)} {n(height(mean))}H{n(stop)}", "back")
        picture.text((start + stop) / 2 + 14, height(mean) - 22, f"{mean:.2f}", "bold back halo")
    picture.text(x[30], height(losses[0]) + 1, "log 10 = 2.30: nothing learnt", "small left")
    picture.text(right_edge - 6, 106, f"{right:.0%} of test digits right", "right")
    picture.text(right_edge - 6, 130, "loss of a step", "forth right")
    picture.text(right_edge - 6, 149, "mean of an epoch", "back right")
    picture.path(f"M{left} {base}H{right_edge}", "thin")
    picture.curve(x[1:], base - (base - low) * factors, "mark")
    picture.text(right_edge - 6, low + 14, "learning rate", "mark right")
    picture.text(left - 8, low + 5, f"{LR:g}", "small right")
    picture.text(left - 8, base + 5, "0", "small right")
    return {"training.svg": picture.svg()}
