"""Whether operations are recorded for backward: no_grad and its opposite.

Training asks how one number, the loss, changes with each weight: its gradient. `backward` goes
back through a record of all operations to find it, and the record keeps their arrays alive. Using
a trained model needs no record.

>>> from minimixer import is_grad_enabled, no_grad
>>> with no_grad():
...     is_grad_enabled()
False
>>> @no_grad()
... def evaluate():
...     return is_grad_enabled()
>>> evaluate(), is_grad_enabled()
(False, True)

Next: `autograd.py`, Function, and the record of what was done.
"""

import threading
from typing import Any

from .around import Around


class _Mode(threading.local):  # each thread has its own
    enabled = True

    def __init__(self):
        self.before: list[bool] = []  # what the open `with` blocks found


mode = _Mode()


def is_grad_enabled() -> bool:
    """Are operations recorded, in this thread, at this moment?"""
    return mode.enabled


class set_grad_enabled(Around):
    """Within it, operations are recorded for backward or not. Context manager or decorator, also
    of generators and coroutines: it then holds while they run, and not for who waits for them."""

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def again(self):
        return set_grad_enabled(self.enabled)

    def __enter__(self):
        mode.before.append(mode.enabled)
        mode.enabled = self.enabled
        return self

    def __exit__(self, *_):
        mode.enabled = mode.before.pop()


class _Bare(set_grad_enabled):
    """What decorates without brackets too: `@no_grad`."""

    def __new__(cls, function: Any = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)


class no_grad(_Bare):
    """`with no_grad():` or `@no_grad()`: compute without recording, and without keeping."""

    def __init__(self):
        super().__init__(False)


class enable_grad(_Bare):
    """The opposite of no_grad, for a part inside it."""

    def __init__(self):
        super().__init__(True)
