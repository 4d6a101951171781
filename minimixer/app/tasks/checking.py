"""What the tests of the tasks are made of: run a Function both ways, and say what is wrong.

A usual mistake is recognised by what it computes: a test lists, beside the right numbers, what some
mistakes would give, each with a sentence that helps.

>>> import numpy as np
>>> from minimixer.app.tasks.checking import compare
>>> dy, b = np.ones(2), np.array([3.0, 4.0])
>>> compare("da", dy * b, dy * b, {"da lacks b": dy})
>>> compare("da", dy, dy * b, {"da lacks b": dy})
Traceback (most recent call last):
minimixer.app.tasks.checking.Wrong: da lacks b
"""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ...engine.autograd import Function
from ...engine.gradcheck import gradcheck
from ...engine.tensor import Tensor as Tensor  # for tests, which find it here
from ...nn.layers import Linear as Linear


class Wrong(AssertionError):
    """One sentence for who works on the task."""


def expect(good: Any, sentence: str) -> None:
    if not good:
        raise Wrong(sentence)


def draw(*shape: int, seed: int = 0) -> Any:
    """Random numbers, float64: always the same for a shape and a seed."""
    return np.asarray(np.random.default_rng([seed, *shape]).standard_normal(shape))


def forward(function: type[Function], *inputs: Any, **options: Any) -> Any:
    """y alone: so that forward can be right before backward is written."""
    for dtype in ("float32", inputs[0].dtype):
        node, given = function(), [np.array(x, dtype) for x in inputs]
        node.needs = (True,) * len(inputs)
        y = node.forward(*given, **options)
        expect(_is_array(y), f"forward returns {y!r:.60}, and should return an array")
        for i, (now, x) in enumerate(zip(given, inputs, strict=True)):
            expect((now == x.astype(dtype)).all(), f"forward writes into input {i}; it may only "
                   "write into arrays that it made")  # fmt: skip
        expect(dtype != "float32" or y.dtype == dtype,
               f"y is {y.dtype} where the inputs are float32")  # fmt: skip
    return np.asarray(y)


def forward_is_right(test: Callable[..., None], *inputs: Any) -> None:
    """Run test(*inputs), the part of a task's test that needs backward; the part before has found
    forward right, and who has not written backward yet is told so."""
    try:
        test(*inputs)
    except NotImplementedError as error:
        raise NotImplementedError(f"{error} (forward is right)") from error


def both_ways(function: type[Function], *inputs: Any, **options: Any) -> tuple[Any, Any, list[Any]]:
    """y, a dy of its shape, and the gradient that backward makes of it for each input."""
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    y = function.apply(*tensors, **options)
    dy = np.asarray(draw(*y.shape, seed=7), y.dtype)
    given = dy.copy()
    found = _listed(y.node.backward(given))
    expect((given == dy).all(), "backward writes into the gradient that it is given, which others "
           "may have too")  # fmt: skip
    for i, (tensor, x) in enumerate(zip(tensors, inputs, strict=True)):
        expect((tensor.data == x).all(), f"forward or backward writes into input {i}; it may only "
               "write into arrays that it made")  # fmt: skip
    counts = f"backward returns {_count(found, 'gradient')}, for {_count(inputs, 'input')}"
    none = f"; options ({', '.join(options)}) get none" if options else ""
    expect(len(found) == len(inputs), counts + none)
    # Twice in one network: what a use keeps must be its own.
    one = function.apply(*[Tensor(x.copy(), requires_grad=True) for x in inputs], **options)
    function.apply(*[Tensor(0.5 * x + 1, requires_grad=True) for x in inputs], **options)
    for a, b in zip(found, _listed(one.node.backward(dy.copy())), strict=True):
        if _is_array(a):
            expect(np.array_equal(a, b, equal_nan=True), "backward gives other gradients if the "
                   "Function is used a second time before it: keep what it needs as self.x = x, "
                   "and not in the class or in a global")  # fmt: skip
    return y, dy, found


def _is_array(found: Any) -> bool:
    return isinstance(found, (np.ndarray, np.generic))


def _listed(found: Any) -> list[Any]:
    return list(found) if isinstance(found, (tuple, list)) else [found]


def _count(things: Sequence[Any], name: str) -> str:
    return f"{len(things)} {name}{'s' * (len(things) != 1)}"


def fits(found: Any, wanted: Any, rtol: float, atol: float) -> bool:
    wanted = np.asarray(wanted)
    return found.shape == wanted.shape and np.allclose(found, wanted, rtol, atol, equal_nan=True)


def compare(
    name: str, found: Any, right: Any, mistakes: Mapping[str, Any] | None = None,
    rtol: float = 1e-9, atol: float = 1e-12,
) -> None:  # fmt: skip
    """Wrong unless `found` is `right`; with a mistake's sentence where it is what that gives."""
    expect(_is_array(found), f"{name} is {found!r:.60}, and should be an array")
    if fits(found, right, rtol, atol):
        return
    for sentence, wrong in (mistakes or {}).items():
        expect(not fits(found, wrong, rtol, atol), sentence)
    right = np.asarray(right)
    expect(found.shape == right.shape,
           f"{name} has shape {found.shape}, and should have {right.shape}")  # fmt: skip
    small = 1e-6 * float(np.max(abs(right), initial=0))
    expect(not fits(found, right, 1e-6, small), f"{name} has fewer digits than {right.dtype} "
           "holds: does something go through another dtype?")  # fmt: skip
    bad = ~np.isclose(found, right, rtol, atol)
    place = tuple(int(i[0]) for i in np.nonzero(np.atleast_1d(bad)))[: right.ndim]
    where = f"[{', '.join(map(str, place))}]" if place else ""
    name, comma, rest = name.partition(",")
    raise Wrong(
        f"{name}{where}{comma}{rest} is {float(found[place]):.6g}, and should be "
        f"{float(right[place]):.6g}; {bad.mean():.0%} of its numbers are wrong"
    )


def both_dtypes(function: type[Function], *inputs: Any, **options: Any) -> None:
    """Finite differences in float64 agree, and nobody writes into arrays of others; float32 stays
    float32, and float64 float64."""
    for dtype in ("float64", "float32"):
        y, _, gradients = both_ways(function, *[x.astype(dtype) for x in inputs], **options)
        for name, array in (
            ("y", y.data),
            *[(f"the gradient of input {i}", g) for i, g in enumerate(gradients)],
        ):
            expect(_is_array(array), f"{name} is {array!r:.60}, and should be an array")
            expect(array.dtype == dtype, f"{name} is {array.dtype} where the inputs are {dtype}")

    def use(*tensors: Any) -> Any:
        return function.apply(*tensors, **options)

    use.__qualname__ = function.__name__  # which errors begin with
    gradcheck(use, list(inputs))


def gradients_of(formula: Callable[..., Tensor], inputs: list[Any], dy: Any) -> list[Any]:
    """What the engine's own operations give for a formula made of them."""
    tensors = [Tensor(x.copy(), requires_grad=True) for x in inputs]
    formula(*tensors).backward(dy)
    return [tensor.grad for tensor in tensors]


def times_as_fast(slow: Callable[[], Any], fast: Callable[[], Any], rounds: int = 5) -> float:
    """Best time of `slow` by best time of `fast`, measured in turn: what else the machine does
    meets both."""
    best = [float("inf"), float("inf")]
    for _ in range(rounds):
        for i, function in enumerate((slow, fast)):
            begin = time.perf_counter()
            function()
            best[i] = min(best[i], time.perf_counter() - begin)
    return best[0] / max(best[1], 1e-9)
