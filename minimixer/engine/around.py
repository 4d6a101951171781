"""Context managers that are decorators too, of generators and coroutines as well.

A decorated generator runs in pieces, and between two of them whoever asks for the next goes on.
What is around it must hold within each piece, and not in between.

>>> from minimixer.engine.around import Around
>>> class Loud(Around):
...     def __enter__(self):
...         print("in")
...     def __exit__(self, *_):
...         print("out")
>>> @Loud()
... def double(x):
...     return 2 * x
>>> double(2)
in
out
4
"""

import functools
import inspect
import types
from collections.abc import Callable
from contextlib import ContextDecorator
from typing import Any, Self, TypeVar, overload

Called = TypeVar("Called", bound=Callable[..., Any])


class Around(ContextDecorator):
    """Subclasses define __enter__ and __exit__. What __init__ keeps, all calls share."""

    def again(self) -> Self:
        """Another one like this: a decorator is one object for all calls and threads."""
        other = object.__new__(type(self))
        vars(other).update(vars(self))
        return other

    def _recreate_cm(self) -> Self:  # what ContextDecorator asks for
        return self.again()

    def __call__(self, function: Called) -> Called:
        def generator(*args: Any, **options: Any) -> Any:
            return (yield from _stepwise(self, function(*args, **options)))

        async def coroutine(*args: Any, **options: Any) -> Any:
            return await types.coroutine(_stepwise)(self, function(*args, **options))

        if inspect.isgeneratorfunction(function):
            return functools.wraps(function)(generator)  # type: ignore[return-value]
        if inspect.iscoroutinefunction(function):
            return functools.wraps(function)(coroutine)  # type: ignore[return-value]
        if inspect.isasyncgenfunction(function):
            raise TypeError(
                f"{type(self).__name__} can't decorate an asynchronous generator: write `with "
                f"{type(self).__name__}():` inside it, around what lies between its yields"
            )
        return super().__call__(function)


class Bare(Around):
    """One that is made of nothing, and decorates without brackets too: `@no_grad`."""

    @overload
    def __new__(cls) -> Self: ...

    @overload
    def __new__(cls, function: Called) -> Called: ...  # type: ignore[misc]

    def __new__(cls, function: Any = None) -> Any:
        return super().__new__(cls) if function is None else cls()(function)


def _stepwise(around: Any, steps: Any) -> Any:
    """Run a generator (or a coroutine, which is one inside) from yield to yield, each step within
    `around`."""
    step, sent = steps.send, None
    while True:
        try:
            with around.again():
                yielded = step(sent)
        except StopIteration as end:
            return end.value
        try:
            step, sent = steps.send, (yield yielded)
        except GeneratorExit:
            with around.again():
                steps.close()
            raise
        except BaseException as error:
            step, sent = steps.throw, error
