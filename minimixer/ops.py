"""All operations by name, of Tensors, arrays or numbers."""

from typing import TYPE_CHECKING

from .engine import more_ops as _more_ops
from .engine import ops as _ops
from .gathered import gather as _gather

if TYPE_CHECKING:  # for editors, which do not look where `gather` looks
    from .engine.more_ops import *  # noqa: F403
    from .engine.ops import *  # noqa: F403

_gather(__name__, _ops, _more_ops)
