"""The options of compare.py, and what they may be."""

import argparse
import math
import os
from typing import Any

from comparison.models import COMPARED, FAMILIES, SIZES
from minimixer.training.names import printable
from support.options import Parser

LEAST_STEPS = 24
SWEEP_SEED = 100  # of runs that choose a rate: none of --seeds, the same for few and for many
OF_ONE_FIGURE = {"decades": ("counts", "probes", "shots", "draws", "tune", "untrained"),
                 "scaling": ("shares",), "weights": ("weights", "block")}  # fmt: skip
SECONDS = 30.0  # of training, by default with --equal seconds


def at_edge(rate: float, rates: list[float]) -> bool:
    """Might one that was not tried, beyond them, have been better?

    >>> at_edge(0.01, [0.001, 0.01]), at_edge(0.01, [0.01]), at_edge(0.01, [0.001, 0.01, 0.1])
    (True, False, False)
    """
    return len(rates) > 1 and rate in (min(rates), max(rates))


def listed(kind: Any, least: float = -math.inf) -> Any:
    """A type of option: values separated by commas, none of them twice."""

    def read(text: str) -> list[Any]:
        try:
            values = [kind(part) for part in text.split(",")]
        except ValueError:
            raise argparse.ArgumentTypeError(
                f"wants values of type {kind.__name__} separated by commas, got {text}"
            ) from None
        if len(set(values)) < len(values) or (
            kind is not str and not all(least <= v < math.inf for v in values)
        ):
            raise argparse.ArgumentTypeError(f"values must differ and suit, got {text}")
        return values

    return read


def make_parser(description: str, figures: list[str]) -> Parser:
    parser = Parser(description=description)
    add = parser.add_argument
    add("--data", default="mnist", help="what to train on (default: mnist)")
    add("--upstream", help="pretrain on this, with --downstream")
    add("--downstream", help="and fine-tune on that")
    add("--examples", type=int, default=0, help="labelled images to fine-tune on (default: all)")
    add("--fine-steps", type=int, default=0, help="of fine-tuning (default: a quarter)")
    add("--fine-lrs", type=listed(float, 1e-9), default=[0.003, 0.01, 0.03, 0.06, 0.1, 0.3],
        help="rates tried in fine-tuning (default: 0.003,0.01,0.03,0.06,0.1,0.3)")  # fmt: skip
    add("--image-size", type=int, default=64, help="of pictures from folders (default: 64)")
    add("--figure", type=listed(str), default=["table"],
        help=f"of {', '.join(figures)} (default: table)")  # fmt: skip
    parser.add_device()
    add("--out", default="runs/compare", help="directory for results (default: runs/compare)")
    add("--models", type=listed(str), default=COMPARED,
        help=f"of {','.join(FAMILIES)} (default: {','.join(COMPARED)})")  # fmt: skip
    add("--sizes", type=listed(str), help=f"of {','.join(SIZES)} (default: tiny; GPU: small)")
    add("--seeds", type=listed(int, 0), default=[0, 1, 2], help="three at least (default: 0,1,2)")
    add("--equal", choices=("steps", "flops", "seconds"), default="steps",
        help="what all models get as much of (default: steps)")  # fmt: skip
    add("--budget", type=float, help="so many steps, 10^12 operations (default: what the Mixer "
        f"needs for the usual steps) or seconds (default: {SECONDS:g})")  # fmt: skip
    add("--batch-size", type=int, default=0, help="images a step (default: the size's)")
    add("--precision", choices=("float32", "tf32"), default="float32",
        help="of products; tf32 is a GPU's (default: float32)")  # fmt: skip
    add("--max-shift", type=int, default=1, help="of training images, in pixels (default: 1)")
    add("--lrs", type=listed(float, 1e-9), default=[3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 0.1],
        help="learning rates tried (default: 0.0003,0.001,0.003,0.01,0.03,0.1)")  # fmt: skip
    add("--shares", type=listed(float, 0), default=[3.0, 10.0, 30.0, 100.0],
        help="per cent of the training images, for scaling (default: 3,10,30,100)")  # fmt: skip
    add("--counts", type=listed(float, 22), default=[1e4, 1e5, 1e6],
        help="letters to pretrain on, for decades (default: 1e4,1e5,1e6)")  # fmt: skip
    add("--probes", type=listed(str), default=["mnist"],
        help="what decades asks about, with commas (default: mnist)")  # fmt: skip
    add("--shots", type=int, default=10, help="pictures a class for that (default: 10)")
    add("--draws", type=int, default=5, help="of these pictures (default: 5)")
    add(
        "--tune",
        action="store_true",
        help="fine-tune on the probes too, at both ends: --fine-steps (default: 500)",
    )
    add("--untrained", action="store_true", help="ask the probes of fresh models too")
    add("--colour", action="store_true", help="images as 32 x 32 x 3, grey ones repeated")
    add("--weights", help="checkpoint to draw (default: the Mixer of the table)")
    add("--block", type=int, default=0, help="whose hidden units to draw (default: 0, the first)")
    add("--again", metavar="CELL", help="compute this file of OUT/cells anew, and compare")
    add("--no-wait", action="store_true",
        help="leave to others with this OUT what they are at, and what is timed alone")  # fmt: skip
    add("--cell-minutes", type=float, default=8, help="of training, at most (default: 8)")
    return parser


def check_options(options: argparse.Namespace, figures: list[str]) -> None:
    """ValueError, in one sentence, before anything is computed."""
    options.sizes = options.sizes or ["tiny" if options.device == "cpu" else "small"]
    for name, there in (("models", FAMILIES), ("sizes", SIZES), ("figure", figures)):
        unknown = [value for value in getattr(options, name) if value not in there]
        if unknown:
            raise ValueError(f"--{name} {unknown[0]}: choose from {', '.join(there)}")
    for size in options.sizes:
        for name in options.models:
            if name not in SIZES[size]:
                raise ValueError(f"--models {name}: there is no {name} of --sizes {size}")
    if options.precision == "tf32" and options.device == "cpu":
        raise ValueError("--precision tf32 is a GPU's; leave it out on the CPU")
    if len(options.seeds) < 3:
        raise ValueError("--seeds: a spread needs three seeds at least")
    if max(options.counts) > 1e8 or any(count != int(count) for count in options.counts):
        raise ValueError("--counts must be whole numbers from 22 to 1e8, each of them once")
    if min(options.shots, options.draws) < 1:
        raise ValueError("--shots and --draws must be 1 or more")
    for name in ("examples", "fine_steps", "batch_size", "max_shift", "block"):
        if not 0 <= getattr(options, name) < 1 << 31:
            raise ValueError(f"--{name.replace('_', '-')} must be 0 or more")
    if not 2 <= options.image_size <= 1024:
        raise ValueError("--image-size must be from 2 to 1024")
    least = LEAST_STEPS if options.equal == "steps" else 0
    if options.budget is not None and not (least <= options.budget < 1e9 and options.budget > 0):
        raise ValueError(f"--budget must be positive, and at least {LEAST_STEPS} steps")
    if not 0 < min(options.shares) <= max(options.shares) <= 100:
        raise ValueError("--shares must be above 0 and 100 at most")
    if 0 < options.fine_steps < LEAST_STEPS:
        raise ValueError(f"--fine-steps must be {LEAST_STEPS} at least")
    if (options.upstream is None) != (options.downstream is None):
        raise ValueError("--upstream and --downstream go together")
    if options.again and not (options.again.endswith(".json")
                              and os.path.basename(options.again) == options.again):  # fmt: skip
        raise ValueError(f"--again {printable(options.again)}: give the name of a .json file of "
                         "OUT/cells, without a folder")  # fmt: skip
    if not 0 < options.cell_minutes < math.inf:
        raise ValueError("--cell-minutes must be positive")
    if not options.upstream and (options.examples or (options.fine_steps and not options.tune)):
        raise ValueError("--examples and --fine-steps are of --upstream and --downstream")
    if options.upstream and options.figure != ["table"]:
        raise ValueError("--upstream has a table alone, no figures")
    usual = make_parser("", figures)
    for figure, names in OF_ONE_FIGURE.items():
        for name in names:
            if figure not in options.figure and getattr(options, name) != usual.get_default(name):
                raise ValueError(f"--{name} is of --figure {figure}")
