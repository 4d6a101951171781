"""The operations of examples/baselines/operations.py, as operations.py lists the package's own.

For each: how to call it, a formula of its own that runs on `Rounded` numbers (NumPy's result, and
by how much rounding may move it) and on Tensors (primitives, left to autograd), inputs to draw, and
fixed inputs with planted errors that the gradient check must reject. test_baselines.py runs the
tests of the package's operations on them.
"""

import functools
import math

import numpy as np
from hypothesis import strategies as st
from operations import Case, Fixed, Operation, before_backward, in_module
from rounding import Rounded, select
from strategies import distinct, nonzero, normal, seeds

from baselines import operations as baseline_ops
from minimixer import Tensor, ops
from minimixer.backend import namespace
from minimixer.rearrange import concatenate

# ---- formulas -----------------------------------------------------------------------------------


def split_formula(x, heads):
    tokens, batch, width = x.shape
    parts = x.reshape(tokens, batch, 3 * heads, width // (3 * heads))
    return tuple(
        parts[:, :, part * heads : (part + 1) * heads].transpose(1, 2, 0, 3) for part in range(3)
    )


def _padded(x, kernel, stride, padding, fill=0.0):
    """x with padding around it, as a constant: by concatenation where x is a Tensor."""
    windows = baseline_ops.Windows(*x.shape[1:3], kernel, stride, padding)
    for axis, (before, after) in enumerate(windows.pads, start=1):
        widths = [(0, 0)] * 4
        widths[axis] = before, after
        if isinstance(x, Tensor):
            sides = [namespace(x.data).full(
                (*x.shape[:axis], count, *x.shape[axis + 1 :]), fill, dtype=x.dtype
            ) for count in (before, after)]  # fmt: skip
            x = concatenate([sides[0], x, sides[1]], axis=axis)
        else:
            x = Rounded(np.pad(x.value, widths, constant_values=fill), np.pad(x.error, widths))
    return x, windows.rows, windows.columns


def _shifted(x, kernel, stride, padding, fill=0.0):
    """For each place (i, j) in the window, all windows' pixels there."""
    x, rows, columns = _padded(x, kernel, stride, padding, fill)
    bottom, right = stride * (rows - 1) + 1, stride * (columns - 1) + 1
    return [x[:, i : i + bottom : stride, j : j + right : stride]
            for i in range(kernel) for j in range(kernel)]  # fmt: skip


def conv_formula(x, weight, kernel, stride, padding, precision=None):
    """A sum over places in the window, no patches: y = sum_ij x[.. + i, .. + j] W[i, j]."""
    weights = weight.reshape(kernel * kernel, x.shape[3], weight.shape[1])
    places = _shifted(x, kernel, stride, padding)
    terms = [place @ weights[number] for number, place in enumerate(places)]
    return functools.reduce(lambda y, term: y + term, terms)


def _larger(a, b):
    if isinstance(a, Tensor):
        return ops.maximum(a, b)
    return select(np.maximum, a, b)


def pool_formula(x, kernel, stride, padding, fill):
    return functools.reduce(_larger, _shifted(x, kernel, stride, padding, fill))


def group_norm_formula(x, gamma, beta, groups, epsilon, relu):
    batch, height, width, channels = x.shape
    s = x.reshape(batch, height * width, groups, channels // groups)
    centred = s - s.mean(axis=(1, 3), keepdims=True)
    variance = (centred * centred).mean(axis=(1, 3), keepdims=True)
    x_hat = (centred / (variance + epsilon).sqrt()).reshape(batch, height, width, channels)
    y = x_hat * gamma + beta
    if not relu:
        return y
    return ops.maximum(y, 0.0) if isinstance(y, Tensor) else select(np.maximum, y, 0.0)


def standardize_formula(weight, epsilon):
    centred = weight - weight.mean(axis=0, keepdims=True)
    return centred / ((centred * centred).mean(axis=0, keepdims=True) + epsilon).sqrt()


# ---- drawing inputs -----------------------------------------------------------------------------


def normal_case(random, shape, **options):
    return Case((normal(random, shape),), options)


@st.composite
def splits(draw):
    heads, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    shape = draw(st.integers(1, 4)), draw(st.integers(1, 3)), 3 * heads * size
    return normal_case(np.random.default_rng(draw(seeds)), shape, heads=heads)


@st.composite
def windows(draw):
    """Images' height and width; kernel, stride and padding that fit them."""
    kernel, stride = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    padding = draw(st.just("same") | st.integers(0, kernel // 2))
    least = 1 if padding == "same" else max(1, kernel - 2 * padding)
    size = draw(st.integers(least, least + 4)), draw(st.integers(least, least + 4))
    return size, {"kernel": kernel, "stride": stride, "padding": padding}


def conv_case(random, batch, size, channels, out, **options):
    weight = normal(random, (options["kernel"] ** 2 * channels, out))
    return Case((normal(random, (batch, *size, channels)), weight), options)


@st.composite
def convolutions(draw):
    size, options = draw(windows())
    random = np.random.default_rng(draw(seeds))
    batch, channels, out = (draw(st.integers(1, 3)) for _ in range(3))
    return conv_case(random, batch, size, channels, out, **options)


@st.composite
def poolings(draw):
    size, options = draw(windows())
    random = np.random.default_rng(draw(seeds))
    x = distinct(random, (draw(st.integers(1, 3)), *size, draw(st.integers(1, 3))))
    fill = draw(st.sampled_from([-math.inf, 0.0625]))  # which is no element of x
    return Case((x,), options | {"fill": fill})


def group_norm_case(random, shape, groups, relu):
    """With `relu`, beta is the one of some numbers that keeps all of a channel farthest from 0."""
    x, gamma = normal(random, shape) + 1, nonzero(random, shape[3:])
    beta = normal(random, shape[3:])
    options = {"groups": groups, "epsilon": 1e-5 if math.prod(shape[1:]) > 2 * groups else 0.1}
    if relu:
        y = group_norm_formula(*map(Rounded, (x, gamma, 0 * beta)), **options, relu=False).value
        choices = normal(random, (100,))
        distances = abs(y[..., None] + choices).min(axis=(0, 1, 2))  # (channels, 100)
        beta = choices[distances.argmax(axis=1)]
    return Case((x, gamma, beta), options | {"relu": relu})


@st.composite
def group_norms(draw):
    groups, size = draw(st.integers(1, 3)), draw(st.integers(1, 3))
    batch, height, width = (draw(st.integers(1, 3)) for _ in range(3))
    random = np.random.default_rng(draw(seeds))
    shape = (batch, height, width, groups * size)
    return group_norm_case(random, shape, groups, draw(st.booleans()))


@st.composite
def weights(draw):
    shape = draw(st.integers(2, 6)), draw(st.integers(1, 4))
    epsilon = 1e-6 if shape[0] > 2 else 0.1
    return normal_case(np.random.default_rng(draw(seeds)), shape, epsilon=epsilon)


# ---- errors with a meaning ----------------------------------------------------------------------


def wrong(function):
    """(x, dy, options) -> the wrong gradient of the only input."""
    return lambda inputs, options, dys, dxs: [function(inputs[0], dys[0], **options)]


def _group_norm_parts(inputs, options, dys):
    """(x_hat, sigma, dx_hat) and the mean over a group, repeated."""
    x, gamma, beta = inputs
    shape, groups = x.shape, options["groups"]

    def mean(array):
        parts = array.reshape(shape[0], -1, groups, shape[3] // groups)
        means = np.broadcast_to(parts.mean(axis=(1, 3), keepdims=True), parts.shape)
        return means.reshape(shape)

    sigma = np.sqrt(mean((x - mean(x)) ** 2) + options["epsilon"])
    x_hat = (x - mean(x)) / sigma
    passed = x_hat * gamma + beta > 0 if options["relu"] else 1
    return x_hat, sigma, gamma * dys[0] * passed, mean


def group_norm_without_mean(inputs, options, dys, dxs):
    _, sigma, dx_hat, mean = _group_norm_parts(inputs, options, dys)
    return [dxs[0] + mean(dx_hat) / sigma, *dxs[1:]]


def group_norm_without_x_hat(inputs, options, dys, dxs):
    x_hat, sigma, dx_hat, mean = _group_norm_parts(inputs, options, dys)
    return [dxs[0] + x_hat * mean(dx_hat * x_hat) / sigma, *dxs[1:]]


def group_norm_sigma_once(inputs, options, dys, dxs):
    """The sums' x_hat taken for c: a factor of sigma short."""
    x_hat, sigma, dx_hat, mean = _group_norm_parts(inputs, options, dys)
    term = x_hat * mean(dx_hat * x_hat) / sigma
    return [dxs[0] + term - term * sigma, *dxs[1:]]


def group_norm_per_channel(inputs, options, dys, dxs):
    """Means over pixels alone: InstanceNorm's gradient."""
    x_hat, sigma, dx_hat, _ = _group_norm_parts(inputs, options, dys)
    along = (dx_hat * x_hat).mean(axis=(1, 2), keepdims=True)
    mean = dx_hat.mean(axis=(1, 2), keepdims=True)
    return [(dx_hat - mean - x_hat * along) / sigma, *dxs[1:]]


def group_norm_without_relu(inputs, options, dys, dxs):
    _, sigma, _, mean = _group_norm_parts(inputs, options | {"relu": False}, dys)
    x_hat, dx_hat = (inputs[0] - mean(inputs[0])) / sigma, inputs[1] * dys[0]
    dx = (dx_hat - mean(dx_hat) - x_hat * mean(dx_hat * x_hat)) / sigma
    sums = [(dys[0] * x_hat).sum(axis=(0, 1, 2)), dys[0].sum(axis=(0, 1, 2))]
    return [dx, *sums]


def standardize_without(term):
    def change(w, dy, epsilon):
        sigma = np.sqrt(w.var(axis=0) + epsilon)
        y = (w - w.mean(axis=0)) / sigma
        parts = {"mean": dy.mean(axis=0), "along": y * (dy * y).mean(axis=0)}
        return (dy - sum(part for name, part in parts.items() if name != term)) / sigma

    return wrong(change)


def conv_weight_of_flipped_windows(inputs, options, dys, dxs):
    """dW of a convolution proper, whose kernel is turned by half a turn."""
    places = options["kernel"] ** 2
    turned = dxs[1].reshape(places, -1, dxs[1].shape[1])[::-1]
    return [dxs[0], turned.reshape(dxs[1].shape)]


def conv_weight_not_transposed(inputs, options, dys, dxs):
    """As many channels in as out: dP = dy W, place by place, fits as well."""
    x, weight = inputs
    turned = weight.reshape(-1, x.shape[3], weight.shape[1]).transpose(0, 2, 1)
    leaf = Tensor(x, requires_grad=True)
    conv_formula(leaf, turned.reshape(weight.shape), **options).backward(dys[0])
    return [leaf.grad, dxs[1]]


def shifts_assigned(self, padded):
    """The last window's pixels only: what overlaps is not added."""
    reach = self.stride * (self.rows - 1) + 1, self.stride * (self.columns - 1) + 1
    last = self.kernel - 1
    for place in range(self.kernel**2):
        if place == self.kernel**2 - 1:
            down, right = (slice(last, last + end, self.stride) for end in reach)
            yield padded[:, down, right]
        else:
            yield np.zeros_like(padded)[:, : reach[0] : self.stride, : reach[1] : self.stride]


def pool_to(share, best=np.maximum):
    """Each pixel of a window gets dy times share(the pixel, the window's best)."""

    def change(x, dy, kernel, stride, padding, fill):
        grid = baseline_ops.Windows(*x.shape[1:3], kernel, stride, padding)
        padded = grid.padded(x, -np.inf if best is np.maximum else np.inf)
        y = functools.reduce(best, grid.shifts(padded))
        dx = np.zeros_like(padded)
        for to, pixels in zip(grid.shifts(dx), grid.shifts(padded), strict=True):
            to += dy * share(pixels, y)
        return grid.cropped(dx)

    return change


# ---- the registry -------------------------------------------------------------------------------


def _random():
    return np.random.default_rng(5)


def _conv_fixed(kernel, stride, padding, channels=(2, 3)):
    options = {"kernel": kernel, "stride": stride, "padding": padding}
    case = conv_case(_random(), 2, (5, 4), *channels, **options)
    terms = {}
    if kernel > 1:
        terms = {
            "weight's kernel turned": conv_weight_of_flipped_windows,
            "overlaps not added": in_module("not added", "Windows.shifts", shifts_assigned),
        }
    if channels[0] == channels[1]:
        terms["W not transposed"] = conv_weight_not_transposed
    terms["windows at the other end"] = lambda i, o, dys, dxs: [dxs[0][:, ::-1, ::-1], dxs[1]]
    return Fixed(case, terms)


def _pool_fixed(kernel, stride, padding, fill=-math.inf):
    options = {"kernel": kernel, "stride": stride, "padding": padding, "fill": fill}
    to_winner = pool_to(np.equal)
    terms = {
        "to all of a window": wrong(pool_to(lambda pixel, y: 1)),
        "to the smallest": wrong(pool_to(np.equal, best=np.minimum)),
        "shared by the window": wrong(pool_to(lambda pixel, y: 1 / kernel**2)),
    }
    if fill == 0:
        terms["to the padding's neighbour"] = wrong(to_winner)
    if kernel > stride:
        terms["won twice, counted once"] = wrong(
            lambda x, dy, **options: np.sign(to_winner(x, np.sign(dy), **options))
        )
    case = Case((distinct(_random(), (2, 5, 4, 2)) + (0.03 if fill == 0 else 0),), options)
    return Fixed(case, terms)


def _group_norm_fixed(groups, relu):
    case = group_norm_case(_random(), (2, 3, 2, 6), groups, relu)
    terms = {
        "without its mean term": group_norm_without_mean,
        "without its x_hat term": group_norm_without_x_hat,
        "c taken for x_hat": group_norm_sigma_once,
        "gamma without x_hat": lambda inputs, options, dys, dxs: [dxs[0], dxs[2], dxs[2]],
        "gamma forgotten in dx": lambda inputs, options, dys, dxs: [
            dxs[0] / inputs[1], *dxs[1:]],
        "beta the mean, not the sum": lambda inputs, options, dys, dxs: [
            *dxs[:2], dxs[2] / 12],
    }  # fmt: skip
    if groups < 6:
        terms["means of each channel"] = group_norm_per_channel
    if relu:
        terms["relu forgotten"] = group_norm_without_relu
    return Fixed(case, terms, share=(1, 2))


_ALL = [
    Operation(
        baseline_ops.SplitHeads, baseline_ops.split_heads, split_formula, splits(),
        {"three heads": Fixed(normal_case(_random(), (2, 2, 18), heads=3), {
            "queries and keys swapped": before_backward("swapped", lambda g: [g[1], g[0], g[2]]),
            "keys forgotten": before_backward("keys forgotten", lambda g: [g[0], None, g[2]]),
            "values forgotten": before_backward("values forgotten", lambda g: [*g[:2], None]),
            "heads reversed": before_backward("reversed", lambda g: [d[:, ::-1] for d in g]),
            "parts inside heads": lambda inputs, options, dys, dxs: [
                np.stack(dys).transpose(3, 1, 2, 0, 4).reshape(inputs[0].shape)],
        })},
        fused=True,
    ),
    Operation(
        baseline_ops.Conv2d, baseline_ops.conv2d, conv_formula, convolutions(),
        {
            "3 x 3": _conv_fixed(3, 1, 1),
            "3 x 3, stride 2, same": _conv_fixed(3, 2, "same", (2, 2)),
            "2 x 2, stride 1": _conv_fixed(2, 1, 0),
            "1 x 1": _conv_fixed(1, 1, 0, (3, 3)),
            "1 x 1, stride 2": _conv_fixed(1, 2, 0),
        },
        fused=True,
    ),
    Operation(
        baseline_ops.MaxPool, baseline_ops.max_pool, pool_formula, poolings(),
        {
            "3 x 3, stride 2": _pool_fixed(3, 2, 1),
            "3 x 3, stride 2, zeros around": _pool_fixed(3, 2, 1, 0.0),
            "2 x 2, stride 2": _pool_fixed(2, 2, 0),
        },
        fused=True,
    ),
    Operation(
        baseline_ops.GroupNorm, baseline_ops.group_norm, group_norm_formula, group_norms(),
        {f"{groups} groups{', ReLU' * relu}": _group_norm_fixed(groups, relu)
         for groups in (1, 2, 3) for relu in (False, True)},
        fused=True,
    ),
    Operation(
        baseline_ops.WeightStandardize, baseline_ops.weight_standardize, standardize_formula,
        weights(),
        {"matrix": Fixed(normal_case(_random(), (6, 4), epsilon=1e-6), {
            "without its mean term": standardize_without("mean"),
            "without its y term": standardize_without("along"),
            "sigma forgotten": lambda inputs, options, dys, dxs: [
                dxs[0] * np.sqrt(inputs[0].var(axis=0))],
            "along rows": wrong(lambda w, dy, epsilon: standardize_without(None)(
                [w.T], {"epsilon": epsilon}, [dy.T], [None])[0].T),
        }, undo=("sum_rows",))},
        fused=True,
    ),
]  # fmt: skip

OPERATIONS = {operation.function.__name__: operation for operation in _ALL}
