"""The model that comes with the package, minimixer/training/digits.npz: a run like README's first.

    python examples/train_mnist.py && python examples/make_digits.py

A run's checkpoint holds the optimizer's averages as well, which are twice as large as the weights.
"""

from minimixer import Mixer, data
from minimixer.training.checkpoint import BUILT_IN
from minimixer.training.names import printable
from support.options import Parser, run_script


def main() -> int:
    parser = Parser(description=__doc__)
    for name, path in (("weights", "runs/mnist/checkpoint.npz"), ("out", BUILT_IN["digits"])):
        parser.add_argument(f"--{name}", default=str(path), help=f"default: {path}")
    options = parser.parse_args()
    model = Mixer.load(options.weights)
    if model.preparation != "digit":
        raise ValueError(f"{options.weights} is not a model of the embedded MNIST")
    model.save(options.out)
    _, _, images, labels = data.load_mnist()
    right = int((Mixer.load(options.out).predict(images) == labels).sum())
    print(f"wrote {printable(options.out)}: {right:,} of {len(labels):,} test images right")
    return 0


if __name__ == "__main__":
    run_script(main, "make_digits")
