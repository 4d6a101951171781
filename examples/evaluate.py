"""How good a Mixer is on labelled pictures.

    python examples/evaluate.py --weights mixer.npz --data pictures/     a folder for each class
    python examples/evaluate.py --weights mixer.npz --data DIR           IDX files, the test half

Of a folder that holds val/ with classes, that part is taken. Class folders are matched to the
names in the weights, or else by order. Writes metrics.json, per_class.csv and confusion.png.

The expected calibration error compares confidence (the probability of the predicted class) with
accuracy in 15 bins of equal width from 0 to 1: the mean of |accuracy - confidence| over the bins,
weighted by their pictures (Guo et al. 2017).
"""

import begin  # noqa: F401  isort: skip

import argparse
import csv
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
from options import positive, run_script
from predict import Failures, load_model, make_parser, predict, read_batches

from minimixer import Mixer, data
from minimixer.files import parse_json, read_file, replace_file
from minimixer.transfer.folders import find_images, import_pillow

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
    probabilities, labels, names, real, skipped = evaluate(model, options)

    # ---- metrics
    confusion = np.zeros((model.num_classes, model.num_classes), np.int64)
    np.add.at(confusion, (labels, probabilities.argmax(axis=1)), 1)
    counts, right = confusion.sum(axis=1), confusion.diagonal()
    metrics: dict[str, Any] = {
        "weights": options.weights, "data": options.data, "pictures": len(labels),
        "skipped": [list(entry) for entry in skipped],
        "top1": top_k(probabilities, labels, 1),
        "top5": top_k(probabilities, labels, 5) if model.num_classes >= 5 else None,
        "mean_per_class": float((right[counts > 0] / counts[counts > 0]).mean()),
        "expected_calibration_error": calibration_error(probabilities, labels),
        "calibration_bins": BINS,
    }  # fmt: skip
    if real is not None:
        metrics |= real_accuracy(probabilities, real)

    # ---- report
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow(["class", "name", "pictures", "right", "accuracy"])
    for k, name in enumerate(names):
        accuracy = right[k] / counts[k] if counts[k] else ""  # none is not the same as none right
        writer.writerow([k, name, counts[k], right[k], accuracy])
    files = {
        "metrics.json": (json.dumps(metrics, indent=2) + "\n").encode(),
        "per_class.csv": text.getvalue().encode(errors="backslashreplace"),
    }
    picture = draw_confusion(confusion, names)
    if picture is not None:
        files["confusion.png"] = picture
    for name, content in files.items():
        with replace_file(out / name) as file:
            file.write(content)
    report(metrics, names, counts, right)
    print(f"wrote {', '.join(str(out / name) for name in files)}")
    if picture is None:
        print("for a picture of the confusion matrix: pip install matplotlib", file=sys.stderr)
    return 0


def report(metrics: dict, names: list[str], counts: np.ndarray, right: np.ndarray) -> None:
    print(f"{metrics['pictures']:,} pictures, {len(metrics['skipped'])} skipped")
    print(f"top-1 accuracy              {metrics['top1']:.2%}")
    if metrics["top5"] is not None:
        print(f"top-5 accuracy              {metrics['top5']:.2%}")
    print(f"mean of classes' accuracies {metrics['mean_per_class']:.2%}")
    error = metrics["expected_calibration_error"]
    print(f"expected calibration error  {error:.4f} ({BINS} bins of equal width)")
    if "real" in metrics:
        shown = "none" if metrics["real"] is None else f"{metrics['real']:.2%}"
        print(f"ReaL accuracy               {shown} of {metrics['real_pictures']:,}")
    met = np.flatnonzero(counts)
    worst = met[np.argsort(right[met] / counts[met], kind="stable")][:10]
    print("per class:" if len(met) <= 10 else "the ten worst classes (per_class.csv has all):")
    for k in worst:
        print(f"  {right[k] / counts[k]:7.2%} of {counts[k]:6,}  {names[k]}")


# ---- data -> (probabilities (N, K), labels (N,), class names, ReaL's lists or None, skipped) ----

Evaluated = tuple[np.ndarray, np.ndarray, list[str], list[list[int]] | None, Failures]


def evaluate_idx(model: Mixer, options: argparse.Namespace) -> Evaluated:
    _, train_labels, images, labels = data.load_directory(options.data)
    if options.real:
        raise ValueError("--real goes by file names; pictures in IDX files have none")
    classes = data.num_classes(np.concatenate([train_labels, labels]))
    if classes != model.num_classes:
        raise ValueError(f"{options.data} has {classes} classes, the model {model.num_classes}")
    names = model.class_names or [str(k) for k in range(classes)]
    starts = range(0, len(images), options.batch_size)
    parts = [predict(model, images[i : i + options.batch_size]) for i in starts]
    return np.concatenate(parts), labels, names, None, []


def evaluate_folder(model: Mixer, options: argparse.Namespace) -> Evaluated:
    import_pillow()
    top = Path(options.data)
    # A class may be called val, too; it would hold pictures and no folders.
    if (top / "val").is_dir() and any(entry.is_dir() for entry in (top / "val").iterdir()):
        top = top / "val"
    paths, labels, folders = find_images(top)
    labels = match_classes(folders, model)[labels]
    real = read_real(options.real, paths, model.num_classes) if options.real else None
    parts, numbers, skipped = [], [], []
    for good, images, failed in read_batches(
        paths, model, options.batch_size, options.crop, options.workers
    ):
        for path, reason in failed:
            print(f"evaluate: skipped {path}: {reason}", file=sys.stderr)
        skipped += failed
        if good:
            numbers += good
            parts.append(predict(model, images))
    if not parts:
        raise ValueError(f"{top}: not one of {len(paths)} pictures could be read")
    lists = None if real is None else [real[n] for n in numbers]
    names = model.class_names or folders
    return np.concatenate(parts), labels[numbers], names, lists, skipped


def match_classes(folders: list[str], model: Mixer) -> np.ndarray:
    """The model's class number for each folder: by name if the model knows names, else by order."""
    if model.class_names is None:
        if len(folders) != model.num_classes:
            raise ValueError(f"{len(folders)} class folders, but the model has "
                             f"{model.num_classes} classes")  # fmt: skip
        return np.arange(len(folders))
    known = {name: k for k, name in enumerate(model.class_names)}
    if len(known) < model.num_classes:
        raise ValueError("the model has two classes of one name; folders can't be matched to them")
    only = {"folders": set(folders) - set(known), "the model's classes": set(known) - set(folders)}
    if any(only.values()):
        said = [f"only {who}: {', '.join(sorted(n)):.200}" for who, n in only.items() if n]
        raise ValueError(f"class folders and the model's class names differ; {'; '.join(said)}")
    return np.array([known[name] for name in folders])


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


def top_k(probabilities: np.ndarray, labels: np.ndarray, k: int) -> float:
    """The share of pictures whose class is among the k most probable; of equal ones, the first."""
    labels = labels[:, None]
    true = np.take_along_axis(probabilities, labels, axis=1)
    earlier = np.arange(probabilities.shape[1]) < labels
    better = (probabilities > true) | ((probabilities == true) & earlier)  # sorting takes 8x memory
    return float((better.sum(axis=1) < k).mean())


def calibration_error(probabilities: np.ndarray, labels: np.ndarray) -> float:
    confidence = probabilities.max(axis=1).astype(np.float64)
    right = probabilities.argmax(axis=1) == labels
    bins = np.clip(np.ceil(confidence * BINS).astype(int) - 1, 0, BINS - 1)  # (0, 1/15], ...
    gaps = np.bincount(bins, weights=right - confidence, minlength=BINS)  # n (accuracy - conf.)
    return float(abs(gaps).sum() / len(labels))


def real_accuracy(probabilities: np.ndarray, real: list[list[int]]) -> dict[str, Any]:
    predicted = probabilities.argmax(axis=1).tolist()
    hits = [p in entry for p, entry in zip(predicted, real, strict=True) if entry]
    return {"real": sum(hits) / len(hits) if hits else None, "real_pictures": len(hits)}


def draw_confusion(confusion: np.ndarray, names: list[str]) -> bytes | None:
    """A PNG of the rows' shares; None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    shares = confusion / confusion.sum(axis=1, keepdims=True).clip(1)
    figure = Figure(figsize=(8, 7), layout="constrained")
    axes = figure.subplots()
    figure.colorbar(axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest"))
    axes.set(xlabel="predicted", ylabel="true class", title="share of each true class")
    if len(names) <= 40:
        short = [name.encode(errors="replace").decode()[:24].replace("$", r"\$") for name in names]
        axes.set_xticks(range(len(names)), short, rotation=90)
        axes.set_yticks(range(len(names)), short)
    if len(names) <= 15:
        for (row, column), count in np.ndenumerate(confusion):
            colour = "white" if shares[row, column] > 0.5 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=130)
    return file.getvalue()


if __name__ == "__main__":
    run_script(main, "evaluate")
