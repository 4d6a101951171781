"""What becomes of a picture of a digit before a model of MNIST's sees it, step by step.

    python examples/draw_digit.py my_digit.png another.jpg

Below the last step stand the classes that the shipped model, or --weights, finds most probable. The
picture of docs/ is of three files of tests/digits/.
"""

import numpy as np

from minimixer import Mixer
from minimixer.pictures.digits import read_digit
from minimixer.pictures.folders import BadPicture
from minimixer.training.checkpoint import BUILT_IN
from minimixer.training.files import replace_file
from minimixer.training.names import printable
from support.options import Parser, run_script


def main() -> int:
    parser = Parser(description=__doc__)
    parser.add_argument("images", nargs="+", metavar="image")
    parser.add_argument("--weights", default=str(BUILT_IN["digits"]), help="default: minimixer's")
    parser.add_argument("--out", default="digit.png", help="default: digit.png")
    options = parser.parse_args()
    from matplotlib.figure import Figure

    model = Mixer.load(options.weights)
    rows = []
    for path in options.images:
        steps: list[tuple[str, np.ndarray]] = []
        try:
            read_digit(path, steps)
        except BadPicture as error:
            raise ValueError(f"{path}: {error}") from None
        rows.append(steps)
    digits = np.stack([steps[-1][1] for steps in rows])[..., None]
    figure = Figure(figsize=(13, 2.3 * len(rows) + 0.3), layout="constrained")
    axes = figure.subplots(len(rows), len(rows[0]), squeeze=False)
    for steps, probabilities, line in zip(rows, model.predict_proba(digits), axes, strict=True):
        for axis, (_, array) in zip(line, steps, strict=True):
            axis.imshow(array / (255 if array.max() > 1 else 1), cmap="gray", vmin=0, vmax=1)
            axis.set_xticks([])
            axis.set_yticks([])
        best = np.argsort(-probabilities)[:2]
        names = model.class_names or [str(k) for k in range(model.num_classes)]
        line[-1].set_xlabel(", ".join(f"{names[k]}: {probabilities[k]:.1%}" for k in best))
    for axis, (title, _) in zip(axes[0], rows[0], strict=True):
        axis.set_title(title, fontsize=10)
    with replace_file(options.out) as file:
        figure.savefig(file, format="png", dpi=80)
    print(f"wrote {printable(options.out)}")
    return 0


if __name__ == "__main__":
    run_script(main, "draw_digit")
