"""What a Mixer sees in pictures: the most probable classes of each.

    python examples/predict.py my_digit.png                  with the model that comes with us
    python examples/predict.py --weights mixer.npz cat.jpg holiday/
    python examples/predict.py --weights mixer.safetensors --names imagenet.txt *.jpg

Weights: a checkpoint of minimixer's, the authors' .npz or timm's .safetensors; without them
"digits", trained on MNIST. For models of MNIST's digits a picture is first made like theirs: cut to
the digit, light on dark, in the middle (--prepare none: not). Of a directory, all its pictures. A
file that can't be read is named and skipped. Exit status: 0; 1 if not one picture could be read; 2
for wrong options or weights.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import contextlib
import io
import os
import sys
import warnings
from collections.abc import Iterator, Sequence

import numpy as np
from minimixer.data import start_threads

from minimixer import Mixer, backend
from minimixer.pictures.augment import INTERPOLATIONS, resize, resize_crop
from minimixer.pictures.digits import read_digit
from minimixer.pictures.folders import (  # fmt: skip
    BadPicture,
    decode,
    import_pillow,
    is_picture,
    tell_skipped,
)
from minimixer.training.checkpoint import BUILT_IN
from minimixer.training.files import read_file
from minimixer.training.names import distinct, printable
from minimixer.weights.remake import remake
from support.options import Parser, numbers, positive, run_script, share

Failures = list[tuple[str, str]]  # (path, why)


def main() -> int:
    parser = make_parser(__doc__, str(BUILT_IN["digits"]))
    parser.add_argument("images", nargs="+", metavar="image", help="a picture, or a directory")
    parser.add_argument("--top", type=positive, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--names", metavar="FILE", help="class names, one per line; default: the checkpoint's"
    )
    options = parser.parse_args()
    import_pillow()
    if options.weights == parser.get_default("weights"):
        print("predict: no --weights, so the pictures are taken for digits", file=sys.stderr)
    model = load_model(options)
    names = distinct(class_names(model, options.names))
    paths, failures = find_pictures(options.images)
    total = len(paths) + len(failures)
    for good, images, failed in read_batches(
        paths, model, options.batch_size, options.crop, interpolation=options.interpolation
    ):
        failures += failed
        if not good:
            continue
        probabilities = predict(model, images)
        for number, row in zip(good, probabilities, strict=True):
            print(printable(paths[number], 4096))
            for k in np.argsort(-row, kind="stable")[: options.top]:  # of equal ones, the first
                print(f"  {row[k]:7.2%}  {names[k]}")
    sys.stdout.flush()
    if failures:
        print(f"predict: {tell_skipped(failures)}", file=sys.stderr)
        print(f"predict: {len(failures)} of {total} could not be read", file=sys.stderr)
    return 1 if len(failures) == total else 0


# ---- models, names, probabilities ---------------------------------------------------------------


def load_model(options: argparse.Namespace) -> Mixer:
    device = backend.check_device(options.device)
    model = Mixer.from_pretrained(
        options.weights, approximate=options.approximate, mean=options.mean, std=options.std
    )
    if options.prepare is not None:
        model = remake(model, preparation=None if options.prepare == "none" else options.prepare)
    if model.preparation and options.crop is not None:
        raise ValueError("--crop is for pictures taken as they are: add --prepare none")
    return model.to(device)


def class_names(model: Mixer, file: str | None) -> list[str]:
    if file is None:
        return model.class_names or [f"class {k}" for k in range(model.num_classes)]
    try:
        text = read_file(file).decode("utf-8-sig")
    except UnicodeDecodeError:
        raise ValueError(f"{file} is not text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from None
    names = [line.strip() for line in io.StringIO(text, newline=None)]
    while names and not names[-1]:
        names.pop()
    if len(names) != model.num_classes:
        raise ValueError(f"{file} has {len(names)} names, the model {model.num_classes} classes")
    return names


def predict(model: Mixer, images: np.ndarray) -> np.ndarray:
    """Probabilities (B, K) of one batch; ValueError if they are no numbers."""
    probabilities = model.predict_proba(images, batch_size=len(images))
    if not np.isfinite(probabilities).all():
        raise ValueError("the model answers with NaN: its weights, --mean or --std are extreme")
    return probabilities


# ---- pictures -----------------------------------------------------------------------------------


def find_pictures(arguments: Sequence[str]) -> tuple[list[str], Failures]:
    """(files, failures): what was named, and of directories the pictures at any depth, sorted."""
    paths: list[str] = []
    failures: Failures = []

    def note(error: OSError) -> None:
        failures.append((str(error.filename), f"it can't be read ({error.strerror})"))

    for argument in arguments:
        if not os.path.isdir(argument):
            paths.append(argument)  # whatever it is called; reading it will tell
            continue
        found, before = [], len(failures)
        for folder, folders, files in os.walk(argument, onerror=note):
            folders[:] = [name for name in folders if not name.startswith(".")]
            found += [os.path.join(folder, name) for name in files if is_picture(name)]
        if not found and len(failures) == before:
            failures.append((argument, "it has no pictures"))
        paths += sorted(found)
    return paths, failures


def read_picture(
    path: str, model: Mixer, crop: float | None = None, interpolation: str = "bilinear"
) -> np.ndarray:
    """uint8 (H, W, in_channels), the centre of the picture. BadPicture if it can't be decoded.

    A model of MNIST's digits gets the digit instead, prepared; BadPicture if there is none.

    `crop`: the share of the picture's height, or of its width if that is scarcer, that remains.
    By default 224/256, as in fine-tuning; for grey models 1, as they learned from whole images.
    """
    if model.preparation == "digit":
        return read_digit(path)[..., None]
    height, width = model.height, model.width
    image = decode(path, max(height, width) * 8 // 7 + 1)
    if crop is None and model.in_channels == 1:
        crop = 1.0
    if crop is None and height == width:
        image = resize_crop(image, height, interpolation)
    else:
        share = 224 / 256 if crop is None else crop
        side = share * min(image.width / width, image.height / height)  # of one pixel of ours
        w, h = side * width, side * height
        left, top = max(0.0, (image.width - w) / 2), max(0.0, (image.height - h) / 2)
        box = (left, top, min(left + w, image.width), min(top + h, image.height))
        image = resize(image, (width, height), box, interpolation)
    array = np.asarray(image.convert("L") if model.in_channels == 1 else image)
    return array.reshape(height, width, -1)


def read_batches(
    paths: Sequence[str],
    model: Mixer,
    batch_size: int,
    crop: float | None = None,
    threads: int = 2,
    interpolation: str = "bilinear",
) -> Iterator[tuple[list[int], np.ndarray, Failures]]:
    """Batches of pictures: (numbers of those that could be read, their pixels, failures).

    Threads are enough here, as Pillow decodes without holding Python's lock; they read one batch
    ahead of the model.
    """
    if model.in_channels not in (1, 3):
        raise ValueError(f"pictures have 1 or 3 channels; this model wants {model.in_channels}")
    warnings.simplefilter("ignore")  # decode does so for itself, but threads share the filters

    def attempt(path: str) -> np.ndarray | BadPicture:
        try:
            return read_picture(path, model, crop, interpolation)
        except BadPicture as error:
            return error

    pool = start_threads(threads)
    each = pool.map if pool else map
    with pool or contextlib.nullcontext():
        coming = each(attempt, paths[:batch_size])
        for start in range(0, len(paths), batch_size):
            now, after = coming, start + batch_size
            coming = each(attempt, paths[after : after + batch_size])
            found = list(enumerate(now, start))
            good = [(number, item) for number, item in found if isinstance(item, np.ndarray)]
            yield (
                [number for number, _ in good],
                np.array([item for _, item in good]),
                [(paths[n], str(item)) for n, item in found if isinstance(item, BadPicture)],
            )


# ---- options ------------------------------------------------------------------------------------


def make_parser(description: str | None, weights: str | None = None) -> Parser:
    """The options that predict.py and evaluate.py have in common; the weights by default."""
    parser = Parser(description=description)
    parser.add_argument(
        "--weights", required=weights is None, default=weights,
        help=".npz or .safetensors" + (" (default: minimixer's own digits)" if weights else ""),
    )  # fmt: skip
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N (default: cpu)")
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


if __name__ == "__main__":
    run_script(main, "predict", for_pipes=True)
