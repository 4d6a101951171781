"""finetune.py's settings, and its command line.

The defaults are the paper's recipes: for weights that of its fine-tuning (table 1); with --variant
that of its pretraining (section 3), at a smaller scale. What train_mnist.py has too is as it is
there.
"""

import argparse
import contextlib
import os

from minimixer.app.options import numbers
from minimixer.pictures.augment import INTERPOLATIONS
from support.options import Parser
from support.settings import SIZES, Between, OneOf, Setting, Text, dashes
from train_mnist import SETTINGS as MNIST

SETTINGS = {
    "data": Setting("", Text(), "directory of pictures"),
    "weights": Setting("", Text(), ".npz of the authors', .safetensors of timm's, or a checkpoint "
                       "of minimixer's"),
    "variant": Setting("", Text(), "a new model instead: mixer_s32, s16, b32, b16, l32, l16 or "
                       "h14"),
    "image_size": Setting(0, Between(0), "side of what the model sees; 0: the weights' (new: 224), "
                          "or K times that"),
    "patch_size": Setting(0, Between(0), "of a new model, if not the variant's"),
    "num_blocks": Setting(0, Between(0), "the same"),
    "hidden_dim": Setting(0, Between(0), "the same"),
    "tokens_mlp_dim": Setting(0, Between(0), "the same"),
    "channels_mlp_dim": Setting(0, Between(0), "the same"),
    "head": Setting("zero", OneOf("zero", "keep"), "zero: a new one; keep: that of the weights, "
                    "for the same classes"),
    "freeze": Setting("", Text(), "weights that stay as they are, by name: stem.*,blocks.0.*"),
    "probe": Setting("", OneOf("", "ridge", "linear"), "ridge or linear: what frozen features "
                     "know"),
    "shots": Setting(0, Between(0), "train on so many pictures of each class, drawn by the seed; "
                     "0: all"),
    "draws": Setting(3, Between(1, 1e9), "of the shots, for --probe ridge"),
    "strength": Setting(1024.0, Between(1e-12, 1e30), "of the ridge: its factor on squared "
                        "weights"),
    "holdout": Setting(0.1, Between(0.001, 0.9), "share of each class to validate on, where there "
                       "is no val/"),
    "steps": Setting(500, Between(1, 1e9), "training steps; the paper: 500 for Pets and Flowers, "
                     "20000 for ImageNet", new_model=10000),
    "batch_size": Setting(512, Between(1, 1e9), "pictures a step, at most all of them"),
    "optimizer": Setting("sgd", OneOf("sgd", "adamw"), "sgd or adamw", new_model="adamw"),
    "lr": Setting(0.01, Between(1e-12, 1e30), "learning rate at its highest; the paper tries 0.003 "
                  "to 0.06; adamw wants less", new_model=1e-3),
    "momentum": Setting(0.9, Between(0, 1), "of sgd"),
    "weight_decay": Setting(0.0, Between(0), "on matrices only", new_model=0.1),
    "schedule": MNIST["schedule"].but(new_model="linear"),
    "warmup": MNIST["warmup"],
    "clip": MNIST["clip"].but(default=1.0),
    "min_area": Setting(0.05, Between(0.001, 1), "random crops have at least this share of a "
                        "picture; 1: whole pictures"),
    "flip": Setting(1, Between(0, 1), "1: left and right are swapped at random; 0: never, as for "
                    "digits"),
    "randaugment": Setting(0, Between(0, 100), "operations of RandAugment on each picture",
                           new_model=2),
    "magnitude": Setting(15.0, Between(0, 100), "their strength: 10 is usual, the paper's are 10 "
                         "to 20"),
    "mixup": Setting(0.0, Between(0, 2), "p of the Beta distribution with which pictures are "
                     "blended; 0: they are not", new_model=0.5),
    "label_smoothing": Setting(0.0, Between(0, 1), "share of each target that goes to all classes "
                               "alike"),
    "stochastic_depth": MNIST["stochastic_depth"].but(on_gpu=None, new_model=0.1),
    "accumulate": MNIST["accumulate"],
    "eval_every": Setting(0, Between(0), "steps between two validations; 0: ten in all"),
    "keep": Setting("last", OneOf("last", "best"), "best: the weights of the best validation, too, "
                    "in best.npz"),
    "patience": Setting(0, Between(0), "stop after so many validations without a better one; "
                        "0: never"),
    "precision": MNIST["precision"],
    "approximate": Setting("", OneOf("", "tanh", "none"), "GELU's form, tanh or none, instead of "
                           "the weights' own"),
    "mean": Setting("", Text(), "of the pixels, in units of their range: NUMBER[,NUMBER,NUMBER]"),
    "std": Setting("", Text(), "the same; instead of what the weights say"),
    "seed": Setting(0, Between(0, 1 << 62), "new weights, order, crops, shots"),
}  # fmt: skip
OUT = "runs/finetune"


def parser_for(description: str | None) -> Parser:
    parser = Parser(description=description)
    parser.add_device()
    parser.add_out(OUT)
    parser.add_argument(
        "--workers", type=int, default=min(16, os.cpu_count() or 1),
        help="processes that decode; 0: the one that trains (default: %(default)s)",
    )  # fmt: skip
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, default="bilinear",
        help="how pictures to validate on are made smaller (default: bilinear)",
    )  # fmt: skip
    parser.add_graph()
    parser.add_resume()
    parser.add_settings(SETTINGS)
    return parser


def check_together(options: argparse.Namespace) -> None:
    """ValueError if something is missing, or does not go with the rest."""
    if not options.data:
        raise ValueError("--data: which directory holds the pictures?")
    if bool(options.weights) == bool(options.variant):
        raise ValueError("one of --weights (to fine-tune) and --variant (a new model) is needed")
    if options.weights and any(getattr(options, name) for name in SIZES):
        raise ValueError(f"{', '.join(map(dashes, SIZES))} are for a new model, not for --weights")
    if options.workers < 0:
        raise ValueError("--workers must be at least 0")
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
