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

Next: `autograd.py`, Function, and the record of what was done.
"""

import functools
import inspect
import threading
import types
from contextlib import ContextDecorator
from typing import Any


class _Mode(threading.local):  # each thread has its own
    enabled = True

    def __init__(self):
        self.before: list[bool] = []  # what the open `with` blocks found


mode = _Mode()


def is_grad_enabled() -> bool:
    """Are operations recorded, in this thread, at this moment?"""
    return mode.enabled


class set_grad_enabled(ContextDecorator):
    """Within it, operations are recorded for backward or not. Context manager or decorator, also
    of generators and coroutines: it then holds while they run, and not for who waits for them."""

    def __init__(self, enabled: bool):
        self.enabled = enabled

    def _recreate_cm(self):  # a decorator is one object for all calls and threads
        return set_grad_enabled(self.enabled)

    def __call__(self, function: Any) -> Any:
        def generator(*args: Any, **options: Any) -> Any:
            return (yield from _stepwise(self, function(*args, **options)))

        async def coroutine(*args: Any, **options: Any) -> Any:
            return await types.coroutine(_stepwise)(self, function(*args, **options))

        if inspect.isgeneratorfunction(function):
            return functools.wraps(function)(generator)
        if inspect.iscoroutinefunction(function):
            return functools.wraps(function)(coroutine)
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{type(self).__name__} can't decorate an asynchronous generator: write `with "
                f"{type(self).__name__}():` inside it, around what lies between its yields"
            )
        return super().__call__(function)

    def __enter__(self):
        mode.before.append(mode.enabled)
        mode.enabled = self.enabled
        return self

    def __exit__(self, *_):
        mode.enabled = mode.before.pop()


def _stepwise(mode: set_grad_enabled, steps: Any) -> Any:
    """Run a generator (or a coroutine, which is one inside) from yield to yield, each step within
    `mode`: between two of them the mode is that of whoever asks for the next."""
    step, sent = steps.send, None
    while True:
        try:
            with mode._recreate_cm():
                yielded = step(sent)
        except StopIteration as end:
            return end.value
        try:
            step, sent = steps.send, (yield yielded)
        except GeneratorExit:
            with mode._recreate_cm():
                steps.close()
            raise
        except BaseException as error:
            step, sent = steps.throw, error


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
