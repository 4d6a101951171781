"""Whether operations are recorded for backward: no_grad and its opposite.

Training needs the record, and the arrays that it keeps alive; using a trained model does not.

>>> with no_grad():
...     is_grad_enabled()
False
>>> @no_grad()
... def evaluate():
...     return is_grad_enabled()
>>> evaluate(), is_grad_enabled()
(False, True)

Next: `autograd.py`, which keeps the record.
"""

import threading
from contextlib import ContextDecorator


class _Mode(threading.local):  # each thread has its own
    enabled = True

    def __init__(self):
        self.before: list[bool] = []  # what the open `with` blocks found


_mode = _Mode()


def is_grad_enabled() -> bool:
    """Are operations recorded, in this thread, at this moment?"""
    return _mode.enabled


class set_grad_enabled(ContextDecorator):
    """Within it, operations are recorded for backward or not. Context manager or decorator."""

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def _recreate_cm(self):  # a decorator is one object for all calls and threads
        return set_grad_enabled(self.enabled)

    def __enter__(self):
        _mode.before.append(_mode.enabled)
        _mode.enabled = self.enabled
        return self

    def __exit__(self, *_):
        _mode.enabled = _mode.before.pop()


class no_grad(set_grad_enabled):
    """`with no_grad():` or `@no_grad()`: compute without recording, and without keeping."""

    def __init__(self):
        super().__init__(False)


class enable_grad(set_grad_enabled):
    """The opposite of no_grad, for a part inside it."""

    def __init__(self):
        super().__init__(True)
