"""How good a Mixer is on labelled pictures.

    python examples/evaluate.py --weights mixer.npz --data pictures/     a folder for each class
    python examples/evaluate.py --weights mixer.npz --data DIR           IDX files, the test half

Of a folder that holds val/ (or valid/, validation/, else test/) with classes, that part is taken.
Class folders are matched to the names in the weights, of which some may be missing, or else by
order. Writes metrics.json, per_class.csv and confusion.png.

The expected calibration error compares confidence (the probability of the predicted class) with
accuracy in 15 bins of equal width from 0 to 1: the mean of |accuracy - confidence| over the bins,
weighted by their pictures (Guo et al. 2017).
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from minimixer.functional import softmax

from minimixer import Mixer, data
from minimixer.app.model import NO_ANSWER, load_model, make_parser
from minimixer.app.options import positive
from minimixer.pictures.folders import (
    TEST,
    TRAIN,
    VAL,
    Found,
    class_folders,
    find_images,
    find_part,
    import_pillow,
    pictures_beside,
    tell_skipped,
)  # fmt: skip
from minimixer.pictures.reading import Failures, read_batches
from minimixer.training.files import parse_json, read_file, replace_file
from minimixer.training.metrics import Metrics
from minimixer.training.names import distinct, escaped, for_picture, printable, some
from support.options import run_script

BINS = 15
MOST_CELLS = 1 << 27  # of the confusion matrix: more classes than 11,585 would fill the memory


def main() -> int:
    parser = make_parser(__doc__)
    parser.add_argument("--data", required=True, help="directory of class folders or of IDX files")
    parser.add_argument(
        "--out", default="runs/evaluate", help="directory for results (default: runs/evaluate)"
    )
    parser.add_argument(
        "--real", metavar="FILE",
        help="ImageNet-ReaL's JSON: for each picture, in the order of file names, a list of the "
        "model's class numbers that are right",
    )  # fmt: skip
    parser.add_argument(
        "--workers", type=positive, default=min(4, os.cpu_count() or 1),
        help="threads that decode pictures (default: 4, or fewer on a smaller machine)",
    )  # fmt: skip
    options = parser.parse_args()
    model, out = load_model(options), Path(options.out)
    out.mkdir(parents=True, exist_ok=True)
    if model.num_classes**2 > MOST_CELLS:
        raise ValueError(f"{model.num_classes} classes are too many for a confusion matrix")
    is_idx = any("-ubyte" in name for name in os.listdir(options.data))
    evaluate = evaluate_idx if is_idx else evaluate_folder
    logits, labels, names, real, skipped = evaluate(model, options)

    # ---- metrics
    answered = np.isfinite(logits).all(axis=1)
    if not answered.any():
        raise ValueError(NO_ANSWER)
    logits[~answered] = np.nan  # wrong for Metrics; and they belong nowhere else
    found = Metrics(model.num_classes)
    for i in range(0, len(labels), 1024):
        found.add(logits[i : i + 1024], labels[i : i + 1024])
    confusion = np.zeros((model.num_classes, model.num_classes), np.int64)
    np.add.at(confusion, (labels[answered], logits[answered].argmax(axis=1)), 1)
    metrics: dict[str, Any] = {
        "weights": options.weights, "data": options.data, "pictures": len(labels),
        "skipped": [list(entry) for entry in skipped],
        "without_answer": int((~answered).sum()),
        "top1": found.accuracy,
        "top5": found.top(5) if model.num_classes >= 5 else None,
        "mean_per_class": float(np.nanmean(found.per_class)),
        "expected_calibration_error": calibration_error(softmax(logits[answered]),
                                                        labels[answered]),
        "calibration_bins": BINS,
    }  # fmt: skip
    if real is not None:
        metrics |= real_accuracy(logits, real)

    # ---- report
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "name", "pictures", "right", "accuracy"])
    counts, right = found.class_counts.astype(int), found.class_right.astype(int)
    for k, name in enumerate(names):
        accuracy = found.per_class[k] if counts[k] else ""  # none is not the same as none right
        writer.writerow([k, escaped(name), counts[k], right[k], accuracy])
    files = {
        "metrics.json": (json.dumps(metrics, indent=2) + "\n").encode(),
        "per_class.csv": text.getvalue().encode(),
    }
    picture = draw_confusion(confusion, names)
    if picture is not None:
        files["confusion.png"] = picture
    for name, content in files.items():
        with replace_file(out / name) as file:
            file.write(content)
    report(metrics, distinct(names), counts, found.per_class)
    print(f"wrote {', '.join(printable(out / name) for name in files)}")
    if picture is None:
        print("for a picture of the confusion matrix: pip install matplotlib", file=sys.stderr)
    return 0


def report(metrics: dict, names: list[str], counts: np.ndarray, accuracies: np.ndarray) -> None:
    print(f"{metrics['pictures']:,} pictures, {len(metrics['skipped'])} skipped")
    if metrics["without_answer"]:
        print(f"NaN for {metrics['without_answer']:,} pictures, which count as wrong")
    met = np.flatnonzero(counts)
    if len(met) == 1:
        print(f"all are of one class, {names[met[0]]}: this says nothing of the others")
    elif len(met) < len(names):
        print(f"no pictures of {some([names[k] for k in np.flatnonzero(counts == 0)])}")
    print(f"top-1 accuracy              {metrics['top1']:.2%}")
    if metrics["top5"] is not None:
        print(f"top-5 accuracy              {metrics['top5']:.2%}")
    print(f"mean of classes' accuracies {metrics['mean_per_class']:.2%}")
    error = metrics["expected_calibration_error"]
    print(f"expected calibration error  {error:.4f} ({BINS} bins of equal width)")
    if "real" in metrics:
        shown = "none" if metrics["real"] is None else f"{metrics['real']:.2%}"
        print(f"ReaL accuracy               {shown} of {metrics['real_pictures']:,}")
    worst = met[np.argsort(accuracies[met], kind="stable")][:10]
    print("per class:" if len(met) <= 10 else "the ten worst classes (per_class.csv has all):")
    for k in worst:
        print(f"  {accuracies[k]:7.2%} of {counts[k]:6,}  {names[k]}")


# ---- data -> (logits (N, K), labels (N,), class names, ReaL's lists or None, skipped) ----------

Evaluated = tuple[np.ndarray, np.ndarray, list[str], list[list[int]] | None, Failures]


def evaluate_idx(model: Mixer, options: argparse.Namespace) -> Evaluated:
    *_, images, labels = data.load_directory(options.data)
    if options.real:
        raise ValueError("--real goes by file names; pictures in IDX files have none")
    if labels.max() >= model.num_classes:
        raise ValueError(f"{options.data} has a label {labels.max()}, but the model "
                         f"{model.num_classes} classes, from 0 on")  # fmt: skip
    names = model.class_names or [str(k) for k in range(model.num_classes)]
    return model.predict_logits(images, options.batch_size), labels, names, None, []


def evaluate_folder(model: Mixer, options: argparse.Namespace) -> Evaluated:
    import_pillow()
    top = Path(options.data)
    part = find_part(top, VAL, TEST)
    if part is not None:
        print(f"evaluates on {printable(part)}")
    elif train := find_part(top, TRAIN):
        raise ValueError(f"{top} holds {train.name} but no val; give {train} to evaluate on that")
    if beside := pictures_beside(part or top):
        print(f"evaluate: not used, as they are of no class: {some(beside)} in "
              f"{printable(part or top)}", file=sys.stderr)  # fmt: skip
    paths, labels, names = pictures_of(part or top, model)
    real = read_real(options.real, paths, model.num_classes) if options.real else None
    parts, numbers, skipped = [], [], []
    for good, images, failed in read_batches(
        paths, model, options.batch_size, options.crop, options.workers, options.interpolation
    ):
        skipped += failed
        if good:
            numbers += good
            parts.append(model.predict_logits(images, len(images)))
    if skipped:
        print(f"evaluate: {tell_skipped(skipped)}", file=sys.stderr)
    if not parts:
        raise ValueError(f"{part or top}: not one of {len(paths)} pictures could be read")
    lists = None if real is None else [real[n] for n in numbers]
    return np.concatenate(parts), labels[numbers], names, lists, skipped


def pictures_of(top: Path, model: Mixer) -> Found:
    """The model's class names say which folder is which, and some may be missing; without names
    the folders come in its classes' order, and each must be there, if only empty."""
    if model.class_names is None:
        folders = class_folders(top)
        if len(folders) != model.num_classes:
            raise ValueError(
                f"{len(folders)} class folders, but the model has {model.num_classes} classes, and "
                "no names of them that would tell which are here"
            )
        return find_images(top, folders)
    if len(set(model.class_names)) < model.num_classes:
        raise ValueError("the model has two classes of one name; folders can't be matched to them")
    return find_images(top, model.class_names)


def read_real(file: str, paths: list[str], num_classes: int) -> list[list[int]]:
    """ReaL's lists, in the order of `paths`."""
    names = [os.path.basename(path) for path in paths]
    if len(set(names)) < len(names):
        raise ValueError("--real goes by file names, but here two pictures have the same one")
    try:
        lists = parse_json(read_file(file))
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    if not isinstance(lists, list) or not all(isinstance(entry, list) for entry in lists):
        raise ValueError(f"{file} is not a list of lists of class numbers")
    if len(lists) != len(paths):
        raise ValueError(f"{file} has {len(lists)} lists, but there are {len(paths)} pictures")
    for entry in lists:
        for k in entry:
            if type(k) is not int or not 0 <= k < num_classes:
                raise ValueError(f"{file} has {k!r:.40}, not a class from 0 to {num_classes - 1}")
    place = {name: position for position, name in enumerate(sorted(names))}
    return [lists[place[name]] for name in names]


# ---- metrics ------------------------------------------------------------------------------------


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], ...
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)  # n (accuracy - conf.)
    return float(abs(gaps).sum() / len(labels))


def real_accuracy(logits: np.ndarray, real: list[list[int]]) -> dict[str, Any]:
    predicted = logits.argmax(axis=1)
    predicted[np.isnan(logits).any(axis=1)] = -1  # which no list has
    hits = [p in entry for p, entry in zip(predicted.tolist(), real, strict=True) if entry]
    return {"real": sum(hits) / len(hits) if hits else None, "real_pictures": len(hits)}


def draw_confusion(confusion: np.ndarray, names: list[str]) -> bytes | None:
    """A PNG of the rows' shares, nothing in those of classes without pictures; None without
    matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    counts = confusion.sum(axis=1, keepdims=True)
    shares = np.where(counts > 0, confusion / counts.clip(1), np.nan)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest"))
    axes.set(xlabel="predicted", ylabel="true class", title="share of each true class")
    if len(names) <= 40:
        short = [for_picture(name, 32) for name in distinct(names, 24)]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
    if len(names) <= 15:
        for (row, column), count in np.ndenumerate(confusion):
            if counts[row]:
                colour = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=colour)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


if __name__ == "__main__":
    run_script(main, "evaluate")
