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

from collections.abc import Iterator
from typing import Any

import numpy as np
from minimixer.optim import Optimizer

from finetuning.ridge import check_shots, probe_ridge
from finetuning.settings import OUT, SETTINGS, check_together, parser_for
from finetuning.setup import data_number, find_data, make_model, tell_damaged, tell_data
from minimixer import SGD, AdamW, Mixer, Tensor, kernels, parallel, schedule
from minimixer import functional as F
from minimixer.parallel import World
from minimixer.pictures.augment import mixup, mixup_share, one_hot
from minimixer.pictures.folders import Found, Skipped
from minimixer.pictures.loader import Loader, LoaderError
from minimixer.training.metrics import Metrics, correct
from minimixer.training.names import some
from minimixer.weights.freeze import freeze
from minimixer.weights.probe import choose_shots
from support.options import Parser, parse, run_script
from support.run import Run
from support.start import prepare, set_precision
from support.steps import SharedStep, parts
from support.stopping import say


def main() -> int:
    # Of one process, unless mpirun started several.
    with parallel.start(plain=(LoaderError,)) as world:
        options, given = parse(make_parser)
        with Run(options, given, SETTINGS, world, OUT, "step", "val", waits=True) as run:
            return finetune(run)


def finetune(run: Run) -> int:
    options, world = run.options, run.world
    check_together(options)
    device = prepare(run, *(["new_model"] if options.variant else []))
    if "workers" not in run.given:
        options.workers = max(1, options.workers // world.local_size)

    # ---- data, model, optimizer
    train, val, skipped = find_data(options)
    paths, labels, class_names = train
    tell_data(run, val, skipped)
    if options.shots:
        check_shots(train, options.shots)
    model = make_model(options, class_names, run).to(device)
    set_precision(run, model)
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
    run.start(model, optimizer, options.steps, every, data_number(train, val))

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

    take_step = SharedStep(train_step, model, optimizer, world, options)
    warmup_steps = int(options.warmup * options.steps)
    total, done = options.steps * batch_size, run.step * batch_size
    validated: dict[int, Any] = {}  # logits and labels of the last validation, and of the best

    def validate():
        logits, true = validated[len(run.history)] = predict(model, held_out, world)
        for old in validated.keys() - {len(run.history), run.reported}:
            del validated[old]
        return Metrics(model.num_classes).add(logits, true)

    found: Skipped = []
    barren = 0  # batches in a row of which nothing could be decoded
    try:
        with pictures, held_out, run.bar(total, done) as bar:
            batches = run.waiting(endless(pictures, run.step))
            for _, end in run.rows():
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
    waited = sum(row["waiting"] * row["seconds"] for row in run.history)
    missing = [val[2][k] for k in np.setdiff1d(val[1], labels)]
    if missing:
        say(f"finetune: no picture of {some(missing)} was validated on", error=True)
    row = run.history[run.reported]
    when = "after the last step"
    if run.keeps_best:
        when = f"after step {row['step']}, the best of {len(run.history)} validations"
    if run.history[-1]["step"] < run.options.steps:
        say(f"ended before step {run.options.steps}: {run.options.patience} validations in a row "
            "were not better")  # fmt: skip
    shown = Pictures([path for path in val[0] if path not in unread], held_out)
    run.report(
        f"accuracy {row['val_accuracy']:.2%} on {len(labels):,} pictures {when}\n"
        f"{run.step} steps in {run.seconds:.0f} s, {run.rate:,.1f} pictures/s, "
        f"of which {waited / max(1e-9, run.seconds):.0%} waiting for pictures; "
        f"{skipped} files skipped",
        shown, labels, F.softmax(logits), val[2],
    )  # fmt: skip


class Pictures:
    """Pictures as the model sees them, decoded when they are asked for: pictures[n]."""

    def __init__(self, paths: list[str], loader: Loader):
        self.paths, self.recipe = paths, loader.recipe

    def __getitem__(self, number: int) -> np.ndarray:
        return self.recipe.picture(self.paths[number], 0, 0)


def make_parser() -> Parser:
    return parser_for(__doc__)


if __name__ == "__main__":
    run_script(main, "finetune", "--accumulate needs less for the same result", (LoaderError,))
