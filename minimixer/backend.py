"""NumPy or CuPy, devices, precisions, random numbers, by their names of before there were rooms."""

from typing import TYPE_CHECKING

from .engine import arrays as _arrays
from .engine import devices as _devices
from .engine import forms as _forms
from .engine import precision as _precision
from .engine import products as _products
from .engine import random as _random
from .gathered import gather as _gather

if TYPE_CHECKING:  # for editors, which do not look where `gather` looks
    from .engine.arrays import *  # noqa: F403
    from .engine.devices import *  # noqa: F403
    from .engine.forms import *  # noqa: F403
    from .engine.precision import *  # noqa: F403
    from .engine.products import *  # noqa: F403
    from .engine.random import *  # noqa: F403

_gather(__name__, _arrays, _devices, _precision, _products, _random, _forms)
