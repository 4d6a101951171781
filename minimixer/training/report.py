"""Pictures of how a model learned, and of what it takes for what: curves.png, mistakes.png."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .files import replace_file
from .names import for_picture


def save_pictures(
    out: Path,
    history: list[dict[str, float]],
    images: Any,
    labels: np.ndarray,
    probabilities: np.ndarray,
    class_names: Sequence[str] | None = None,
) -> list[Path]:
    """Write curves.png and mistakes.png into `out`; their paths, or none without matplotlib.

    history        rows: "epoch" or "step" first, then train_loss and train_accuracy, and the same
                   of "test" or "val"
    images         N of uint8 (H, W, 1 or 3), taken by number, with labels (N,) and predicted
                   probabilities (N, K)
    """
    try:
        from matplotlib.figure import Figure
        from matplotlib.textpath import TextPath
    except ImportError:
        return []
    unit = next(iter(history[0]))
    times = [row[unit] for row in history]
    held_out = "test" if "test_loss" in history[0] else "val"
    curves = Figure(figsize=(9, 3.6), layout="constrained")
    for axes, name in zip(curves.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, label, style in (
            ("train", "train, mean since the last point", "o--"),
            (held_out, held_out, "s-"),
        ):
            axes.plot(times, [row[f"{part}_{name}"] for row in history], style, label=label)
        axes.set(xlabel=unit, ylabel=name)
        if len(times) < 20:
            axes.set_xticks(times)
        axes.grid(alpha=0.3)
        axes.legend()
    predicted = probabilities.argmax(axis=1)
    wrong = np.flatnonzero(predicted != labels)
    wrong = wrong[np.argsort(-probabilities[wrong, predicted[wrong]], kind="stable")][:24]
    mistakes = Figure(figsize=(12, 7.5), layout="constrained")
    mistakes.suptitle("the most confident mistakes")
    no_ticks: dict[str, Any] = {"xticks": [], "yticks": []}  # which would take half of the time
    places = mistakes.subplots(4, 6, subplot_kw=no_ticks)
    for axes, number in zip(places.flat, wrong, strict=False):
        image = images[number]
        axes.imshow(
            image if image.shape[2] == 3 else image[:, :, 0], cmap="gray_r", vmin=0, vmax=255
        )
        confidence = probabilities[number, predicted[number]]
        true, said = (
            for_picture(class_names[k] if class_names else k)
            for k in (labels[number], predicted[number])
        )
        lines = f"true: {true}", f"said: {said} ({confidence:.0%})"
        long = (TextPath((0, 0), line, size=10) for line in lines if len(line) > 13)
        width = max([135, *(path.get_extents().width for path in long)])  # of 144 for each
        axes.set_title("\n".join(lines), fontsize=10 * 135 / width)
    for axes in mistakes.axes:
        axes.axis("off")
    paths = []
    for name, figure in (("curves.png", curves), ("mistakes.png", mistakes)):
        with replace_file(out / name) as file:
            figure.savefig(file, format="png", dpi=130)
        paths.append(out / name)
    return paths
