"""The model that options name, and the options that say how it sees pictures."""

import argparse

from ..engine.devices import check_device
from ..model.mixer import Mixer
from .options import Parser, numbers, positive, share

NO_ANSWER = "the model answers with NaN: its weights, --mean or --std are extreme"


def load_model(options: argparse.Namespace) -> Mixer:
    """ValueError for options that contradict each other, or weights that can't be read."""
    from ..weights.remake import remake

    device = check_device(options.device)
    model = Mixer.from_pretrained(
        options.weights, approximate=options.approximate, mean=options.mean, std=options.std
    )
    if options.prepare is not None:
        model = remake(model, preparation=None if options.prepare == "none" else options.prepare)
    if model.preparation and options.crop is not None:
        raise ValueError("--crop is for pictures taken as they are: add --prepare none")
    return model.to(device)


def make_parser(
    description: str | None, weights: str | None = None, prog: str | None = None
) -> Parser:
    """What options predicting and evaluating have in common; `weights` are those by default."""
    from ..pictures.augment import INTERPOLATIONS

    parser = Parser(description=description, prog=prog)
    parser.add_argument(
        "--weights", required=weights is None, default=weights,
        help=".npz or .safetensors" + (" (default: minimixer's own digits)" if weights else ""),
    )  # fmt: skip
    parser.add_device()
    parser.add_argument(
        "--batch-size", type=positive, default=64, help="pictures at a time (default: 64)"
    )
    parser.add_argument(
        "--crop", type=share,
        help="share of each picture that the model sees (default: 0.875; grey models: 1)",
    )  # fmt: skip
    parser.add_argument(
        "--prepare", choices=("digit", "none"),
        help="make pictures like MNIST's digits, or take them as they are (default: digit for "
        "models trained on the embedded MNIST, else none)",
    )  # fmt: skip
    parser.add_argument(
        "--interpolation", choices=INTERPOLATIONS, default="bilinear",
        help="how pictures are made smaller (default: bilinear; the authors' weights: bicubic)",
    )  # fmt: skip
    for name in ("mean", "std"):
        parser.add_argument(
            f"--{name}", type=numbers, metavar="NUMBER[,NUMBER...]",
            help="of the pixels, in units of their range, instead of what the weights say",
        )  # fmt: skip
    parser.add_argument(
        "--approximate", choices=("tanh", "none"), help="GELU's form, instead of the weights' own"
    )
    return parser
