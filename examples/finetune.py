"""Fine-tune a Mixer on your own pictures, probe what it knows, or train one from scratch.

    python examples/finetune.py --weights Mixer-B_16.npz --data pictures/
    python examples/finetune.py --weights Mixer-B_16.npz --data pictures/ --probe ridge --shots 5
    python examples/finetune.py --variant mixer_s32 --data pictures/
    mpirun -n 2 python examples/finetune.py ... --device cuda        two GPUs

DATA holds a folder of pictures for each class, or train/ and val/ with such folders; without val/,
a tenth of each class is held out. The defaults are the paper's recipes: for weights SGD with
momentum, a cosine after a warm-up, gradients of norm 1 at most, and a head of zeros; for a new
model (--variant) AdamW, a straight line, RandAugment, mixup and stochastic depth. Files that
can't be decoded are skipped, and listed in skipped.csv. Ctrl-C saves a checkpoint, and --resume
goes on from it; predict.py and evaluate.py read it.

--probe linear trains the head alone; --probe ridge trains nothing: finetuning/ridge.py.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import numpy as np
from minimixer.optim import Optimizer

from finetuning.ridge import check_shots, probe_ridge
from finetuning.setup import SIZES, find_data, fingerprint, make_model, tell_damaged, tell_data
from minimixer import SGD, AdamW, Mixer, Tensor, kernels, parallel, schedule
from minimixer import functional as F
from minimixer.parallel import World
from minimixer.pictures.augment import INTERPOLATIONS, mixup, mixup_share, one_hot
from minimixer.pictures.folders import Found, Skipped
from minimixer.pictures.loader import Loader, LoaderError
from minimixer.training.metrics import Metrics, correct
from minimixer.training.names import command, printable, some
from minimixer.training.report import save_pictures
from minimixer.weights.freeze import freeze
from minimixer.weights.probe import choose_shots
from support.options import Parser, check_choice, check_range, dashes, numbers, parse, run_script
from support.run import Run, on_each_rank, parts, set_precision
from support.stopping import say

SETTINGS = {
    "data": ("", "directory of pictures"),
    "weights": ("", ".npz of the authors', .safetensors of timm's, or a checkpoint of minimixer's"),
    "variant": ("", "a new model instead: mixer_s32, s16, b32, b16, l32, l16 or h14"),
    "image_size": (0, "side of what the model sees; 0: the weights' (new: 224), or K times that"),
    "patch_size": (0, "of a new model, if not the variant's"),
    "num_blocks": (0, "the same"),
    "hidden_dim": (0, "the same"),
    "tokens_mlp_dim": (0, "the same"),
    "channels_mlp_dim": (0, "the same"),
    "head": ("zero", "zero: a new one; keep: that of the weights, for the same classes"),
    "freeze": ("", "weights that stay as they are, by name: stem.*,blocks.0.*"),
    "probe": ("", "ridge or linear: what frozen features know"),
    "shots": (0, "train on so many pictures of each class, drawn by the seed; 0: all"),
    "draws": (3, "of the shots, for --probe ridge"),
    "strength": (1024.0, "of the ridge: its factor on squared weights"),
    "holdout": (0.1, "share of each class to validate on, where there is no val/"),
    "steps": (500, "training steps; the paper: 500 for Pets and Flowers, 20000 for ImageNet"),
    "batch_size": (512, "pictures a step, at most all of them"),
    "optimizer": ("sgd", "sgd or adamw"),
    "lr": (0.01, "learning rate at its highest; the paper tries 0.003 to 0.06; adamw wants less"),
    "momentum": (0.9, "of sgd"),
    "weight_decay": (0.0, "on matrices only"),
    "schedule": ("cosine", "learning rate after the warm-up: cosine, linear or constant"),
    "warmup": (0.1, "share of the steps in which the learning rate rises"),
    "clip": (1.0, "largest gradient norm; 0: no clipping"),
    "min_area": (0.05, "random crops have at least this share of a picture; 1: whole pictures"),
    "flip": (1, "1: left and right are swapped at random; 0: never, as for digits"),
    "randaugment": (0, "operations of RandAugment on each picture"),
    "magnitude": (15.0, "their strength: 10 is usual, the paper's are 10 to 20"),
    "mixup": (0.0, "p of the Beta distribution with which pictures are blended; 0: they are not"),
    "label_smoothing": (0.0, "share of each target that goes to all classes alike"),
    "stochastic_depth": (0.0, "probability of skipping the last block, less for those before it"),
    "accumulate": (1, "cut each batch into so many parts, for their gradients' sum: less memory"),
    "eval_every": (0, "steps between two validations; 0: ten in all"),
    "keep": ("last", "best: the weights of the best validation, too, in best.npz"),
    "patience": (0, "stop after so many validations without a better one; 0: never"),
    "precision": ("float32", "float32, tf32 (a GPU's), bfloat16 or float16"),
    "approximate": ("", "GELU's form, tanh or none, instead of the weights' own"),
    "mean": ("", "of the pixels, in units of their range: NUMBER[,NUMBER,NUMBER]"),
    "std": ("", "the same; instead of what the weights say"),
    "seed": (0, "new weights, order, crops, shots"),
}
NEW_MODEL = {
    "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.1, "schedule": "linear", "steps": 10000,
    "randaugment": 2, "mixup": 0.5, "stochastic_depth": 0.1,
}  # fmt: skip  # the paper's pretraining (its section 3), at a smaller scale
ON_GPU = {"precision": "bfloat16"}
COLUMNS = ("step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "waiting", "seconds",
           "images_per_second")  # fmt: skip
OUT = "runs/finetune"


def main() -> int:
    # Of one process, unless mpirun started several.
    with parallel.start(plain=(LoaderError,)) as world:
        options, given = parse(make_parser)
        with Run(options, given, SETTINGS, COLUMNS, OUT, world) as run:
            return finetune(run)


def finetune(run: Run) -> int:
    options, given, world = run.options, run.given, run.world
    if not options.resume:  # else they are those of the run; what was given comes before all
        defaults = NEW_MODEL if options.variant else {}
        defaults = defaults | (ON_GPU if options.device != "cpu" else {})
        for name in defaults.keys() - given:
            setattr(options, name, defaults[name])
    check_settings(options)
    device = world.use(options.device)
    if "workers" not in given:
        options.workers = max(1, options.workers // world.local_size)

    # ---- data, model, optimizer
    train, val, skipped = find_data(options)
    paths, labels, class_names = train
    tell_data(run, val, skipped)
    if options.shots:
        check_shots(train, options.shots)
    model = make_model(options, class_names, run).to(device)
    set_precision(model, options, given)
    if options.probe == "ridge":
        if world.size > 1:
            raise ValueError("--probe ridge is for one process: start it without mpirun")
        return probe_ridge(options, run, model, train, val)
    if options.shots:
        chosen = choose_shots(labels, options.shots, options.seed)
        paths, labels = [paths[i] for i in chosen], labels[chosen]
    frozen = [pattern for pattern in options.freeze.split(",") if pattern]
    frozen += ["stem.*", "blocks.*", "norm.*"] if options.probe == "linear" else []
    if frozen:
        freeze(model, *frozen)
    optimizer: Optimizer
    if options.optimizer == "sgd":
        optimizer = SGD(model.parameters(), options.lr, options.momentum,
                        weight_decay=options.weight_decay)  # fmt: skip
    else:
        optimizer = AdamW(model.parameters(), options.lr, weight_decay=options.weight_decay)
    every = options.eval_every or max(1, options.steps // 10)
    run.start(model, optimizer, options.steps, every, fingerprint(train, val))

    pictures = Loader(
        paths, labels, model.height, options.batch_size, options.seed, workers=options.workers,
        scale=(options.min_area, 1.0), layers=options.randaugment, magnitude=options.magnitude,
        flip=bool(options.flip), drop_last=True, part=(world.rank, world.size),
    )  # fmt: skip
    held_out = Loader(val[0], val[1], model.height, 64, train=False, workers=options.workers,
                      part=(world.rank, world.size),
                      interpolation=options.interpolation)  # fmt: skip
    batch_size = pictures.recipe.batch_size
    world.check_batch_size(batch_size)
    say(
        f"{len(paths):,} pictures of {len(class_names)} classes, {len(val[0]):,} to validate on; "
        f"Mixer with {model.num_parameters():,} parameters on {device}; {kernels.status()}; "
        f"{options.steps} steps of {batch_size}, {options.steps / len(pictures):.1f} epochs"
    )

    # ---- training
    # labels count what is right; the loss sees targets (B, K), smoothed and blended; share is an
    # array (1,), so that a recorded step can be given another.
    def train_step(images, labels, targets, share, *, count, first):
        """One step on a batch of `count` pictures, of which these are the ones from `first` on, in
        --accumulate parts: (their share of the mean loss, how many were right)."""
        if options.mixup and len(labels):  # of numbers that are no longer uint8
            images = mixup(model.convert(images).data, share)
            targets = mixup(targets, share)
        total, right = 0.0, 0
        for part in parts(len(labels), options.accumulate):
            model.random.start_at(first + part.start)
            logits = model(Tensor(images[part]) if options.mixup else images[part])
            loss = F.cross_entropy(logits, targets[part], reduction="sum") / count
            loss.backward()
            total += loss.detach()
            right += correct(logits.data, labels[part])
        world.sum_gradients(model)  # over all processes
        if options.clip:
            optimizer.clip_grad_norm(options.clip)
        optimizer.step()
        optimizer.zero_grad()
        return total, right

    if options.accumulate == 1:
        world.overlap(model)
    take_step = on_each_rank(train_step, model, optimizer, world, options.graph)
    warmup_steps = int(options.warmup * options.steps)
    total, done = options.steps * batch_size, run.step * batch_size
    validated: dict[int, Any] = {}  # logits and labels of the last validation, and of the best

    def validate():
        logits, true = validated[len(run.history)] = predict(model, held_out, world)
        found = Metrics(model.num_classes).add(logits, true)
        for old in validated.keys() - {len(run.history), run.reported}:
            del validated[old]
        waiting = run.progress["waited"] / max(1e-9, run.progress["seconds"])
        return {"val_loss": found.loss, "val_accuracy": found.accuracy, "waiting": waiting}

    found: Skipped = []
    barren = 0  # batches in a row of which nothing could be decoded
    try:
        with pictures, held_out, run.bar(total, done) as bar:
            batches = run.waiting(endless(pictures, run.step))
            for end in run.ends():
                bar.set_description_str(f"step {end}/{options.steps}")
                model.train()
                while run.step < end:
                    try:
                        images, labels = next(batches)
                    except LoaderError as error:
                        if not run.trained or world.size > 1:
                            raise
                        say(f"finetune: {error}", error=True)
                        run.stop()
                        return 2
                    counts = world.gather([len(labels)])[:, 0].astype(int)  # of all processes
                    if not counts.any():  # nothing of this batch could be decoded
                        run.skip()
                        bar.update(batch_size)
                        barren += 1
                        if world.size > 1 and barren >= len(pictures):  # a Loader sees its part
                            raise LoaderError("no picture could be decoded")
                        if run.interrupted:
                            return run.stop()
                        continue
                    barren = 0
                    optimizer.lr_factor = schedule(
                        run.step, options.steps, warmup_steps, options.schedule
                    )
                    share, seen = np.ones(1, np.float32), labels
                    if options.mixup:
                        share[0] = mixup_share(options.mixup, options.seed, run.step)
                        images, seen = with_previous(world, images, labels)
                    targets = one_hot(seen, len(class_names), options.label_smoothing)
                    run.add(counts.sum(), *take_step(counts, images, labels, targets, share))
                    bar.update(batch_size - counts.sum())  # what could not be decoded
                    if run.interrupted:
                        return run.stop()
                run.end_row(validate)
            batches.close()
            logits, true = validated.get(run.reported) or predict(  # --resume has seen nothing
                run.reported_model(), held_out, world
            )
            found = everyones(world, pictures.skipped + held_out.skipped)
            report(run, val, held_out, logits, true, len(skipped + found))
    finally:
        tell_damaged(run, skipped, found or pictures.skipped + held_out.skipped)
    return 0


def with_previous(
    world: World, images: np.ndarray, labels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Both with the example before the first of them in front: the last of the rank before, or
    further back where that has none; before the first of all comes the last of all."""
    ends = world.every((images[-1:], labels[-1:]))
    before = [ends[(world.rank - n) % world.size] for n in range(1, world.size + 1)]
    image, label = next(end for end in before if len(end[1]))
    return np.concatenate([image, images]), np.concatenate([label, labels])


def endless(pictures: Loader, step: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The batches of one epoch after another, from that of `step` on."""
    while True:
        epoch, start = divmod(step, len(pictures))
        yield from pictures.epoch(epoch, start)
        step = (epoch + 1) * len(pictures)


def everyones(world: World, skipped: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """What any process skipped, once."""
    return list(dict(entry for each in world.every(skipped) for entry in each).items())


def predict(model: Mixer, pictures: Loader, world: World) -> tuple[np.ndarray, np.ndarray]:
    """(logits (N, K), labels (N,)) of the pictures that can be decoded: every process looks at its
    part of each batch."""
    found = []
    for images, labels in pictures.epoch(0):
        some = model.predict_logits(images) if len(labels) else np.empty((0, model.num_classes))
        found.append((some, labels))
    batches = zip(*world.every(found), strict=True)  # in the order of the pictures
    in_order = [part for batch in batches for part in batch]
    logits, labels = (np.concatenate(arrays) for arrays in zip(*in_order, strict=True))
    if not len(labels):
        raise ValueError("not one picture to validate on could be decoded")
    return logits, labels


def report(
    run: Run, val: Found, held_out: Loader, logits: np.ndarray, labels: np.ndarray, skipped: int
) -> None:
    unread = {path for path, _ in everyones(run.world, held_out.skipped)}
    if run.world.rank:
        return
    run.write_metrics()
    shown = Pictures([path for path in val[0] if path not in unread], held_out)
    written = save_pictures(run.out, run.history, shown, labels, F.softmax(logits), val[2])
    seconds = sum(row["seconds"] for row in run.history)
    images = sum(row["images_per_second"] * row["seconds"] for row in run.history)
    waited = sum(row["waiting"] * row["seconds"] for row in run.history)
    missing = [val[2][k] for k in np.setdiff1d(val[1], labels)]
    if missing:
        say(f"finetune: no picture of {some(missing)} was validated on", error=True)
    row, files = run.history[run.reported], [run.checkpoint, run.out / "metrics.csv", *written]
    when = "after the last step"
    if run.keeps_best:
        when = f"after step {row['step']}, the best of {len(run.history)} validations"
        files.insert(0, run.best)
    if run.history[-1]["step"] < run.options.steps:
        say(f"ended before step {run.options.steps}: {run.options.patience} validations in a row "
            "were not better")  # fmt: skip
    say(
        f"accuracy {row['val_accuracy']:.2%} on {len(labels):,} pictures {when}\n"
        f"{run.step} steps in {seconds:.0f} s, {images / max(1e-9, seconds):,.1f} pictures/s, "
        f"of which {waited / max(1e-9, seconds):.0%} waiting for pictures; "
        f"{skipped} files skipped\n"
        f"wrote {', '.join(map(printable, files))}"
    )
    if not written:
        say("for pictures of the curves and the mistakes: pip install matplotlib, then "
            f"--resume --out {command([str(run.out)])}")  # fmt: skip


class Pictures:
    """Pictures as the model sees them, decoded when they are asked for: pictures[n]."""

    def __init__(self, paths: list[str], loader: Loader):
        self.paths, self.recipe = paths, loader.recipe

    def __getitem__(self, number: int) -> np.ndarray:
        return self.recipe.picture(self.paths[number], 0, 0)


# ---- options ------------------------------------------------------------------------------------


def make_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
    parser.add_out(OUT)
    parser.add_argument(
        "--workers", type=int, default=min(16, os.cpu_count() or 1),
        help="processes that decode; 0: the one that trains (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, default="bilinear",
        help="how pictures to validate on are made smaller (default: bilinear)",
    )  # fmt: skip
    parser.add_argument(
        "--graph", default="auto", choices=["auto", "on", "off"],
        help="CUDA graphs: record a training step and replay it (default: auto, on a GPU)",
    )  # fmt: skip
    parser.add_resume()
    notes = {name: f"new model: {value}" for name, value in NEW_MODEL.items()}
    parser.add_settings(SETTINGS, notes | {name: f"GPU: {v}" for name, v in ON_GPU.items()})
    return parser


def check_settings(options: argparse.Namespace) -> None:
    if not options.data:
        raise ValueError("--data: which directory holds the pictures?")
    if bool(options.weights) == bool(options.variant):
        raise ValueError("one of --weights (to fine-tune) and --variant (a new model) is needed")
    if options.weights and any(getattr(options, name) for name in SIZES):
        raise ValueError(f"{', '.join(map(dashes, SIZES))} are for a new model, not for --weights")
    check_range(options, "steps batch_size accumulate draws", 1, 1e9)
    check_range(options, "lr strength", 1e-12, 1e30)
    names = "image_size shots eval_every patience clip weight_decay workers"
    check_range(options, f"{names} {' '.join(SIZES)}", 0, np.inf)
    check_range(options, "seed", 0, 1 << 62)
    check_range(options, "magnitude randaugment", 0, 100)
    check_range(options, "warmup stochastic_depth label_smoothing flip", 0, 1)
    check_range(options, "min_area", 0.001, 1)
    check_range(options, "holdout", 0.001, 0.9)
    check_range(options, "mixup", 0, 2)
    check_choice(options, "schedule", "cosine", "linear", "constant")
    check_choice(options, "optimizer", "sgd", "adamw")
    check_choice(options, "head", "zero", "keep")
    check_choice(options, "keep", "last", "best")
    check_choice(options, "probe", "", "ridge", "linear")
    check_choice(options, "approximate", "", "tanh", "none")
    if options.head == "keep" and (options.variant or options.probe == "ridge"):
        raise ValueError("--head keep is for --weights that are trained on, not for a new model "
                         "nor --probe ridge")  # fmt: skip
    if options.probe == "ridge" and (options.freeze or options.patience or options.keep == "best"):
        raise ValueError("--freeze, --patience and --keep best: --probe ridge trains nothing")
    for name in ("mean", "std"):
        with contextlib.suppress(ValueError):
            numbers(getattr(options, name) or "0")
            continue
        raise ValueError(f"{dashes(name)} must be a number, or one for each channel")


if __name__ == "__main__":
    run_script(main, "finetune", "--accumulate needs less for the same result", (LoaderError,))
