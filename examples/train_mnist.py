"""Train a Mixer on MNIST, or on any data set of IDX files.

    python examples/train_mnist.py                      the embedded MNIST, a few minutes on 2 cores
    python examples/train_mnist.py --device cuda        the same on a GPU
    python examples/train_mnist.py --data-dir DIR       Fashion-MNIST, KMNIST, your own

Ctrl-C saves a checkpoint; --resume goes on from it, to the same weights, bit for bit.
"""

import argparse
import csv
import io
import itertools
import shlex
import signal
import sys
import tempfile
import time
import zlib
from collections import deque
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from tqdm import tqdm

from minimixer import AdamW, Mixer, backend, data, fetch, record, schedule
from minimixer import functional as F
from minimixer.checkpoint import load_checkpoint, read_checkpoint, save_checkpoint
from minimixer.idx import replace_file
from minimixer.report import save_pictures

# Chosen on 5,000 held-out training images; the test set had no say.
SETTINGS = {
    "patch_size": (7, "P: side of a patch, a divisor of the image's height and width"),
    "num_blocks": (4, "N: Mixer blocks"),
    "hidden_dim": (96, "C: channels"),
    "tokens_mlp_dim": (32, "D_S: hidden units of the token-mixing MLP"),
    "channels_mlp_dim": (256, "D_C: hidden units of the channel-mixing MLP"),
    "epochs": (6, "passes over the training images"),
    "batch_size": (128, "images a step"),
    "lr": (4e-3, "learning rate at its highest"),
    "weight_decay": (0.05, "AdamW's decay, on matrices only"),
    "schedule": ("cosine", "learning rate after the warm-up: cosine, linear or constant"),
    "warmup": (0.1, "share of the steps in which the learning rate rises"),
    "stochastic_depth": (0.0, "probability of skipping the last block, less for those before it"),
    "max_shift": (1, "each image moves by up to so many pixels, anew in each epoch"),
    "accumulate": (1, "cut each batch into so many parts, for their gradients' sum: less memory"),
    "clip": (0.0, "largest gradient norm; 0: no clipping"),
    "precision": ("float32", "float32, tf32 (a GPU's), bfloat16 or float16"),
    "seed": (0, "initial weights, order of the images, shifts"),
    "limit_train": (0, "train on the first so many images only; 0: all"),
    "data_dir": (
        "",
        "directory of IDX files: train-images-idx3-ubyte, train-labels-idx1-ubyte, "
        "t10k-images-idx3-ubyte, t10k-labels-idx1-ubyte, each plain or .gz; default: the "
        "embedded MNIST",
    ),
}
# On a GPU, where a step takes half a millisecond: chosen in the same way.
GPU_SETTINGS = {
    "patch_size": 4, "hidden_dim": 96, "tokens_mlp_dim": 64, "channels_mlp_dim": 256, "epochs": 40,
    "stochastic_depth": 0.1, "max_shift": 2, "precision": "bfloat16",
}  # fmt: skip


def main() -> int:
    np.seterr(all="ignore")  # what is not finite is found below, and said once
    options, given = parse_arguments()
    out = Path(options.out)
    prepare_directory(out, options.resume)
    checkpoint = out / "checkpoint.npz"
    if options.resume:
        recall_settings(options, given, checkpoint)
    elif options.device != "cpu":
        for name in GPU_SETTINGS.keys() - given:
            setattr(options, name, GPU_SETTINGS[name])
    check_settings(options)
    device = backend.check_device(options.device)
    try:
        backend.check_precision(options.precision, device)
    except ValueError:
        if "precision" in given or options.resume:
            raise
        options.precision = "float32"  # an older GPU

    # ---- data, model, optimizer
    source = options.data_dir or "the embedded MNIST"
    load = (lambda: data.load_directory(source)) if options.data_dir else data.load_mnist
    train_images, train_labels, test_images, test_labels = load()
    if options.limit_train:
        train_images = train_images[: options.limit_train]
        train_labels = train_labels[: options.limit_train]
    classes = data.num_classes(np.concatenate([train_labels, test_labels]))
    fingerprint = 0
    for array in (train_images, train_labels, test_images, test_labels):
        fingerprint = zlib.crc32(array.tobytes(), fingerprint)

    model = (
        Mixer(
            image_size=train_images.shape[1:3],
            in_channels=train_images.shape[3],
            num_classes=classes,
            patch_size=options.patch_size,
            num_blocks=options.num_blocks,
            hidden_dim=options.hidden_dim,
            tokens_mlp_dim=options.tokens_mlp_dim,
            channels_mlp_dim=options.channels_mlp_dim,
            stochastic_depth=options.stochastic_depth,
            class_names=[str(label) for label in range(classes)],
            seed=options.seed,
            checkpoint_blocks=options.checkpoint_blocks,
        )
        .to(device)
        .set_precision(options.precision)
    )
    optimizer = AdamW(model.parameters(), lr=options.lr, weight_decay=options.weight_decay)
    batches = data.Batches(
        train_images, train_labels, options.batch_size, options.seed, options.max_shift
    )
    total_steps = options.epochs * len(batches)
    warmup_steps = int(options.warmup * total_steps)
    # All that a run needs, beyond weights and optimizer, to go on where it stopped.
    progress = {
        "settings": {name: getattr(options, name) for name in SETTINGS},
        "data": fingerprint,
        "epoch": 0, "batch": 0,  # the next one to train on
        "loss_sum": 0.0, "correct": 0, "seconds": 0.0,  # of the epoch so far
        "history": [],
    }  # fmt: skip
    if options.resume:
        progress = load_checkpoint(checkpoint, model, optimizer)
        if progress["data"] != fingerprint:
            raise ValueError(f"{source} holds other images than the run in {out} was trained on")

    print(
        f"{len(train_images):,} training images of {classes} classes from {source}; "
        f"Mixer with {model.num_parameters():,} parameters on {device}"
    )

    # ---- training
    def train_step(images, labels):
        """One step on a batch, in --accumulate parts: (mean loss, how many were right)."""
        total, right = 0.0, 0
        for part in parts(len(images), options.accumulate):
            model.random.start_at(part.start)
            logits = model(images[part])
            loss = F.cross_entropy(logits, labels[part], reduction="sum") / len(images)
            loss.backward()
            total += loss.detach()
            right += (logits.data.argmax(axis=1) == labels[part]).sum()
        if options.clip:
            optimizer.clip_grad_norm(options.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total, right

    train_step = record(train_step, model, optimizer, graph=options.graph)
    lag = 0 if device == "cpu" else 8
    stop = StopSignal()
    saved = options.resume  # is the checkpoint in `out` one of this run?
    images_done = progress["epoch"] * len(train_images) + seen_so_far(progress, batches)
    with tqdm(
        total=options.epochs * len(train_images), initial=images_done,
        unit="img", unit_scale=True, dynamic_ncols=True,
    ) as bar:  # fmt: skip
        for epoch in range(progress["epoch"], options.epochs):
            bar.set_description(f"epoch {epoch + 1}/{options.epochs}")
            started = time.perf_counter() - progress["seconds"]
            model.train()
            coming: deque = deque()  # steps whose results were not read yet
            for images, labels in batches.epoch(epoch, start=progress["batch"]):
                step = epoch * len(batches) + progress["batch"] + len(coming)
                optimizer.lr_factor = schedule(step, total_steps, warmup_steps, options.schedule)
                coming.append((step, len(labels), fetch(*train_step(images, labels))))
                # A GPU works on while Python prepares the next steps: results are read later.
                last = step + 1 == (epoch + 1) * len(batches)
                for step, size, loss, right in ready(coming, 0 if last or stop.requested else lag):
                    if not np.isfinite(loss):
                        what = f"the loss became {loss}"
                        raise ValueError(diverged(what, step, saved, checkpoint))
                    progress["batch"] += 1
                    progress["loss_sum"] += loss * size
                    progress["correct"] += int(right)
                    progress["seconds"] = time.perf_counter() - started
                    seen = seen_so_far(progress, batches)
                    bar.update(size)
                    bar.set_postfix(
                        loss=f"{progress['loss_sum'] / seen:.4f}",
                        accuracy=f"{progress['correct'] / seen:.2%}",
                        refresh=False,
                    )
                if stop.requested and not coming:
                    bar.close()
                    save_checkpoint(checkpoint, model, optimizer, progress)
                    again = [sys.argv[0], "--resume", "--out", str(out), "--device", options.device]
                    again += ["--graph", options.graph] * (options.graph != "auto")
                    again += ["--checkpoint-blocks"] * options.checkpoint_blocks
                    print(
                        f"stopped in epoch {epoch + 1} after step {step + 1} of {total_steps}, "
                        f"saved in {checkpoint}; to go on: python {shlex.join(again)}"
                    )
                    return 130

            test_loss, test_accuracy = evaluate(model, test_images, test_labels)
            progress["history"].append({
                "epoch": epoch + 1,
                "train_loss": progress["loss_sum"] / len(train_images),
                "train_accuracy": progress["correct"] / len(train_images),
                "test_loss": test_loss,
                "test_accuracy": test_accuracy,
                "seconds": progress["seconds"],
                "images_per_second": len(train_images) / progress["seconds"],
            })  # fmt: skip
            progress.update(epoch=epoch + 1, batch=0, loss_sum=0.0, correct=0, seconds=0.0)
            try:
                save_checkpoint(checkpoint, model, optimizer, progress)
            except ValueError as error:  # weights that are not finite
                last = (epoch + 1) * len(batches) - 1
                raise ValueError(diverged(str(error), last, saved, checkpoint)) from None
            saved = True
            write_metrics(out / "metrics.csv", progress["history"])

    # ---- report
    history = progress["history"]
    seconds = sum(row["seconds"] for row in history)
    write_metrics(out / "metrics.csv", history)
    probabilities = model.predict_proba(test_images)
    accuracy = (probabilities.argmax(axis=1) == test_labels).mean()
    pictures = save_pictures(out, history, test_images, test_labels, probabilities)
    rate = options.epochs * len(train_images) / seconds
    print(
        f"test accuracy {accuracy:.2%} on {len(test_labels):,} images after the last step\n"
        f"{options.epochs} epochs in {seconds:.0f} s, {rate:,.0f} images/s; "
        f"{model.num_parameters():,} parameters\n"
        f"wrote {', '.join(str(p) for p in [checkpoint, out / 'metrics.csv', *pictures])}"
    )
    if not pictures:
        print("for pictures of the curves and the mistakes: pip install matplotlib, then --resume")
    return 0


def parts(size: int, count: int) -> list[slice]:
    """`size` examples in `count` parts, as even as it goes; none is empty."""
    borders = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(borders) if a < b]


def ready(coming: deque, most: int) -> Iterator[tuple[int, int, float, float]]:
    """Take steps out of `coming`, oldest first, until at most so many are left: number, size and
    results of each."""
    while len(coming) > most:
        step, size, fetched = coming.popleft()
        loss, right = (float(value) for value in fetched.results())
        yield step, size, loss, right


def seen_so_far(progress: dict, batches: data.Batches) -> int:
    """Images of the current epoch that were trained on; its last batch may be smaller."""
    return min(progress["batch"] * batches.batch_size, len(batches.images))


def diverged(what: str, step: int, saved: bool, checkpoint: Path) -> str:
    kept = f"{checkpoint} keeps the last good epoch" if saved else "no epoch ended"
    return f"{what} at step {step + 1}; {kept}; try a lower --lr, or --clip 1"


def evaluate(model: Mixer, images: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """(mean loss, accuracy)"""
    # A GPU wants large pieces, the CPU's cache small ones.
    probabilities = model.predict_proba(images, 256 if model.device == "cpu" else 2000)
    true_class = probabilities[np.arange(len(labels)), labels].astype(np.float64)
    return float(-np.log(true_class.clip(1e-30)).mean()), float(
        (probabilities.argmax(axis=1) == labels).mean()
    )


def write_metrics(path: Path, history: list[dict]) -> None:
    text = io.StringIO()
    writer = csv.DictWriter(text, history[0])
    writer.writeheader()
    writer.writerows(history)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())


class StopSignal:
    """Ctrl-C takes effect between two steps, when weights and progress belong together.
    A second one stops at once."""

    def __init__(self):
        self.requested = False
        signal.signal(signal.SIGINT, self.note)
        signal.signal(signal.SIGTERM, self.note)

    def note(self, number, frame):
        self.requested = True
        signal.signal(number, signal.SIG_DFL)


# ---- options --------------------------------------------------------------------------------


class Parser(argparse.ArgumentParser):
    def error(self, message):
        self.exit(2, f"{self.prog}: {message}; see --help\n")


def make_parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_argument(
        "--out", default="runs/mnist", help="directory for results (default: runs/mnist)"
    )
    parser.add_argument(
        "--graph", default="auto", choices=["auto", "on", "off"],
        help="CUDA graphs: record a training step and replay it (default: auto, on a GPU)",
    )  # fmt: skip
    parser.add_argument(
        "--checkpoint-blocks", action="store_true",
        help="keep only each block's input for backward: less memory, more time, same results",
    )  # fmt: skip
    parser.add_argument(
        "--resume", action="store_true", help="go on with the run in --out, with its settings"
    )
    for name, (default, text) in SETTINGS.items():
        shown = "" if default == "" else f" (default: {default})"
        if name in GPU_SETTINGS:
            shown += f" (on a GPU: {GPU_SETTINGS[name]})"
        parser.add_argument(
            "--" + name.replace("_", "-"), type=type(default), default=default, help=text + shown
        )
    return parser


def parse_arguments() -> tuple[argparse.Namespace, set[str]]:
    """The options, and the names of those that were given."""
    options = make_parser().parse_args()
    bare = make_parser()
    bare.set_defaults(**dict.fromkeys(vars(options), None))
    return options, {name for name, value in vars(bare.parse_args()).items() if value is not None}


def check_settings(options: argparse.Namespace) -> None:
    for name in ("epochs", "batch_size", "lr", "patch_size", "num_blocks", "hidden_dim",
                 "tokens_mlp_dim", "channels_mlp_dim", "accumulate"):  # fmt: skip
        if not getattr(options, name) > 0:
            raise ValueError(f"--{name.replace('_', '-')} must be positive")
    for name in ("weight_decay", "max_shift", "clip", "seed", "limit_train", "stochastic_depth"):
        if not getattr(options, name) >= 0:
            raise ValueError(f"--{name.replace('_', '-')} must not be negative")
    if options.schedule not in ("cosine", "linear", "constant"):
        raise ValueError("--schedule must be cosine, linear or constant")
    if not 0 <= options.warmup <= 1:
        raise ValueError("--warmup must be from 0 to 1")


def prepare_directory(out: Path, resume: bool) -> None:
    """Find out before training whether results can be kept, and protect those of other runs."""
    checkpoint = out / "checkpoint.npz"
    if resume:
        if not checkpoint.is_file():
            raise ValueError(f"--resume: there is no {checkpoint}")
    elif checkpoint.exists():
        try:
            progress = read_checkpoint(checkpoint)[0]["progress"]
            unfinished = progress["epoch"] < progress["settings"]["epochs"]
        except (ValueError, KeyError, TypeError, OSError):
            raise ValueError(
                f"{checkpoint} is not from a run of this script; choose another --out to keep it"
            ) from None
        if unfinished:
            raise ValueError(
                f"{out} holds an unfinished run: --resume goes on with it, another --out keeps it"
            )
    out.mkdir(parents=True, exist_ok=True)
    if (out / "metrics.csv").is_dir():
        raise ValueError(f"{out / 'metrics.csv'} is a directory; choose another --out")
    with tempfile.TemporaryFile(dir=out):
        pass


def recall_settings(options: argparse.Namespace, given: set[str], checkpoint: Path) -> None:
    """Take the settings of the run to resume; ValueError if others were asked for."""
    progress = read_checkpoint(checkpoint)[0]["progress"]
    wanted = {"settings": dict, "data": int, "epoch": int, "batch": int, "loss_sum": float,
              "correct": int, "seconds": float, "history": list}  # fmt: skip
    if not isinstance(progress, dict) or any(
        not isinstance(progress.get(key), kind) for key, kind in wanted.items()
    ):
        raise ValueError(f"{checkpoint} was not written by this script")
    # What runs of older versions lack.
    older = {"precision": "float32", "accumulate": 1, "stochastic_depth": 0.0}
    stored = older | progress["settings"]
    for name in SETTINGS:
        if name not in stored:
            raise ValueError(f"{checkpoint} was not written by this script: it has no {name}")
        if name == "data_dir" and name in given:
            continue  # the data may have moved; its fingerprint tells whether it is the same
        if name in given and getattr(options, name) != stored[name]:
            raise ValueError(
                f"--{name.replace('_', '-')} is {stored[name]} in the run to resume; leave it out"
            )
        setattr(options, name, stored[name])


if __name__ == "__main__":
    try:
        sys.exit(main())
    except (ValueError, TypeError, OSError, MemoryError) as problem:
        text = "; ".join(line.strip() for line in str(problem).splitlines())
        if isinstance(problem, MemoryError):
            text = (
                "out of memory; --accumulate and --checkpoint-blocks need less for the same "
                f"result, a lower --batch-size or --hidden-dim as well: {text}"
            )
        print(f"train_mnist: {text}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("train_mnist: stopped before training began", file=sys.stderr)
        sys.exit(130)
