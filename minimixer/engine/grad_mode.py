"""Whether operations are recorded for backward: no_grad and its opposite.

The record that backward goes back along keeps arrays alive. Who only uses a trained model, or
measures how good it is, needs no record.

>>> from minimixer import is_grad_enabled, no_grad
>>> with no_grad():
...     is_grad_enabled()
False
>>> @no_grad()
... def evaluate():
...     return is_grad_enabled()
>>> evaluate(), is_grad_enabled()
(False, True)

Next: `ops.py`, arithmetic, each forward beside its backward.
"""

import threading

from .around import Around, Bare  # `with no_grad():`, `@no_grad()`; Bare: and `@no_grad`


class _Mode(threading.local):  # each thread has its own
    enabled = True

    def __init__(self) -> None:
        self.before: list[bool] = []  # what the open `with` blocks found


mode: _Mode = _Mode()


def is_grad_enabled() -> bool:
    """Are operations recorded, in this thread, at this moment?"""
    return mode.enabled


class set_grad_enabled(Around):
    """Within it, operations are recorded for backward or not. Context manager or decorator, also
    of generators and coroutines: it then holds while they run, and not for who waits for them."""

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def __enter__(self) -> "set_grad_enabled":
        mode.before.append(mode.enabled)
        mode.enabled = self.enabled
        return self

    def __exit__(self, *_: object) -> None:
        mode.enabled = mode.before.pop()


class no_grad(Bare, set_grad_enabled):
    """`with no_grad():` or `@no_grad()`: compute without recording, and without keeping."""

    def __init__(self):
        super().__init__(False)


class enable_grad(Bare, set_grad_enabled):
    """The opposite of no_grad, for a part inside it."""

    def __init__(self):
        super().__init__(True)
