"""finetune.py --probe ridge: what frozen features know, without training.

From --shots pictures of each class, drawn --draws times, a linear classifier in closed form: the
paper's few-shot measure (its section 3). Writes probe.csv, and probe.npz: the model with the first
draw's classifier as its head, which predict.py and evaluate.py read.
"""

import argparse
import sys

import numpy as np

from minimixer import Mixer
from minimixer.pictures.folders import Found, tell_skipped
from minimixer.pictures.loader import Loader
from minimixer.training.checkpoint import save_checkpoint
from minimixer.training.metrics import Metrics
from minimixer.training.names import printable, some
from minimixer.weights.probe import choose_shots, pooled_features, ridge
from minimixer.weights.remake import remake
from support.run import Run
from support.run_directory import write_rows


def probe_ridge(
    options: argparse.Namespace, run: Run, model: Mixer, train: Found, val: Found
) -> int:
    class_names, rows, solved = train[2], [], []
    print(f"features of {len(train[0]):,} pictures, and of {len(val[0]):,} to validate on")
    features, labels, skipped = features_of(train, model, options)
    val_features, val_labels, more = features_of(val, model, options)
    if skipped + more:
        print(f"finetune: {tell_skipped(skipped + more)}", file=sys.stderr)
    for found, listed in ((labels, train[1]), (val_labels, val[1])):
        check_classes(found, listed, class_names)
    draws = options.draws if options.shots else 1
    for draw in range(draws):
        chosen = np.arange(len(labels))
        if options.shots:
            chosen = choose_shots(labels, options.shots, options.seed + draw)
        weight, bias = ridge(features[chosen], labels[chosen], len(class_names), options.strength)
        solved.append((weight, bias))
        scores = val_features @ weight + bias
        accuracy = Metrics(len(class_names)).add(scores, val_labels).accuracy
        rows.append({"draw": draw + 1, "pictures": len(chosen), "val_accuracy": accuracy})
        print(f"draw {draw + 1}, {len(chosen):,} pictures: {accuracy:.2%}")
    accuracies = np.array([row["val_accuracy"] for row in rows])
    text = f"accuracy {accuracies.mean():.2%}"
    if draws > 1:
        text += f", standard deviation {accuracies.std(ddof=1):.2%} over {draws} draws"
    print(f"{text}, on {len(val_labels):,} pictures; {len(skipped + more)} files skipped")

    weight, bias = solved[0]
    head = {"head.weight": weight, "head.bias": bias}
    whole = remake(
        model, model.state_dict() | head, num_classes=len(class_names), class_names=class_names
    )
    write_rows(run.out / "probe.csv", rows)
    save_checkpoint(run.out / "probe.npz", whole)
    print(f"wrote {printable(run.out / 'probe.csv')}, {printable(run.out / 'probe.npz')}")
    return 0


def check_shots(pictures: Found, shots: int) -> None:
    counts = np.bincount(pictures[1], minlength=len(pictures[2]))
    least = int(counts.argmin())
    if counts[least] < shots:
        raise ValueError(
            f"--shots {shots}: {printable(pictures[2][least])} has {counts[least]} pictures"
        )


def check_classes(labels: np.ndarray, listed: np.ndarray, class_names: list[str]) -> None:
    """ValueError if nothing of a class that is listed could be decoded: accuracy would mislead."""
    missing = [class_names[k] for k in np.setdiff1d(listed, labels)]
    if missing:
        raise ValueError(f"no picture of {some(missing)} can be decoded")


def features_of(
    pictures: Found, model: Mixer, options: argparse.Namespace
) -> tuple[np.ndarray, np.ndarray, list[tuple[str, str]]]:
    """(features (N, C), labels (N,), what was skipped) of the pictures that can be decoded."""
    paths, labels, _ = pictures
    with Loader(paths, labels, model.height, 64, train=False, workers=options.workers,
                interpolation=options.interpolation) as loader:  # fmt: skip
        found = [
            (pooled_features(model, images), batch)
            for images, batch in loader.epoch(0)
            if len(batch)
        ]
    features, kept = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
    return features, kept, loader.skipped
