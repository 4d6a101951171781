"""Every operation of the package: how to call it, what it should give, how it could go wrong.

`OPERATIONS` has one entry for each Function. An entry draws inputs, knows a formula of its own
(`reference`, in NumPy, so none of the package's code), and has fixed inputs with planted errors:
wrong gradients that the gradient check must reject, or it is worth nothing.

Two things come out of one formula. Run on `Rounded` numbers it gives NumPy's float64 result and a
bound on rounding (rounding.py). Run on Tensors, the formula of a fused function is its first rung:
primitives, left to autograd.
"""

import importlib
import math
import pkgutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import drawn
import numpy as np
from drawn import Case
from hypothesis import strategies as st
from rounding import Rounded, constant, erf, select
from strategies import between, distinct, lattice, nonzero, normal, positive

import minimixer
from minimixer import Function, Tensor, functional, ops, rearrange
from minimixer.backend import is_array, namespace, to_device
from minimixer.kernels import fused
from minimixer.nn import loss, loss_scale, more_loss
from minimixer.parallel import overlap

# ---- what an entry consists of ------------------------------------------------------------------


# A planted error gets what forward was given, what backward was given and what backward found
# (lists), and returns what a wrong backward would return.
Change = Callable[[list[Any], dict[str, Any], list[Any], list[Any]], list[Any]]


@dataclass(frozen=True)
class Plant:
    """A way to make one operation's gradient wrong; `install` does it for the length of a test."""

    name: str
    install: Callable[[type[Function], Any], None]


@dataclass(frozen=True)
class Fixed:
    """Inputs of at least 24 elements, the errors that can be planted there, beside those that
    apply everywhere: `terms` by name; `share`, two inputs of one shape whose gradients differ;
    `undo`, the functions through which broadcasts of inputs are undone."""

    case: Case
    terms: dict[str, Change | Plant] = field(default_factory=dict)
    share: tuple[int, int] | None = None
    undo: tuple[str, ...] = ()


@dataclass(frozen=True)
class Operation:
    """See the module's text. `free`: gradients that cost nothing may be returned unasked."""

    function: type[Function]
    call: Callable[..., Any]
    reference: Callable[..., Any]
    draw: st.SearchStrategy[Case]
    fixed: dict[str, Fixed]
    fused: bool = False
    free: bool = False


def package_functions() -> set[type[Function]]:
    """Every Function that is a name in a module of the package, but for abstract ones (_Name).

    Those of kernels/ are fast twins of listed ones, and run under their names; those of app/ are
    the solutions of tasks, which test themselves.
    """
    for module in pkgutil.iter_modules(minimixer.__path__, "minimixer."):
        if not module.ispkg:
            importlib.import_module(module.name)
    found, todo = set(), [Function]
    while todo:
        for cls in todo.pop().__subclasses__():
            todo.append(cls)
            home = sys.modules.get(cls.__module__)
            inside = f"{cls.__module__}.".startswith("minimixer.")
            others = "minimixer.kernels.", "minimixer.app."
            inside = inside and not f"{cls.__module__}.".startswith(others)
            if inside and getattr(home, cls.__name__, None) is cls and cls.__name__[0] != "_":
                found.add(cls)
    return found


# ---- planted errors -----------------------------------------------------------------------------


def in_backward(name: str, change: Change) -> Plant:
    """Change what the class's own backward returns, whatever that is made of."""

    def install(cls: type[Function], monkeypatch: Any) -> None:
        right_forward, right_backward = cls.forward, cls.backward

        def forward(self, *arrays, **options):
            result = right_forward(self, *arrays, **options)
            self.planted = list(arrays), options
            return result

        def backward(self, *gradients):
            results = right_backward(self, *gradients)
            many = list(results) if isinstance(results, tuple) else [results]
            changed = change(*self.planted, list(gradients), many)
            return tuple(changed) if isinstance(results, tuple) else changed[0]

        monkeypatch.setattr(cls, "forward", forward)
        monkeypatch.setattr(cls, "backward", backward)

    return Plant(name, install)


def before_backward(name: str, change: Callable[[list[Any]], list[Any]]) -> Plant:
    """Change what the class's own backward is given: the gradients of its outputs."""

    def install(cls: type[Function], monkeypatch: Any) -> None:
        right = cls.backward
        monkeypatch.setattr(cls, "backward", lambda self, *g: right(self, *change(list(g))))

    return Plant(name, install)


def in_module(name: str, attribute: str, value: Any) -> Plant:
    """Change a function that the module of the class, or of what it derives from, calls."""

    def install(cls: type[Function], monkeypatch: Any) -> None:
        modules, first = (kind.__module__ for kind in cls.__mro__), attribute.partition(".")[0]
        home = next(name for name in modules if hasattr(sys.modules[name], first))
        monkeypatch.setattr(f"{home}.{attribute}", value)

    return Plant(name, install)


def other_gelu() -> Plant:
    """Forward in the form asked for; what is kept for backward comes from the other form."""

    def install(cls: type[Function], monkeypatch: Any) -> None:
        right = cls.forward

        def forward(self, *arrays, approximate, **options):
            result = right(self, *arrays, approximate=approximate, **options)
            other = {"tanh": "none", "none": "tanh"}[approximate]
            right(self, *arrays, approximate=other, **options)
            return result

        monkeypatch.setattr(cls, "forward", forward)

    return Plant("forward and backward of different GELU forms", install)


def _one_slice(gradient: Any, shape: tuple[int, ...]) -> Any:
    """sum_to_shape without the sum: the right shape, one of the repetitions."""
    gradient = gradient[(0,) * (gradient.ndim - len(shape))]
    return gradient[tuple(slice(0, n) for n in shape)]


def _one_of_each(gradient: Any, axis: int) -> Any:
    """bias_gradient without the sum."""
    if axis == 0:
        return gradient.reshape(len(gradient), -1)[:, 0]
    return gradient[(0,) * (gradient.ndim - 1)]


# Wrong forms of the functions that undo a broadcast: not at all, and without adding.
UNDONE_WRONGLY = {
    "sum_to_shape": (lambda gradient, shape: gradient, _one_slice),
    "sum_rows": (lambda matrix: matrix, lambda matrix: matrix[0]),
    "bias_gradient": (lambda gradient, axis: gradient, _one_of_each),
}


def plants(fixed: Fixed) -> Iterator[Plant]:
    """All that apply to these inputs."""
    positions = fixed.case.arrays

    def at(i: int, wrong: Callable[[Any], Any]) -> Change:
        return lambda inputs, options, dys, dxs: [
            wrong(dx) if k == i and dx is not None else dx for k, dx in enumerate(dxs)
        ]

    for i in positions:
        yield in_backward(f"input {i} scaled by 1.001", at(i, lambda dx: dx * 1.001))
        yield in_backward(f"input {i} with the other sign", at(i, lambda dx: -dx))
        yield in_backward(f"input {i} left out", at(i, lambda dx: None))
        yield in_backward(f"input {i} wrong in one element", at(i, _one_wrong_element))
    if fixed.share is not None:
        yield in_backward("one buffer given to two inputs", _overwrite(*fixed.share))
    for undo in fixed.undo:
        not_at_all, by_a_slice = UNDONE_WRONGLY[undo]
        yield in_module(f"{undo}: broadcast not undone", undo, not_at_all)
        yield in_module(f"{undo}: broadcast undone by a slice", undo, by_a_slice)
    for name, term in fixed.terms.items():
        yield term if isinstance(term, Plant) else in_backward(name, term)


def _one_wrong_element(dx: Any) -> Any:
    """The element of middling size, zeros left aside, becomes 1.01 times itself."""
    wrong = np.array(dx)
    size = np.where(dx == 0, np.inf, abs(dx)).ravel()
    wrong.flat[np.argsort(size)[np.count_nonzero(dx) // 2]] *= 1.01
    return wrong


def _overwrite(first: int, second: int) -> Change:
    def change(inputs, options, dys, dxs):
        buffer = dxs[first].copy()
        buffer[...] = dxs[second]
        dxs[first] = dxs[second] = buffer
        return dxs

    return change


def swapped(inputs, options, dys, dxs):
    return dxs[::-1]


def times(position: int, factor: Any) -> Change:
    return lambda inputs, options, dys, dxs: [
        dx * factor if i == position else dx for i, dx in enumerate(dxs)
    ]


def elementwise(function: Callable[..., Any]) -> Change:
    """dx = function(x, dy): a wrong derivative of an operation on one input."""
    return lambda inputs, options, dys, dxs: [function(inputs[0], dys[0]), *dxs[1:]]


def both(function: Callable[..., Any]) -> Change:
    """(da, db) = function(a, b, dy), both of the shape of dy."""
    return lambda inputs, options, dys, dxs: list(function(*inputs, dys[0]))


# ---- formulas of fused functions: NumPy's, and rung 1 -------------------------------------------


def linear_formula(x, weight, bias):
    y = x.reshape(1, -1) @ weight if x.ndim == 1 else x @ weight
    y = y.reshape(-1) if x.ndim == 1 else y
    return y if bias is None else y + bias


def linear_first_formula(x, weight, bias, transposed):
    weight = weight if transposed else weight.transpose(1, 0)
    return along_the_first(lambda x: linear_formula(x, weight, bias), x)


def along_the_first(mix, x):
    """As in the paper: transpose, mix the last axis, transpose back."""
    there, back = (*range(1, x.ndim), 0), (x.ndim - 1, *range(x.ndim - 1))
    return mix(x.transpose(*there)).transpose(*back)


def gelu_formula(x, approximate):
    if approximate == "tanh":
        return 0.5 * x * (1 + ((x + 0.044715 * (x * x * x)) * math.sqrt(2 / math.pi)).tanh())
    return 0.5 * x * (1 + (x * math.sqrt(0.5)).erf())


def mlp_formula(x, w1, b1, w2, axis, approximate):
    if axis == 0:
        return along_the_first(
            lambda x: mlp_formula(x, w1, b1, w2.transpose(1, 0), -1, approximate), x
        )
    return gelu_formula(x @ w1 + b1, approximate) @ w2


def layer_norm_formula(x, gamma, beta, epsilon):
    return norm_formula(x, None, None, gamma, beta, epsilon, -1, (1,))[0]


def norm_formula(x, y, bias, gamma, beta, epsilon, bias_axis, outputs, keep=None):
    bias = None if bias is None else _along(bias, bias_axis, x.ndim)
    if keep is None:
        s = x if y is None else x + y
        s = s if bias is None else s + bias
    else:
        s = x + (y if bias is None else y + bias) * keep[:, None]
    centred = s - s.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    both = s, centred / (variance + epsilon).sqrt() * gamma + beta
    return tuple(both[i] for i in outputs)


def _along(bias, axis, ndim):
    return bias.reshape(-1, *[1] * (ndim - 1)) if axis == 0 else bias


def entropy_formula(z, target, label_smoothing, reduction):
    largest = z.max(axis=-1, keepdims=True)
    log_total = (z - largest).exp().sum(axis=-1, keepdims=True).log() + largest
    if target.ndim == 1:
        picked = z[namespace(target).arange(target.size), target]
    else:
        picked = (z * target).sum(axis=-1)
    if label_smoothing:
        picked = (1 - label_smoothing) * picked + label_smoothing * z.mean(axis=-1)
    losses = log_total.reshape(-1) - picked
    return {"mean": losses.mean, "sum": losses.sum, "none": lambda: losses}[reduction]()


def softmax_formula(z, axis):
    e = (z - z.max(axis=axis, keepdims=True)).exp()
    return e / e.sum(axis=axis, keepdims=True)


def log_softmax_formula(z, axis):
    shifted = z - z.max(axis=axis, keepdims=True)
    return shifted - shifted.exp().sum(axis=axis, keepdims=True).log()


def add_layer_norm(*inputs, outputs, keep=None, **options):
    if keep is not None:
        keep = Tensor(keep, device=inputs[0].device, dtype=inputs[0].dtype)
    results = fused.add_layer_norm(*inputs, keep=keep, **options)
    return tuple(results[i] for i in outputs)


# ---- errors with a meaning ----------------------------------------------------------------------


def _norm_parts(inputs, options, dys):
    x, y, bias, gamma, _, keep = inputs
    added = np.zeros_like(x) if y is None else y
    added = added if bias is None else added + _along(bias, options["bias_axis"], x.ndim)
    s = x + added * (1 if keep is None else keep[:, None])
    sigma = np.sqrt(s.var(axis=-1, keepdims=True) + options["epsilon"])
    x_hat = (s - s.mean(axis=-1, keepdims=True)) / sigma
    return x_hat, sigma, gamma * dys[1]


def _add_to_input(inputs, options, dxs, term):
    """`term` more in dL/ds: it goes to x and y, and summed to the bias."""
    y, bias, keep = *inputs[1:3], inputs[5]
    dxs[0] = dxs[0] + term
    term = term * (1 if keep is None else keep[:, None])
    dxs[1] = None if y is None else dxs[1] + term
    if bias is not None:
        rows = np.moveaxis(term, options["bias_axis"], -1).reshape(-1, bias.size)
        dxs[2] = dxs[2] + rows.sum(axis=0)
    return dxs


def norm_without_mean(inputs, options, dys, dxs):
    _, sigma, dx_hat = _norm_parts(inputs, options, dys)
    term = np.broadcast_to(dx_hat.mean(axis=-1, keepdims=True) / sigma, dx_hat.shape)
    return _add_to_input(inputs, options, dxs, term)


def norm_without_x_hat(inputs, options, dys, dxs):
    x_hat, sigma, dx_hat = _norm_parts(inputs, options, dys)
    along = (dx_hat * x_hat).mean(axis=-1, keepdims=True)
    return _add_to_input(inputs, options, dxs, x_hat * along / sigma)


def norm_gamma_without_x_hat(inputs, options, dys, dxs):
    return [*dxs[:3], dxs[4], dxs[4], None]


def alone(wrong):
    """A wrong gradient of AddLayerNorm for LayerNorm alone: with nothing to add, only h used."""

    def change(inputs, options, dys, dxs):
        x, *norm = inputs
        options, everything = {**options, "bias_axis": -1}, [dxs[0], None, None, *dxs[1:], None]
        dx, _, _, *others, _ = wrong(
            (x, None, None, *norm, None), options, [None, *dys], everything
        )
        return [dx, *others]

    return change


def mlp_without_slope(inputs, options, dys, dxs):
    """du = dg: as if GELU were the identity."""
    x, w1, b1, w2 = inputs
    (dy,) = dys
    if options["axis"] == 0:
        x, dy, w2 = np.moveaxis(x, 0, -1), np.moveaxis(dy, 0, -1), w2.T
    du = dy @ w2.T
    dx = du @ w1.T
    rows = du.reshape(-1, len(b1))
    dw1 = x.reshape(-1, x.shape[-1]).T @ rows
    dx = np.moveaxis(dx, -1, 0) if options["axis"] == 0 else dx
    return [dx, dw1, rows.sum(axis=0), dxs[3]]


def entropy_with(subtracted):
    """(p - subtracted(z, target)) / B, where the smoothed target should be subtracted from p."""

    def wrong(inputs, options, dys, dxs):
        z, target = inputs[0], options["target"]
        p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
        scale = dys[0].reshape(-1, 1) / (len(z) if options["reduction"] == "mean" else 1)
        return [(p - subtracted(z, target)) * scale]

    return wrong


def _one_hot(z, target):
    return np.eye(z.shape[1])[target] if target.ndim == 1 else target


def from_softmax(change):
    """change(p, dy, sum along the axis) -> the wrong gradient of softmax or its logarithm."""

    def wrong(inputs, options, dys, dxs):
        axis, e = options["axis"], np.exp(inputs[0])
        p = e / e.sum(axis=axis, keepdims=True)
        return [change(p, dys[0], lambda x: x.sum(axis=axis, keepdims=True))]

    return wrong


def index_without_adding(inputs, options, dys, dxs):
    dx = np.zeros_like(inputs[0])
    dx[options["index"]] = dys[0]
    return [dx]


def _spread(x, dy, axis):
    return np.broadcast_to(np.expand_dims(dy, axis), x.shape)


# ---- the registry -------------------------------------------------------------------------------


def _random() -> np.random.Generator:
    return np.random.default_rng(5)


def _same(first=normal, second=normal, shape=(4, 6)):
    random = _random()
    return Case((first(random, shape), second(random, shape)))


def _repeated(first=normal, second=normal):
    """(2, 3, 4) with (3, 1): both ways in which broadcasting repeats."""
    random = _random()
    return Case((first(random, (2, 3, 4)), second(random, (3, 1))))


def _one(domain=normal, shape=(4, 6), **options):
    return Case((domain(_random(), shape),), options)


def binary(function, call, reference, draw, domains=(normal, normal), share=(0, 1), **terms):
    fixed = {
        "same shapes": Fixed(_same(*domains), _named(both, terms), share),
        "broadcast": Fixed(_repeated(*domains), undo=("sum_to_shape",)),
    }
    return Operation(function, call, reference, draw, fixed)


def single(function, call, reference, domain=normal, **terms):
    fixed = {"one": Fixed(_one(domain), _named(elementwise, terms))}
    return Operation(function, call, reference, drawn.unary(domain), fixed)


def _named(kind, terms):
    return {name.replace("_", " "): kind(wrong) for name, wrong in terms.items()}


def _norm_fixed(shape, y, bias_axis, keep=False):
    terms: dict[str, Any] = {
        "without its mean term": norm_without_mean,
        "without its x_hat term": norm_without_x_hat,
        "gamma without x_hat": norm_gamma_without_x_hat,
        "s forgotten": before_backward("s forgotten", lambda g: [None, g[1]]),
        "h forgotten": before_backward("h forgotten", lambda g: [g[0], None]),
        "s scaled": before_backward("only s scaled by 1.001", lambda g: [g[0] * 1.001, g[1]]),
        "h scaled": before_backward("only h scaled by 1.001", lambda g: [g[0], g[1] * 1.001]),
        "outputs swapped": before_backward("outputs swapped", lambda g: g[::-1]),
    }
    # gamma and beta are two arrays of one shape; x and y rightly get equal gradients.
    undo = ("bias_gradient",) * (bias_axis is not None)
    case = drawn.norm_case(_random(), shape, y, bias_axis, keep=keep)
    if keep:
        terms["dropped with a gradient"] = lambda inputs, options, dys, dxs: [
            dxs[0],
            dxs[0],
            *dxs[2:],
        ]
    return Fixed(case, terms, share=(3, 4), undo=undo)


def _mlp_fixed(axis, form):
    case = drawn.mlp_case(_random(), (2, 3), 4, 5, axis, form)
    terms = {"without slope": mlp_without_slope, "other form": other_gelu()}
    terms["db1 the mean, not the sum"] = times(2, 1 / 6)
    if axis == 0:
        return Fixed(case, terms, share=(1, 3))
    return Fixed(case, terms, undo=("sum_rows",))


def _bias_fixed(axis):
    case = drawn.bias_case(_random(), (4, 2, 6), axis)
    terms = {"bias the mean, not the sum": times(1, case.inputs[1].size / case.inputs[0].size)}
    return Fixed(case, terms, undo=("bias_gradient",))


def _entropy_fixed(kind, smoothing, reduction):
    terms = {"without -t": entropy_with(lambda z, target: 0)}
    if smoothing:
        terms["target not smoothed"] = entropy_with(_one_hot)
    if reduction == "mean":
        terms["not divided by the batch"] = times(0, 6)
    return Fixed(drawn.entropy_case(_random(), 6, 5, kind, smoothing, reduction), terms)


def _larger(a, b):
    a, b = constant(a), constant(b)
    return select(lambda u, v: np.where(a.value > b.value, u, v), a, b)


def _extreme(function, name, **terms):
    """The largest or the smallest along axes; planted: the gradient goes to the other end."""
    other = {"max": np.min, "min": np.max}[name]
    terms[f"to that of {other.__name__}"] = elementwise(
        lambda x, dy: _spread(x, dy, 1) * (x == other(x, axis=1, keepdims=True))
    )
    return Operation(
        function, getattr(rearrange, name),
        lambda x, **options: select(lambda v: getattr(v, name)(**options), x),
        drawn.reductions(distinct, 1),
        {"one axis": Fixed(_one(distinct, (4, 3, 2), axis=1, keepdims=False), terms)},
    )  # fmt: skip


def _joined(function, call, numpys, draw, axis):
    case = Case(_same().inputs, {"axis": axis})
    return Operation(
        function, lambda *arrays, axis: call(arrays, axis),
        lambda *arrays, axis: select(lambda *a: numpys(a, axis=axis), *arrays), draw,
        {"two": Fixed(case, {"pieces swapped": swapped}, (0, 1))}, free=True,
    )  # fmt: skip


def _softmax(function, call, reference, **terms):
    fixed = {f"axis {a}": Fixed(_one(shape=(3, 4, 2), axis=a), terms) for a in (-1, 1)}
    return Operation(function, call, reference, drawn.softmaxes, fixed, fused=True)


def var_formula(x, axis, keepdims, correction):
    centred = x - x.mean(axis=axis, keepdims=True)
    squares = (centred * centred).sum(axis=axis, keepdims=keepdims)
    count = x.value.size // max(1, squares.value.size)
    return squares / (count - correction)


def _variances(function, reference, **terms):
    """Of seven numbers and more, which all differ: no deviation is near 0."""
    case = _one(distinct, (4, 7, 2), axis=1, keepdims=False, correction=1)
    fixed = Fixed(case, {
        "divided by n": times(0, 6 / 7),
        "mean kept": lambda inputs, options, dys, dxs: [
            dxs[0] * inputs[0] / (inputs[0] - inputs[0].mean(axis=1, keepdims=True) + 1e-9)],
        **terms})  # fmt: skip
    return Operation(function, function.apply, reference, drawn.variances, {"one axis": fixed})


def _limited(x, low, high):
    return Rounded(
        np.minimum(np.maximum(x.value, -9 if low is None else low), 9 if high is None else high)
    )


_ALL = [
    binary(ops.Add, ops.add, lambda a, b: a + b, drawn.pairs(), share=None,
           halved=lambda a, b, dy: (dy / 2, dy / 2)),
    binary(ops.Subtract, ops.subtract, lambda a, b: a - b, drawn.pairs(),
           minus_dropped=lambda a, b, dy: (dy, dy)),
    binary(ops.Multiply, ops.multiply, lambda a, b: a * b, drawn.pairs(),
           factors_swapped=lambda a, b, dy: (dy * a, dy * b)),
    binary(ops.Divide, ops.divide, lambda a, b: a / b,
           drawn.pairs(normal, nonzero), (normal, nonzero),
           minus_dropped=lambda a, b, dy: (dy / b, dy * a / b**2),
           y_dropped=lambda a, b, dy: (dy / b, -dy / b)),
    binary(ops.Power, ops.power, lambda a, b: a**b, drawn.powers(), (positive, normal),
           logarithm_dropped=lambda a, b, dy: (dy * b * a ** (b - 1), dy * a**b),
           exponent_not_lowered=lambda a, b, dy: (dy * b * a**b, dy * a**b * np.log(a)),
           factor_dropped=lambda a, b, dy: (dy * a ** (b - 1), dy * a**b * np.log(a))),
    binary(ops.Maximum, ops.maximum, _larger, drawn.pairs(lattice, between), (lattice, between),
           swapped=lambda a, b, dy: (dy * (a < b), dy * (a > b)),
           both_get_all=lambda a, b, dy: (dy, dy),
           both_get_half=lambda a, b, dy: (dy / 2, dy / 2)),
    single(overlap.Marker, lambda x: overlap.Marker.apply(x, passed=lambda: None), lambda x: x,
           doubled=lambda x, dy: 2 * dy),
    single(ops.Negative, ops.negative, lambda x: -x, minus_dropped=lambda x, dy: dy),
    single(ops.Exp, ops.exp, lambda x: x.exp(), y_dropped=lambda x, dy: dy),
    single(ops.Log, ops.log, lambda x: x.log(), positive, times_x=lambda x, dy: dy * x),
    single(ops.Sqrt, ops.sqrt, lambda x: x.sqrt(), positive,
           half_dropped=lambda x, dy: dy / np.sqrt(x)),
    single(ops.Tanh, ops.tanh, lambda x: x.tanh(),
           square_dropped=lambda x, dy: dy * (1 - np.tanh(x)), only_one=lambda x, dy: dy),
    single(ops.Erf, ops.erf, lambda x: x.erf(),
           factor_dropped=lambda x, dy: dy * np.exp(-x * x),
           normal_density=lambda x, dy: dy * 2 / math.sqrt(math.pi) * np.exp(-x * x / 2)),
    single(ops.Abs, ops.absolute, lambda x: Rounded(abs(x.value)), nonzero,
           sign_dropped=lambda x, dy: dy),
    single(ops.Relu, ops.relu, lambda x: Rounded(np.maximum(x.value, 0)), nonzero,
           everywhere=lambda x, dy: dy, nowhere=lambda x, dy: dy * (x < 0)),
    Operation(
        ops.Clip, ops.clip, _limited, drawn.clips(),
        {"both limits": Fixed(Case((_one(between).inputs[0], -0.5, 0.75)), {
            "limits ignored": lambda inputs, options, dys, dxs: [dys[0], None, None],
            "high ignored": lambda inputs, options, dys, dxs: [
                dys[0] * (inputs[0] > -0.5), None, None],
        })},
    ),
    Operation(
        ops.Where, lambda a, b, condition: ops.where(condition, a, b),
        lambda a, b, condition: select(lambda u, v: np.where(condition, u, v), a, b),
        drawn.conditions(),
        {
            "same shapes": Fixed(
                Case(_same().inputs, {"condition": _random().random((4, 6)) < 0.5}),
                {"swapped": swapped}, (0, 1)),
            "broadcast": Fixed(
                Case(_repeated().inputs, {"condition": _random().random((3, 4)) < 0.5}),
                undo=("sum_to_shape",)),
        },
    ),
    Operation(
        ops.MatMul, ops.matmul, lambda a, b: a @ b, drawn.products(),
        {
            "square": Fixed(_same(shape=(5, 5)), {
                "factors not transposed": both(lambda a, b, dy: (dy @ b, a @ dy)),
                "factors swapped": both(lambda a, b, dy: (dy @ a.T, b.T @ dy)),
            }, (0, 1)),
            "stacks": Fixed(
                Case((normal(_random(), (2, 3, 4)), normal(_random(), (4, 6)))),
                undo=("sum_to_shape",)),
        },
    ),
    Operation(
        rearrange.Sum, rearrange.sum, lambda x, axis, keepdims: x.sum(axis, keepdims),
        drawn.reductions(), {"one axis": Fixed(_one(shape=(4, 3, 2), axis=1, keepdims=False), {
            "divided by the count": times(0, 1 / 3),
            "to the first of each row": times(0, np.array([[1], [0], [0]])),
        })},
    ),
    Operation(
        rearrange.Mean, rearrange.mean, lambda x, axis, keepdims: x.mean(axis, keepdims),
        drawn.reductions(min_side=1),
        {"two axes": Fixed(_one(shape=(4, 3, 2), axis=(0, -1), keepdims=True), {
            "not divided by the count": times(0, 8),
            "divided by the size": times(0, 1 / 3),
        })},
    ),
    _extreme(rearrange.Max, "max", **{
        "to all elements": elementwise(lambda x, dy: _spread(x, dy, 1)),
        "shared by the row": elementwise(lambda x, dy: _spread(x, dy, 1) / 3)}),
    _extreme(rearrange.Min, "min"),
    _variances(rearrange.Var, var_formula),
    _variances(rearrange.Std, lambda *case, **options: var_formula(*case, **options).sqrt()),
    Operation(
        rearrange.Reshape, rearrange.reshape, lambda x, shape: x.reshape(shape), drawn.reshapes,
        {"matrix": Fixed(Case(_one().inputs, {"shape": (3, 8)}), {
            "in another order": elementwise(lambda x, dy: dy.reshape(x.shape, order="F")),
        })},
    ),
    Operation(
        rearrange.Transpose, rearrange.transpose, lambda x, axes: x.transpose(axes),
        drawn.transposes, {"cycle": Fixed(_one(shape=(3, 3, 3), axes=(1, 2, 0)), {
            "permuted once more": elementwise(lambda x, dy: dy.transpose(1, 2, 0)),
            "not permuted": elementwise(lambda x, dy: dy),
        })},
    ),
    Operation(
        rearrange.Index, lambda x, index: rearrange.index(x, index), lambda x, index: x[index],
        drawn.indices(),
        {
            "repeated": Fixed(_one(shape=(6, 4), index=np.array([0, 2, 2, 5, 2])), {
                "assigned, not added": index_without_adding}),
            "slice": Fixed(_one(shape=(6, 8), index=(slice(1, None, 2), ...)), {
                "one row further": lambda inputs, options, dys, dxs: [np.roll(dxs[0], 1, axis=0)]}),
        },
    ),
    _joined(rearrange.Concatenate, rearrange.concatenate, np.concatenate, drawn.joins(), -1),
    _joined(rearrange.Stack, rearrange.stack, np.stack, drawn.stacks(), 1),
    Operation(
        rearrange.To, lambda x, device: rearrange.to(x, device=device), lambda x, device: x,
        drawn.moves,
        {"to the cpu": Fixed(_one(device="cpu"), {
            "through float16": elementwise(lambda x, dy: dy.astype("float16").astype(dy.dtype))})},
    ),
    Operation(
        functional.Linear, functional.linear, linear_formula, drawn.linears,
        {"square": Fixed(
            Case((normal(_random(), (6, 5)), normal(_random(), (5, 5)), normal(_random(), (5,)))), {
                "W not transposed": lambda inputs, options, dys, dxs: [
                    dys[0] @ inputs[1], *dxs[1:]],
                "bias the mean, not the sum": times(2, 1 / 6),
            }, undo=("sum_rows",)),
         "one shape": Fixed(Case((*_same(shape=(5, 5)).inputs, None)), share=(0, 1))},
        fused=True,
    ),
    Operation(
        functional.LinearFirst, functional.linear_first, linear_first_formula, drawn.firsts,
        {f"transposed {transposed}": Fixed(
            drawn.first_case(_random(), (2, 3), 5, 5, True, transposed), {
                "W not transposed": lambda inputs, options, dys, dxs: [
                    np.tensordot(inputs[1].T if options["transposed"] else inputs[1], dys[0], 1),
                    *dxs[1:]],
                "dW transposed": lambda inputs, options, dys, dxs: [dxs[0], dxs[1].T, dxs[2]],
                "bias the mean, not the sum": times(2, 1 / 6),
            }) for transposed in (False, True)},
        fused=True,
    ),
    Operation(
        functional.LayerNorm, functional.layer_norm, layer_norm_formula,
        drawn.norms.map(lambda case: Case((case.inputs[0], *case.inputs[3:]),
                                      {"epsilon": case.options["epsilon"]})),
        {"(4, 6)": Fixed(
            Case((normal(_random(), (4, 6)), normal(_random(), (6,)), normal(_random(), (6,))),
                 {"epsilon": 1e-6}),
            {"without its mean term": alone(norm_without_mean),
             "without its x_hat term": alone(norm_without_x_hat),
             "gamma without x_hat": alone(norm_gamma_without_x_hat)},
            share=(1, 2), undo=("sum_rows",))},
        fused=True,
    ),
    Operation(
        functional.GELU, functional.gelu, gelu_formula, drawn.gelus,
        {form: Fixed(_one(approximate=form), {
            "other form": other_gelu(),
            "without x phi": elementwise(
                lambda x, dy: dy * (1 + erf(x * math.sqrt(0.5))) / 2),
            "without Phi": elementwise(
                lambda x, dy: dy * x * np.exp(-x * x / 2) / math.sqrt(2 * math.pi)),
        }) for form in ("none", "tanh")},
        fused=True,
    ),
    Operation(
        fused.MLP, fused.mlp, mlp_formula, drawn.mlps,
        {f"axis {axis}, {form}": _mlp_fixed(axis, form)
         for axis in (0, -1) for form in ("tanh", "none")},
        fused=True,
    ),
    Operation(
        fused.AddLayerNorm, add_layer_norm, norm_formula, drawn.norms,
        {
            "residual and bias (C,)": _norm_fixed((4, 2, 6), True, -1),
            "residual and token bias (S,)": _norm_fixed((4, 2, 6), True, 0),
            "token bias alone": _norm_fixed((4, 2, 6), False, 0),
            "some dropped, bias (C,)": _norm_fixed((4, 3, 6), True, -1, keep=True),
            "some dropped, token bias (S,)": _norm_fixed((4, 3, 6), True, 0, keep=True),
            "residual alone": _norm_fixed((4, 6), True, None),
            "LayerNorm": _norm_fixed((4, 6), False, None),
        },
        fused=True,
    ),
    Operation(
        fused.AddBias, fused.add_bias,
        lambda x, bias, axis: x + _along(bias, axis, x.ndim), drawn.biases,
        {f"axis {axis}": _bias_fixed(axis) for axis in (0, -1)},
        fused=True, free=True,
    ),
    Operation(
        loss_scale.ScaleGradient,
        lambda x, scale: loss_scale.scale_gradient(x, to_device(scale, x.device)),
        lambda x, scale: x, drawn.scales,
        {"one": Fixed(_one(scale=np.ones(1)), {
            "through float16": elementwise(lambda x, dy: dy.astype("float16").astype(dy.dtype)),
            "of the wrong row": elementwise(lambda x, dy: dy[::-1])})},
    ),
    Operation(
        loss.CrossEntropy, loss.cross_entropy, entropy_formula, drawn.entropies,
        {f"{kind}, smoothing {smoothing}, {reduction}": _entropy_fixed(kind, smoothing, reduction)
         for kind in ("indices", "distributions")
         for smoothing, reduction in ((0.0, "mean"), (0.1, "none"), (0.2, "sum"))},
        fused=True,
    ),
    _softmax(more_loss.Softmax, more_loss.softmax, softmax_formula, **{
        "without the sum": from_softmax(lambda p, dy, total: dy * p),
        "the diagonal alone": from_softmax(lambda p, dy, total: dy * p * (1 - p)),
        "cross-entropy's": from_softmax(lambda p, dy, total: p - dy),
        "the sum without p": from_softmax(lambda p, dy, total: p * (dy - total(dy))),
        "the sum over another axis": from_softmax(
            lambda p, dy, total: p * (dy - (dy * p).sum(axis=0, keepdims=True)))}),
    _softmax(more_loss.LogSoftmax, more_loss.log_softmax, log_softmax_formula, **{
        "without the sum": from_softmax(lambda p, dy, total: dy - p * dy),
        "softmax's": from_softmax(lambda p, dy, total: p * (dy - total(dy * p))),
        "the sum over another axis": from_softmax(
            lambda p, dy, total: dy - p * dy.sum(axis=0, keepdims=True))}),
]  # fmt: skip

OPERATIONS = {operation.function.__name__: operation for operation in _ALL}


# ---- running an entry ---------------------------------------------------------------------------


def tensors(case: Case, device: str, dtype: str = "float64", needs: Any = None) -> list[Any]:
    """The inputs as Tensors on a device; `needs`: the positions with requires_grad (None: all)."""
    return [
        Tensor(
            to_device(value.astype(dtype), device), requires_grad=needs is None or i in needs
        )
        if isinstance(value, np.ndarray)
        else value
        for i, value in enumerate(case.inputs)
    ]  # fmt: skip


def outputs_of(operation: Operation, case: Case, inputs: list[Any]) -> list[Tensor]:
    result = operation.call(*inputs, **case.options)
    return list(result) if isinstance(result, tuple) else [result]


def composed(operation: Operation, case: Case, inputs: list[Any], device: str) -> list[Tensor]:
    """Rung 1: the formula on Tensors."""
    options = {
        key: to_device(value, device) if is_array(value) else value
        for key, value in case.options.items()
    }
    result = operation.reference(*inputs, **options)
    return list(result) if isinstance(result, tuple) else [result]


def expected(operation: Operation, case: Case, dtype: str = "float64") -> list[Rounded]:
    """The formula on the inputs as `dtype` holds them, in float64."""
    inputs = [
        Rounded(value.astype(dtype)) if isinstance(value, np.ndarray) else value
        for value in case.inputs
    ]
    result = operation.reference(*inputs, **case.options)
    return list(result) if isinstance(result, tuple) else [result]


def seeds_for(outputs: list[Tensor], seed: int = 1) -> list[Any]:
    """A gradient for each output: numbers of its own, so that no mistake cancels."""
    random = np.random.default_rng(seed)
    return [
        to_device(np.asarray(random.uniform(0.5, 1.5, y.shape), dtype=y.dtype), y.device)
        for y in outputs
    ]


class Ends(Function):
    """All outputs end here: backward from this sends each the gradient it was given for it."""

    def forward(self, *outputs, seeds):
        self.seeds = seeds
        return namespace(outputs[0]).zeros((), dtype=outputs[0].dtype)

    def backward(self, dy):
        return tuple(self.seeds)


def run_backward(outputs: list[Tensor], seeds: list[Any] | None = None) -> None:
    """backward from all outputs at once, each with a gradient of its own and no node between."""
    Ends.apply(*outputs, seeds=seeds_for(outputs) if seeds is None else seeds).backward()
