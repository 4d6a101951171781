"""Gradients computed beside the main line of work, and the wait for them.

>>> from minimixer.engine.aside import join, join_later
>>> join_later(lambda: print("all is there"))
>>> join()
all is there
"""

import threading
from collections.abc import Callable


class _Aside(threading.local):  # each thread has its own
    def __init__(self) -> None:
        self.joins: list[Callable[[], None]] = []


_aside = _Aside()


def join_later(function: Callable[[], None]) -> None:
    """Gradients of weights may be computed beside the main line of work (kernels/cpu/threads.py
    and kernels/gpu/side.py): `function` waits for them, and `join` will call it, once."""
    if function not in _aside.joins:
        _aside.joins.append(function)


def join() -> None:
    """Wait for all that is computed beside: before gradients are looked at."""
    while _aside.joins:
        _aside.joins.pop()()
