"""What a Mixer sees in pictures: `python -m minimixer predict`, started as the other scripts are.

    python examples/predict.py my_digit.png                  with the model that comes with us
    python examples/predict.py --weights mixer.npz cat.jpg holiday/

The code is minimixer/app/predict.py, since whoever installs the package has no scripts. Options,
output and exit status are the same.
"""

from support import begin  # noqa: F401  isort: skip

from minimixer.app.predict import main
from support.options import run_script

if __name__ == "__main__":
    run_script(main, "predict", for_pipes=True)
