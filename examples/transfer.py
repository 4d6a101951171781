"""Does pretraining help? Few labels of new classes: a pretrained Mixer against one from scratch.

    python examples/transfer.py                              digits 0 to 4, then 5 to 9
    python examples/transfer.py --upstream DIR               another data set (IDX), then all digits

Pretrains once; then, for 10, 100 and 1000 labels in all, draws the labelled images ten times (as
many of each class) and trains on them twice, from the pretrained weights with a new head of zeros
and from new weights. Both get the same steps, batches and shifts, and their optimizer and learning
rate from the same sweep, on draws of their own, judged on training images that are held out. The
accuracy is on the test images of the new classes, after the last step. Writes transfer.csv, every
draw, and sweep.csv. What was stopped begins again.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np
from minimixer.optim import Optimizer
from tqdm import tqdm

from minimixer import SGD, AdamW, Mixer, backend, data, record, schedule
from minimixer import functional as F
from minimixer.backend import Purpose, random_bits
from minimixer.training.checkpoint import save_checkpoint
from minimixer.training.metrics import evaluate
from minimixer.training.names import printable
from support.options import Parser, run_script
from support.run_directory import claim, write_rows
from support.settings import SIZES, Between, Setting, Text, check_settings
from support.stopping import stop_signals
from train_mnist import SETTINGS as MNIST

# Pretraining is as in train_mnist.py on the CPU, but shorter.
PRETRAINED = {name: MNIST[name].default for name in SIZES}
BATCH_SIZE, LR = MNIST["batch_size"].default, MNIST["lr"].default
SETTINGS = {
    "upstream": Setting("", Text(), "directory of IDX files to pretrain on; default: MNIST's "
                        "digits 0 to 4"),
    "downstream": Setting("", Text(), "directory of IDX files for the labels; default: MNIST (its "
                          "digits 5 to 9)"),
    "epochs": Setting(4, Between(1), "of pretraining"),
    "draws": Setting(10, Between(2), "of the labelled images"),  # of one: no standard error
    "steps": Setting(200, Between(1), "of each fine-tuning, and of each training from scratch"),
    "batch_size": Setting(64, Between(1), "images a step, at most all that are labelled"),
    "seed": Setting(0, Between(0, 1 << 32), "weights, draws, order, shifts"),
}  # fmt: skip
LABELS = (10, 100, 1000)
SWEEP = [("sgd", 0.01), ("sgd", 0.03), ("sgd", 0.1), ("sgd", 0.3)]
SWEEP += [("adamw", 1e-3), ("adamw", 4e-3), ("adamw", 1e-2)]
SWEEP_DRAWS = 2
OUT = "runs/transfer"
HELD_OUT = 2000  # training images of the new classes that judge the sweep


@stop_signals()
def main() -> int:
    options = make_parser().parse_args()
    check_settings(options, SETTINGS)
    device = backend.check_device(options.device)
    out, lock = claim(options.out, OUT, options.overwrite)
    with lock:
        if not options.out and out != Path(OUT):
            print(f"results go to {out}: {OUT} has those of another run")
        compare(options, device, out)
    return 0


def compare(options: argparse.Namespace, device: str, out: Path) -> None:
    upstream = load(options.upstream, range(5))
    whole = options.upstream or options.downstream
    train_images, train_labels, test_images, test_labels = load(
        options.downstream, range(10) if whole else range(5, 10)
    )
    classes = data.num_classes(train_labels)
    held, rest = split(len(train_images), HELD_OUT, options.seed)
    left = np.bincount(train_labels[rest], minlength=classes)
    if left.min() < -(-max(LABELS) // classes):
        met = np.bincount(train_labels).tolist()
        raise ValueError(f"training images of the new classes: {met}; too few for {max(LABELS)} "
                         f"labels beside {HELD_OUT} to judge the sweep")  # fmt: skip
    held_out = train_images[held], train_labels[held]
    train_images, train_labels = train_images[rest], train_labels[rest]

    # ---- pretraining
    image_size, channels = train_images.shape[1:3], train_images.shape[3]
    if upstream[0].shape[1:] != train_images.shape[1:]:
        raise ValueError(f"images of {upstream[0].shape[1:]} and {train_images.shape[1:]}")
    new = dict(**PRETRAINED, image_size=image_size, in_channels=channels, seed=options.seed)
    pretrained = Mixer(**new, num_classes=data.num_classes(upstream[1])).to(device)
    steps = options.epochs * -(-len(upstream[0]) // BATCH_SIZE)
    train(pretrained, *upstream[:2], ("adamw", LR), steps, BATCH_SIZE, options.seed)
    print(f"pretrained on {len(upstream[0]):,} images: {accuracy(pretrained, *upstream[2:]):.2%}")
    save_checkpoint(out / "pretrained.npz", pretrained)
    body = {n: v for n, v in pretrained.state_dict().items() if not n.startswith("head.")}

    def start(method: str) -> Mixer:
        model = Mixer(**new, num_classes=classes)
        if method == "fine-tuned":
            model.load_state_dict(model.state_dict() | body)
        return model.to(device)

    def trained(method: str, labels: int, draw: int, setting: tuple[str, float]) -> Mixer:
        model = start(method)
        chosen = draw_labels(train_labels, labels, options.seed, draw)
        train(model, train_images[chosen], train_labels[chosen], setting, options.steps,
              options.batch_size, options.seed + draw)  # fmt: skip
        return model

    # ---- the sweep, on draws of its own
    methods, sweep = ("fine-tuned", "from scratch"), []
    cells = list(itertools.product(methods, LABELS))
    for (method, labels), setting in tqdm(list(itertools.product(cells, SWEEP)), "sweep"):
        found = [
            accuracy(trained(method, labels, 1000 + draw, setting), *held_out)
            for draw in range(SWEEP_DRAWS)
        ]
        sweep.append({"method": method, "labels": labels, "optimizer": setting[0],
                      "lr": setting[1], "accuracy": float(np.mean(found))})  # fmt: skip
    write_rows(out / "sweep.csv", sweep)
    best: dict[Any, Any] = {}
    for row in sorted(sweep, key=lambda row: row["accuracy"]):
        best[row["method"], row["labels"]] = row["optimizer"], row["lr"]

    # ---- the draws
    rows = []
    for (method, labels), draw in tqdm(list(itertools.product(cells, range(options.draws)))):
        model = trained(method, labels, draw, best[method, labels])
        rows.append({"method": method, "labels": labels, "draw": draw,
                     "accuracy": accuracy(model, test_images, test_labels)})  # fmt: skip
    write_rows(out / "transfer.csv", rows)

    # ---- report
    print(f"accuracy on {len(test_labels):,} images of {classes} new classes, and standard error "
          f"over {options.draws} draws")  # fmt: skip
    for method, labels in cells:
        of_cell = [r for r in rows if (r["method"], r["labels"]) == (method, labels)]
        found = np.array([row["accuracy"] for row in of_cell])
        error = found.std(ddof=1) / np.sqrt(len(found))
        optimizer, lr = best[method, labels]
        print(f"{labels:5} labels  {method:12}  {found.mean():7.2%} +- {error:.2%}"
              f"  ({optimizer}, lr {lr})")  # fmt: skip
    print(f"wrote {printable(out / 'transfer.csv')}, {printable(out / 'sweep.csv')}")


def train(
    model: Mixer, images: np.ndarray, labels: np.ndarray, setting: tuple[str, float], steps: int,
    batch_size: int, seed: int,
) -> None:  # fmt: skip
    """Train for so many steps, over and over the images: cosine after a tenth of warm-up, gradients
    of norm 1 at most, shifts of up to 2 pixels."""
    name, lr = setting
    optimizer: Optimizer = (
        SGD(model.parameters(), lr, momentum=0.9) if name == "sgd"
        else AdamW(model.parameters(), lr, weight_decay=MNIST["weight_decay"].default)
    )  # fmt: skip
    batches = data.Batches(images, labels, min(batch_size, len(images)), seed, max_shift=2)

    def step(images: Any, labels: Any) -> None:
        F.cross_entropy(model(images), labels).backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()

    step = record(step, model, optimizer)
    model.train()
    full = len(images) // batches.batch_size  # batches of an epoch; the rest waits for the next
    for number in range(steps):
        optimizer.lr_factor = schedule(number, steps, steps // 10)
        step(*batches.batch(*divmod(number, full)))


def accuracy(model: Mixer, images: np.ndarray, labels: np.ndarray) -> float:
    return evaluate(model, images, labels).accuracy


# ---- data ---------------------------------------------------------------------------------------


def load(directory: str, digits: range) -> tuple[np.ndarray, ...]:
    """Images and labels to train on, and to test on; of MNIST (no directory) these digits alone,
    their labels counted from 0."""
    if directory:
        return data.load_directory(directory)
    parts = []
    train_images, train_labels, test_images, test_labels = data.load_mnist()
    for images, labels in ((train_images, train_labels), (test_images, test_labels)):
        chosen = (labels >= digits.start) & (labels < digits.stop)
        parts += [images[chosen], labels[chosen] - digits.start]
    return tuple(parts)


def split(count: int, first: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`first` of the numbers below `count`, drawn at random, and the others."""
    order = np.argsort(random_bits(seed, Purpose.SHUFFLE, 0, 2, 0, np.arange(count)))
    return np.sort(order[:first]), np.sort(order[first:])


def draw_labels(labels: np.ndarray, count: int, seed: int, draw: int) -> np.ndarray:
    """`count` positions, as many of each class as goes: the first classes get what is left over."""
    order = np.argsort(random_bits(seed, Purpose.SHUFFLE, draw, 3, 0, np.arange(len(labels))))
    classes = int(labels.max()) + 1
    chosen = []
    for label in range(classes):
        size = count // classes + (label < count % classes)
        chosen.append(order[labels[order] == label][:size])
    return np.concatenate(chosen)


# ---- options ------------------------------------------------------------------------------------


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_device()
    parser.add_out(OUT)
    parser.add_settings(SETTINGS)
    return parser


if __name__ == "__main__":
    run_script(main, "transfer")
