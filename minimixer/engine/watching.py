"""Does anybody write into arrays that are not his own? What gradcheck looks at besides numbers.

A Function that does may be right by itself and spoil what others make of the same array. So every
array is compared with a copy of what it held: what forward was given, what backward was given, and
what backward returned, once others may have it.

>>> import numpy as np
>>> from minimixer.engine.watching import Unchanged
>>> x = np.ones(2)
>>> watched = Unchanged([("x", x)])
>>> x *= 2
>>> watched.check("somebody changed", "must not")
Traceback (most recent call last):
minimixer.engine.watching.GradientError: somebody changed x, float64 (2,) on cpu; it must not
"""

import contextlib
import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from .arrays import describe, is_array, to_device
from .autograd import Function


class GradientError(AssertionError):
    """backward and finite differences disagree, or a Function changes what is not its own; says
    where, by how much and what to look at."""


class Unchanged:
    """Arrays that nobody may write into, by name, each with a copy of what it held."""

    def __init__(self, named: Sequence[tuple[str, Any]]):
        self.watched: list[tuple[str, Any, Any]] = []
        self.add(named)

    def add(self, named: Sequence[tuple[str, Any]]) -> None:
        self.watched += [(name, a, to_device(a, "cpu").copy()) for name, a in named]

    def check(self, who: str, rule: str) -> None:
        for name, array, before in self.watched:
            if to_device(array, "cpu").tobytes() != before.tobytes():
                raise GradientError(f"{who} {name}, {describe(array)}; it {rule}")


@contextlib.contextmanager
def watching(returned: Unchanged) -> Iterator[None]:
    """Look over the shoulder of every Function that this thread applies meanwhile: at its forward,
    and at its backward whenever that comes. From outside, by `needs`, which `apply` sets on every
    node, so that no operation takes longer for it; one thread after the other."""
    thread, place = threading.get_ident(), vars(Function)["needs"]

    def watch(node: Function, needs: tuple[bool, ...]) -> None:
        place.__set__(node, needs)
        if threading.get_ident() == thread:
            for step in ("forward", "backward"):
                vars(node)[step] = _watched(node, step, getattr(node, step), returned)

    with _one_at_a_time:
        before = Function.needs  # ours, if a gradcheck runs inside another
        Function.needs = property(place.__get__, watch)  # type: ignore[assignment]
        try:
            yield
        finally:
            Function.needs = before


_one_at_a_time = threading.RLock()


def _watched(
    node: Function, step: str, method: Callable[..., Any], returned: Unchanged
) -> Callable[..., Any]:
    def watching(*arrays: Any, **options: Any) -> Any:
        what = "input" if step == "forward" else "gradient"
        given = Unchanged([(f"{what} {i}", a) for i, a in enumerate(arrays) if is_array(a)])
        results = method(*arrays, **options)
        given.check(
            f"{type(node).__name__}.{step} changed",
            "may belong to others too: write 2 * x, not x *= 2",
        )
        if step == "backward":
            many = results if isinstance(results, (tuple, list)) else [results]
            found = [g for g in many if is_array(g)]
            returned.add([(f"a gradient of {type(node).__name__}", g) for g in found])
        return results

    return watching
