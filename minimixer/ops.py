"""All operations by name, of Tensors, arrays or numbers."""

from .engine import more_ops as _more_ops
from .engine import ops as _ops
from .gathered import gather as _gather

_gather(__name__, _ops, _more_ops)
