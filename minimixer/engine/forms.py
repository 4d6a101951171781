"""The fast forms that may stand in for plain code: which there are, and for what.

>>> from minimixer.engine.forms import form_of
>>> form_of(print, None) is None             # nothing stands for that
True
"""

from typing import Any

from .arrays import Array, namespace

# By what is replaced, and by the library whose arrays it works on, "numpy" or "cupy". kernels.use
# fills it; it is empty under "reference".
table: dict[Any, dict[str, Any]] = {}


def form_of(plain: Any, array: Array) -> Any:
    """The fast form of `plain` for such arrays, which may not suit them; or None."""
    found = table.get(plain)
    return None if found is None else found.get(namespace(array).__name__)


def unchanged(plain: Any) -> bool:
    """Is the code of `plain` what its fast form was compared with? kernels/ knows."""
    return True


def current_form(plain: Any, array: Array) -> Any:
    """The fast form of `plain` for such arrays, if `plain` is unchanged; or None."""
    form = form_of(plain, array)
    return form if form is not None and unchanged(plain) else None
