"""What finetune.py starts from: the pictures, those that are held out, and the model."""

import argparse
import os
import zlib

import numpy as np
from options import numbers
from training import Run

from minimixer import Mixer
from minimixer.backend import Purpose, random_bits
from minimixer.transfer.folders import Found, find_splits
from minimixer.transfer.remake import remake

SIZES = ("patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


def find_data(options: argparse.Namespace) -> tuple[Found, Found]:
    """(train, val), each (paths, labels, class names); a held-out share where there is no val/."""
    train, val = find_splits(options.data)
    paths, labels, class_names = train
    if val is not None:
        return train, val
    order = np.argsort(random_bits(options.seed, Purpose.SHUFFLE, 0, 1, 0, np.arange(len(labels))))
    held = np.zeros(len(labels), dtype=bool)
    for label, name in enumerate(class_names):
        members = order[labels[order] == label]
        if len(members) < 2:
            raise ValueError(f"class {name} has 1 picture; it needs 2, one of them to hold out")
        count = round(options.holdout * len(members))
        held[members[: min(max(1, count), len(members) - 1)]] = True
    halves = []
    for chosen in (~held, held):
        halves.append(([paths[i] for i in np.flatnonzero(chosen)], labels[chosen], class_names))
    return halves[0], halves[1]


def fingerprint(*parts: Found) -> int:
    """A number that tells data sets apart: by names of files within their classes, and their sizes,
    not by place nor by all that is in them."""
    found = 0
    for paths, _, class_names in parts:
        names = ["/".join(path.split(os.sep)[-2:]) for path in paths]
        names += [str(os.path.getsize(path)) if os.path.isfile(path) else "" for path in paths]
        found = zlib.crc32("\0".join([*names, *class_names]).encode(errors="replace"), found)
    return found


def make_model(options: argparse.Namespace, class_names: list[str], run: Run) -> Mixer:
    """The model to train; for --probe ridge, one without a head."""
    if options.resume:  # the file is rank 0's
        return run.world.share(Mixer.load(run.checkpoint) if run.world.rank == 0 else None)
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
            theirs, ours = (", ".join(n)[:80] for n in (names or ["without names"], class_names))
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
