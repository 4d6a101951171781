"""Inputs of operations, drawn: one array, pairs that broadcast, and what each operation needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import strategies
from hypothesis import strategies as st
from strategies import broadcast_shapes, nonzero, normal, one_axis, positive, seeds, shapes


@dataclass(frozen=True)
class Case:
    """One use of an operation: float64 NumPy arrays, Python numbers or None, and options."""

    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> list[int]:
        """The positions of the inputs that can have a gradient."""
        return [i for i, value in enumerate(self.inputs) if isinstance(value, np.ndarray)]


randoms = seeds.map(np.random.default_rng)
sides = st.integers(1, 4)
either_end = st.sampled_from([0, -1])


def unary(domain: Callable[..., np.ndarray]) -> st.SearchStrategy[Case]:
    return one_array(lambda shape: {}, domain)


@st.composite
def pairs(draw, first=normal, second=normal, scalars=(None, 0, 1)):
    """Two arrays that broadcast, or an array and a Python number on either side."""
    random = draw(randoms)
    (a, b), scalar = draw(broadcast_shapes(2)), draw(st.sampled_from(scalars))
    first_value = float(first(random, ())) if scalar == 0 else first(random, a)
    return Case((first_value, float(second(random, ())) if scalar == 1 else second(random, b)))


@st.composite
def powers(draw):
    """Arrays to array powers; arrays to whole and fractional numbers; numbers to array powers."""
    random = draw(randoms)
    kind = draw(st.sampled_from(["arrays", "whole", "fraction", "number"]))
    a, b = draw(broadcast_shapes(2))
    if kind == "arrays":
        return Case((positive(random, a), normal(random, b)))
    if kind == "whole":
        return Case((nonzero(random, a), draw(st.sampled_from([-2, -1, 0, 1, 2, 3, 4, 2.0]))))
    if kind == "fraction":
        return Case((positive(random, a), draw(st.sampled_from([-1.5, 0.5, 1.25]))))
    return Case((float(positive(random, ())), normal(random, b)))


@st.composite
def clips(draw):
    low, high = draw(st.sampled_from([(-0.5, 0.75), (None, 0.5), (-0.25, None), (-1.0, -1.0)]))
    x = strategies.between(draw(randoms), draw(shapes()))
    return Case((x, low, high))


@st.composite
def conditions(draw):
    """The condition broadcasts too, and may be larger than both."""
    random = draw(randoms)
    a, b, c = draw(broadcast_shapes(3))
    scalar = draw(st.sampled_from([None, 0, 1]))
    first = 1.5 if scalar == 0 else normal(random, a)
    second = -0.7 if scalar == 1 else normal(random, b)
    return Case((first, second), {"condition": np.asarray(random.random(c) < 0.5)})


@st.composite
def products(draw):
    """(..., m, k) (..., k, n) with axes in front that broadcast, and vectors on either side."""
    random = draw(randoms)
    m, k, n = (draw(st.integers(0, 4)) for _ in range(3))
    kind = draw(st.sampled_from(["stacks", "stacks", "vector left", "vector right", "vectors"]))
    front_a, front_b = draw(broadcast_shapes(2, max_dims=2, max_side=3))
    a = (k,) if kind in ("vector left", "vectors") else (*front_a, m, k)
    b = (k,) if kind in ("vector right", "vectors") else (*front_b, k, n)
    return Case((normal(random, a), normal(random, b)))


def one_array(options, domain=normal, **limits) -> st.SearchStrategy[Case]:
    """One array of any shape within limits; options(shape) are strategies for what goes with it."""

    def cases(shape):
        drawn = st.fixed_dictionaries(options(shape))
        return st.builds(lambda random, o: Case((domain(random, shape),), o), randoms, drawn)

    return shapes(**limits).flatmap(cases)


def reductions(domain=normal, min_side=0):
    return one_array(
        lambda shape: {"axis": strategies.axes(len(shape)), "keepdims": st.booleans()}, domain,
        min_side=min_side,
    )  # fmt: skip


# Along axes of three and more in all, so that there are at least two degrees of freedom.
variances = one_array(
    lambda shape: {
        "axis": st.none() | one_axis(len(shape)), "keepdims": st.booleans(),
        "correction": st.sampled_from([0, 1, 0.5]),
    },
    strategies.distinct, min_dims=1, min_side=3, max_side=5,
)  # fmt: skip
softmaxes = one_array(lambda shape: {"axis": one_axis(len(shape))}, min_dims=1, min_side=1)
transposes = one_array(lambda shape: {"axes": strategies.permutations(len(shape))})
moves = one_array(lambda shape: {"device": st.sampled_from(["cpu", None])})
# By one only: what else it does to a gradient is not the derivative of what it does to x.
scales = one_array(lambda shape: {"scale": st.just(np.ones(1))}, min_dims=1)
approximate = st.sampled_from(["none", "tanh"])
gelus = one_array(
    lambda shape: {"approximate": approximate}, lambda *s: np.asarray(1.5 * normal(*s))
)


def shapes_for(shape):
    size = math.prod(shape)
    even = [(2, -1), (size // 2, 1, 2)] if size % 2 == 0 else []
    return st.sampled_from([(size,), -1, (-1, 1), (1, *shape), shape[::-1], size, *even])


reshapes = one_array(lambda shape: {"shape": shapes_for(shape)}, min_side=1)


@st.composite
def indices(draw):
    """Numbers, slices, None, Ellipsis, integer arrays that repeat, boolean arrays."""
    shape = draw(shapes(min_dims=1, min_side=1))
    random = draw(randoms)
    whole = st.integers(-shape[0], shape[0] - 1)
    repeated = st.lists(whole, min_size=1, max_size=5)
    options = [
        whole,
        st.slices(shape[0]),
        st.slices(shape[0]).map(lambda s: (s, None, ...)),
        st.just((..., None, slice(None, None, -1))),
        repeated,
        repeated.map(lambda i: np.array(i)),
        repeated.map(lambda i: (np.array([i, i]), ...)),
        st.just(random.random(shape) < 0.5),
        st.just(random.random(shape[0]) < 0.5),
    ]
    if len(shape) > 1:
        one, other = random.integers(0, shape[0], 4), random.integers(0, shape[1], (3, 1))
        options += [st.just((one, other)), st.just((slice(1, None), other)), st.just((0, one[:0]))]
    return Case((normal(random, shape),), {"index": draw(st.one_of(options))})


@st.composite
def joins(draw):
    """Arrays that differ in length along the axis, which counts from either end."""
    shape = draw(shapes(min_dims=1))
    axis = draw(one_axis(len(shape)))
    random = draw(randoms)
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    position = axis % len(shape)
    arrays = [normal(random, (*shape[:position], n, *shape[position + 1 :])) for n in lengths]
    return Case(tuple(arrays), {"axis": axis})


@st.composite
def stacks(draw):
    shape = draw(shapes())
    random = draw(randoms)
    arrays = [normal(random, shape) for _ in range(draw(st.integers(1, 3)))]
    return Case(tuple(arrays), {"axis": draw(one_axis(len(shape) + 1))})


def linear_case(random, front, inside, outside, bias):
    weight = normal(random, (inside, outside))
    bias = normal(random, (outside,)) if bias else None
    return Case((normal(random, (*front, inside)), weight, bias))


# A product over nothing is zero.
linears = st.builds(
    linear_case, randoms, shapes(max_dims=2), st.integers(0, 4), sides, st.booleans()
)


def first_case(random, front, inside, outside, bias, transposed):
    weight = normal(random, (inside, outside) if transposed else (outside, inside))
    bias = normal(random, (outside,)) if bias else None
    return Case((normal(random, (inside, *front)), weight, bias), {"transposed": transposed})


firsts = st.builds(
    first_case, randoms, shapes(max_dims=2), sides, sides, st.booleans(), st.booleans()
)


def mlp_case(random, front, inside, hidden, axis, form):
    x = (inside, *front) if axis == 0 else (*front, inside)
    w1, b1 = normal(random, (inside, hidden)), normal(random, (hidden,))
    w2 = normal(random, (inside, hidden) if axis == 0 else (hidden, inside))
    return Case((normal(random, x), w1, b1, w2), {"axis": axis, "approximate": form})


mlps = st.builds(
    mlp_case, randoms, shapes(min_dims=1, max_dims=2), sides, sides, either_end, approximate
)


def norm_case(random, shape, y, bias_axis, outputs=(0, 1), keep=False):
    """x, y, bias (None without a bias_axis), gamma, beta; `outputs`: which of the two are used;
    with `keep` and y some of what is added is dropped."""
    bias = None if bias_axis is None else normal(random, (shape[bias_axis],))
    y = normal(random, shape) if y else None
    gamma, beta = nonzero(random, shape[-1:]), normal(random, shape[-1:])
    options = {"epsilon": 1e-6 if shape[-1] > 2 else 0.1, "outputs": outputs}
    options["bias_axis"] = -1 if bias_axis is None else bias_axis
    if keep and y is not None and len(shape) > 1:
        options["keep"] = random.choice([0.0, 1.5], shape[-2])
    return Case((normal(random, shape) + 1, y, bias, gamma, beta), options)


# With a bias of each row (S,), a bias of each column (C,), or none; one output or both.
norms = st.builds(
    norm_case,
    randoms,
    st.builds(lambda front, last: (*front, last), shapes(max_dims=2), st.integers(1, 5)),
    st.booleans(),
    st.sampled_from([None, 0, -1]),
    st.sampled_from([(0, 1), (1, 0), (0,), (1,)]),
    st.booleans(),
)


def bias_case(random, shape, axis):
    return Case((normal(random, shape), normal(random, (shape[axis],))), {"axis": axis})


biases = st.builds(bias_case, randoms, shapes(min_dims=1), either_end)


def entropy_case(random, batch, classes, kind, smoothing, reduction):
    if kind == "indices":
        target = random.integers(0, classes, batch)
    else:
        target = random.dirichlet(np.ones(classes), batch)
    options = {"target": target, "label_smoothing": smoothing, "reduction": reduction}
    return Case((2 * normal(random, (batch, classes)),), options)


entropies = st.builds(
    entropy_case,
    randoms,
    sides,
    st.integers(1, 5),
    st.sampled_from(["indices", "distributions"]),
    st.sampled_from([0.0, 0.1, 0.9]),
    st.sampled_from(["mean", "sum", "none"]),
)
