"""What finetune.py starts from: the pictures, those that are held out, and the model."""

import argparse
import os
import sys
from pathlib import Path

import numpy as np

from minimixer import Mixer
from minimixer.app.options import numbers
from minimixer.backend import Purpose, random_bits
from minimixer.pictures.folders import (
    TEST,
    Found,
    Skipped,
    find_split,
    find_splits,
    pictures_beside,
    tell_skipped,
    without_others,
)  # fmt: skip
from minimixer.training.names import escaped, printable, some
from minimixer.weights.remake import remake
from support.run import Run
from support.run_directory import write_rows
from support.settings import SIZES
from support.start import fingerprint


def find_data(options: argparse.Namespace) -> tuple[Found, Found, Skipped]:
    """(train, val, what can't be used), the first two (paths, labels, class names); a held-out
    share where there is no val/. ValueError if that leaves a class nothing to learn from, or if
    there is one class alone."""
    train, val = find_splits(options.data)
    if len(train[2]) == 1:
        raise ValueError(f"{options.data} has one class, {printable(train[2][0])}, and nothing to "
                         "tell it from; add a folder for each other class, or give that one, if "
                         "its folders are the classes")  # fmt: skip
    train, skipped = without_others(train)
    paths, labels, class_names = train
    if len(empty := np.setdiff1d(np.arange(len(class_names)), labels)):
        raise ValueError(f"no file of {some([class_names[k] for k in empty])} can be used, for "
                         f"instance {skipped[0][0]}: {skipped[0][1]}")  # fmt: skip
    if val is not None:
        val, more = without_others(val)
        if not val[0]:
            raise ValueError(f"no file to validate on can be used, for instance {more[0][0]}: "
                             f"{more[0][1]}")  # fmt: skip
        return train, val, skipped + more
    order = np.argsort(random_bits(options.seed, Purpose.SHUFFLE, 0, 1, 0, np.arange(len(labels))))
    held = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(class_names):
        members = order[labels[order] == label]
        if len(members) < 2:
            raise ValueError(f"class {printable(name)} has 1 picture; it needs 2, one of them to "
                             "hold out")  # fmt: skip
        count = round(options.holdout * len(members))
        held[members[: min(max(1, count), len(members) - 1)]] = True
    halves = []
    for chosen in (~held, held):
        halves.append(([paths[i] for i in np.flatnonzero(chosen)], labels[chosen], class_names))
    return halves[0], halves[1], skipped


def tell_data(run: Run, val: Found, skipped: Skipped) -> None:
    """Say what one should know of the pictures before training."""
    notes = []
    split = find_split(run.options.data)
    for part in split or [Path(run.options.data)]:
        if beside := pictures_beside(part):
            notes.append(f"not used, as they are of no class: {some(beside)} in {part}")
    if split and split[1].name.lower() in TEST:
        notes.append(f"validates on {split[1]}, as there is no val/; what is chosen by it is no "
                     "longer tested by it")  # fmt: skip
    missing = [name for k, name in enumerate(val[2]) if k not in val[1]]
    if missing:
        notes.append(f"no pictures of {some(missing)} to validate on")
    if skipped:
        notes.append(tell_skipped(skipped))
    for note in notes if run.world.rank == 0 else ():
        print(f"finetune: {printable(note, 2000)}", file=sys.stderr)


def tell_damaged(run: Run, skipped: Skipped, damaged: Skipped) -> None:
    """Say what could not be decoded, and keep a list of all that was not used: skipped.csv."""
    if damaged:
        print(f"finetune: {tell_skipped(damaged)}", file=sys.stderr)
    if (skipped or damaged) and run.world.rank == 0:
        write_rows(run.out / "skipped.csv", [
            {"file": escaped(path), "reason": escaped(why)} for path, why in skipped + damaged
        ])  # fmt: skip


def data_number(*parts: Found) -> int:
    """A number that tells data sets apart: by names of files within their classes, and their sizes,
    not by place nor by all that is in them."""
    texts = []
    for paths, _, class_names in parts:
        names = ["/".join(path.split(os.sep)[-2:]) for path in paths]
        names += [str(os.path.getsize(path)) if os.path.isfile(path) else "" for path in paths]
        texts.append("\0".join([*names, *class_names]).encode(errors="surrogatepass"))
    return fingerprint(*texts)


def make_model(options: argparse.Namespace, class_names: list[str], run: Run) -> Mixer:
    """The model to train; for --probe ridge, one without a head."""
    if options.resume:
        return run.stored_model(run.checkpoint)
    classes = 0 if options.probe == "ridge" else len(class_names)
    own = {"mean": options.mean, "std": options.std, "approximate": options.approximate}
    own = {name: numbers(text) if name != "approximate" else text
           for name, text in own.items() if text}  # fmt: skip
    if options.variant:
        sizes = {name: getattr(options, name) for name in SIZES if getattr(options, name)}
        sizes["image_size"] = options.image_size or 224
        return Mixer.from_name(
            options.variant, num_classes=classes, class_names=class_names if classes else None,
            seed=options.seed, stochastic_depth=options.stochastic_depth, **sizes, **own,
        )  # fmt: skip
    keep = options.head == "keep"
    model = Mixer.from_pretrained(
        options.weights, num_classes=None if keep else classes, in_channels=3, **own
    )
    state = model.state_dict()
    if keep:  # whose classes may come in another order than the folders
        names = model.class_names or (class_names if model.num_classes == classes else [])
        if sorted(names) != sorted(class_names):
            theirs, ours = (some(n, 10) for n in (names or ["without names"], class_names))
            raise ValueError(f"--head keep: it is for {model.num_classes} classes, {theirs}; the "
                             f"folders are {ours}")  # fmt: skip
        order = [names.index(name) for name in class_names]
        for name in ("head.weight", "head.bias"):
            state[name] = state[name][..., order]
    model = remake(model, state, stochastic_depth=options.stochastic_depth,
                   class_names=class_names if classes else None)  # fmt: skip
    model.random.seed = options.seed
    if options.image_size:
        model = model.resize(options.image_size)
    if model.height != model.width:
        raise ValueError(f"{options.weights} is for {model.height} x {model.width}, not square")
    return model
