"""What collects and moves numbers, by name: sums, reshapes, extremes, joins."""

from typing import TYPE_CHECKING

from .engine import more_rearrange as _more_rearrange
from .engine import rearrange as _rearrange
from .gathered import gather as _gather

if TYPE_CHECKING:  # for editors, which do not look where `gather` looks
    from .engine.more_rearrange import *  # noqa: F403
    from .engine.rearrange import *  # noqa: F403

_gather(__name__, _rearrange, _more_rearrange)
