"""Inputs of operations, drawn: one array, pairs that broadcast, and what each operation needs."""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from hypothesis import strategies as st
from strategies import (
    axes,
    between,
    broadcast_shapes,
    distinct,
    nonzero,
    normal,
    one_axis,
    permutations,
    positive,
    seeds,
    shapes,
)


@dataclass(frozen=True)
class Case:
    """One use of an operation: float64 NumPy arrays, Python numbers or None, and options."""

    inputs: tuple[Any, ...]
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def arrays(self) -> list[int]:
        """The positions of the inputs that can have a gradient."""
        return [i for i, value in enumerate(self.inputs) if isinstance(value, np.ndarray)]


def unary(domain: Callable[..., np.ndarray]) -> st.SearchStrategy[Case]:
    return st.builds(
        lambda shape, seed: Case((domain(np.random.default_rng(seed), shape),)), shapes(), seeds
    )


@st.composite
def pairs(draw, first=normal, second=normal, scalars=(None, 0, 1)):
    """Two arrays that broadcast, or an array and a Python number on either side."""
    random = np.random.default_rng(draw(seeds))
    (a, b), scalar = draw(broadcast_shapes(2)), draw(st.sampled_from(scalars))
    first_value = float(first(random, ())) if scalar == 0 else first(random, a)
    return Case((first_value, float(second(random, ())) if scalar == 1 else second(random, b)))


@st.composite
def powers(draw):
    """Arrays to array powers; arrays to whole and fractional numbers; numbers to array powers."""
    random = np.random.default_rng(draw(seeds))
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
    x = between(np.random.default_rng(draw(seeds)), draw(shapes()))
    return Case((x, low, high))


@st.composite
def conditions(draw):
    """The condition broadcasts too, and may be larger than both."""
    random = np.random.default_rng(draw(seeds))
    a, b, c = draw(broadcast_shapes(3))
    scalar = draw(st.sampled_from([None, 0, 1]))
    first = 1.5 if scalar == 0 else normal(random, a)
    second = -0.7 if scalar == 1 else normal(random, b)
    return Case((first, second), {"condition": np.asarray(random.random(c) < 0.5)})


@st.composite
def products(draw):
    """(..., m, k) (..., k, n) with axes in front that broadcast, and vectors on either side."""
    random = np.random.default_rng(draw(seeds))
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
        return st.builds(
            lambda seed, o: Case((domain(np.random.default_rng(seed), shape),), o), seeds, drawn
        )

    return shapes(**limits).flatmap(cases)


def reductions(domain=normal, min_side=0):
    return one_array(
        lambda shape: {"axis": axes(len(shape)), "keepdims": st.booleans()}, domain,
        min_side=min_side,
    )  # fmt: skip


# Along axes of three and more in all, so that there are at least two degrees of freedom.
variances = one_array(
    lambda shape: {
        "axis": st.none() | one_axis(len(shape)), "keepdims": st.booleans(),
        "correction": st.sampled_from([0, 1, 0.5]),
    },
    distinct, min_dims=1, min_side=3, max_side=5,
)  # fmt: skip
softmaxes = one_array(lambda shape: {"axis": one_axis(len(shape))}, min_dims=1, min_side=1)
transposes = one_array(lambda shape: {"axes": permutations(len(shape))})
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
    random = np.random.default_rng(draw(seeds))
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
    random = np.random.default_rng(draw(seeds))
    lengths = draw(st.lists(st.integers(0, 3), min_size=1, max_size=3))
    position = axis % len(shape)
    arrays = [normal(random, (*shape[:position], n, *shape[position + 1 :])) for n in lengths]
    return Case(tuple(arrays), {"axis": axis})


@st.composite
def stacks(draw):
    shape = draw(shapes())
    random = np.random.default_rng(draw(seeds))
    arrays = [normal(random, shape) for _ in range(draw(st.integers(1, 3)))]
    return Case(tuple(arrays), {"axis": draw(one_axis(len(shape) + 1))})


@st.composite
def linears(draw):
    random = np.random.default_rng(draw(seeds))
    front = draw(shapes(max_dims=2))
    inside, outside = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    bias = normal(random, (outside,)) if draw(st.booleans()) else None
    return Case((normal(random, (*front, inside)), normal(random, (inside, outside)), bias))


def first_case(random, front, inside, outside, bias, transposed):
    sizes = (inside, outside) if transposed else (outside, inside)
    return Case(
        (normal(random, (inside, *front)), normal(random, sizes),
         normal(random, (outside,)) if bias else None),
        {"transposed": transposed},
    )  # fmt: skip


@st.composite
def firsts(draw):
    return first_case(
        np.random.default_rng(draw(seeds)), draw(shapes(max_dims=2)), draw(st.integers(1, 4)),
        draw(st.integers(1, 4)), draw(st.booleans()), draw(st.booleans()),
    )  # fmt: skip


def mlp_case(random, front, inside, hidden, axis, form):
    x = (inside, *front) if axis == 0 else (*front, inside)
    w2 = (inside, hidden) if axis == 0 else (hidden, inside)
    w1, b1 = normal(random, (inside, hidden)), normal(random, (hidden,))
    return Case(
        (normal(random, x), w1, b1, normal(random, w2)), {"axis": axis, "approximate": form}
    )


@st.composite
def mlps(draw):
    random = np.random.default_rng(draw(seeds))
    front = draw(shapes(min_dims=1, max_dims=2))
    inside, hidden = draw(st.integers(1, 4)), draw(st.integers(1, 4))
    return mlp_case(
        random, front, inside, hidden, draw(st.sampled_from([0, -1])), draw(approximate)
    )


def norm_case(random, shape, y, bias_axis, outputs=(0, 1)):
    """x, y, bias (None without a bias_axis), gamma, beta; `outputs`: which of the two are used."""
    bias = None if bias_axis is None else normal(random, (shape[bias_axis],))
    options = {"epsilon": 1e-6 if shape[-1] > 2 else 0.1, "outputs": outputs}
    return Case(
        (
            normal(random, shape) + 1,
            normal(random, shape) if y else None,
            bias,
            nonzero(random, shape[-1:]),
            normal(random, shape[-1:]),
        ),
        options | {"bias_axis": -1 if bias_axis is None else bias_axis},
    )


@st.composite
def norms(draw):
    """With a bias of each row (S,), a bias of each column (C,), or none; one output or both."""
    shape = (*draw(shapes(max_dims=2)), draw(st.integers(1, 5)))
    return norm_case(
        np.random.default_rng(draw(seeds)),
        shape,
        draw(st.booleans()),
        draw(st.sampled_from([None, 0, -1])),
        draw(st.sampled_from([(0, 1), (1, 0), (0,), (1,)])),
    )


def bias_case(random, shape, axis):
    return Case((normal(random, shape), normal(random, (shape[axis],))), {"axis": axis})


@st.composite
def biases(draw):
    shape = draw(shapes(min_dims=1))
    return bias_case(np.random.default_rng(draw(seeds)), shape, draw(st.sampled_from([0, -1])))


def entropy_case(random, batch, classes, kind, smoothing, reduction):
    if kind == "indices":
        target = random.integers(0, classes, batch)
    else:
        target = random.dirichlet(np.ones(classes), batch)
    options = {"target": target, "label_smoothing": smoothing, "reduction": reduction}
    return Case((2 * normal(random, (batch, classes)),), options)


@st.composite
def entropies(draw):
    return entropy_case(
        np.random.default_rng(draw(seeds)),
        draw(st.integers(1, 4)),
        draw(st.integers(1, 5)),
        draw(st.sampled_from(["indices", "distributions"])),
        draw(st.sampled_from([0.0, 0.1, 0.9])),
        draw(st.sampled_from(["mean", "sum", "none"])),
    )
