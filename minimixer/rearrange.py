"""What collects and moves numbers, by name: sums, reshapes, extremes, joins."""

from .engine import more_rearrange as _more_rearrange
from .engine import rearrange as _rearrange
from .gathered import gather as _gather

_gather(__name__, _rearrange, _more_rearrange)
