"""What a Mixer sees in pictures: the most probable classes of each.

    python -m minimixer predict my_digit.png                  with the model that comes with us
    python -m minimixer predict --weights mixer.npz cat.jpg holiday/
    python -m minimixer predict --weights mixer.safetensors --names imagenet.txt *.jpg

Weights: a checkpoint of minimixer's, the authors' .npz or timm's .safetensors; without them
"digits", trained on MNIST. For models of MNIST's digits a picture is first made like theirs: cut to
the digit, light on dark, in the middle (--prepare none: not). Of a directory, all its pictures. A
file that can't be read is named and skipped. Exit status: 0; 1 if not one picture could be read; 2
for wrong options or weights.
"""

import io
import sys
from collections.abc import Sequence

import numpy as np

from ..model.mixer import Mixer
from ..training.checkpoint import BUILT_IN
from ..training.files import read_file
from ..training.names import distinct, printable
from .model import NO_ANSWER, load_model, make_parser
from .options import positive


def main(words: Sequence[str] | None = None, prog: str | None = None) -> int:
    """`words` are the options, by default those that the program was started with."""
    from ..pictures.folders import import_pillow, tell_skipped
    from ..pictures.reading import find_pictures, read_batches

    parser = make_parser(__doc__, str(BUILT_IN["digits"]), prog)
    parser.add_argument("images", nargs="+", metavar="image", help="a picture, or a directory")
    parser.add_argument("--top", type=positive, default=5, help="classes to show (default: 5)")
    parser.add_argument(
        "--names", metavar="FILE", help="class names, one per line; default: the checkpoint's"
    )
    options = parser.parse_args(words)
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
    print(end="", flush=True)
    if failures:
        print(f"predict: {tell_skipped(failures)}", file=sys.stderr)
        print(f"predict: {len(failures)} of {total} could not be read", file=sys.stderr)
    return 1 if len(failures) == total else 0


def class_names(model: Mixer, file: str | None) -> list[str]:
    """From a file, one a line, or the model's own. ValueError unless it has one for each class."""
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
        raise ValueError(NO_ANSWER)
    return probabilities
