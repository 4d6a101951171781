"""The gradient check itself: what it accepts, what it rejects, what it says, what it leaves."""

import re
from typing import ClassVar

import numpy as np
import pytest
from help import leaf, put, same, same_state
from hypothesis import example, given
from hypothesis import strategies as st
from strategies import normal, seeds, shapes

from minimixer import Function, GradientError, Parameter, Tensor, gradcheck, no_grad, ops, rearrange
from minimixer import functional as F
from minimixer.backend import namespace, to_device, to_numpy
from minimixer.nn import GELU, Linear, Sequential


def draw(shape, seed=0):
    return normal(np.random.default_rng(seed), shape)


def wrong_by(change):
    """x -> x^2, elementwise, whose backward returns change(x, the right gradient)."""

    class Square(Function):
        def forward(self, x):
            self.x = x
            return x * x

        def backward(self, dy):
            return change(self.x, 2 * self.x * dy)

    return lambda x: Square.apply(x)


right = wrong_by(lambda x, dx: dx)


def rejected(function, inputs, **options):
    with pytest.raises(GradientError) as caught:
        gradcheck(function, inputs, **options)
    return str(caught.value)


def numbers_in(message):
    """(what backward gives, what finite differences give)."""
    found = re.search(r"backward gives (\S+), finite differences (\S+);", message)
    assert found, message
    return float(found[1]), float(found[2])


# ---- what it accepts ----------------------------------------------------------------------------


@pytest.mark.parametrize("directions", [None, 3])
def test_several_inputs_and_outputs(directions, device):
    """Of any size; outputs may be views, or what came in, and inputs without influence, or twice
    the same; the step grows with the element, so large and small ones are checked alike."""

    class Through(Function):
        def forward(self, x):
            return x

        def backward(self, dy):
            return dy

    x, y, constant = (to_device(draw(s), device) for s in ((3, 4), (4, 2), (2,)))
    z = leaf(device, [1e-8, -1e-3, 1.0, 50.0, -3e4, 1e6], "float64")
    for function, *inputs in (
        (lambda x, y: (x @ y, (x * x).sum(), [y.tanh()][0]), x, y),
        (lambda x, y: [x @ y, x * 2], x, y),
        (lambda x: (x * x, Tensor(constant)), x),  # an output that depends on no input
        (lambda x, y: x * x, x, x.copy()),
        (lambda x, y: x * y * y, z, z),
        (lambda x: (Through.apply(x), x.reshape(12), x.T, x + x), x),
        (right, z),
        (lambda x: x * 1e-3, z),
    ):
        assert gradcheck(function, inputs, directions=directions)
    assert gradcheck(right, z)  # one input needs no list
    message = rejected(lambda x: Tensor(constant), [x])
    assert "no output depends on an input that requires a gradient" in message


def test_inputs_without_requires_grad_are_left_alone(device):
    fixed = Tensor(put(device, [1.0, 2.0], "float64"))
    labels, seen = Tensor(put(device, [0, 1], int)), []

    def function(x, y, labels):
        seen.append(y.numpy().copy())
        return F.cross_entropy(x * y, labels)

    x = leaf(device, [[1.0, 2.0], [0.5, -1.0]], "float64")
    assert gradcheck(function, [x, fixed, labels])
    assert fixed.grad is None
    assert all((values == [1.0, 2.0]).all() for values in seen)
    with_fixed = wrong_by(lambda x, dx: 7 * dx)  # also where the gradient for it would be wrong
    assert gradcheck(lambda x, y: x + with_fixed(y), [x, fixed])


@pytest.mark.parametrize("directions", [None, 2])
def test_parameters_of_a_module(directions, device):
    network = Sequential(Linear(3, 4), GELU(), Linear(4, 2)).to("float64", device)
    for number, parameter in enumerate(network.parameters()):
        parameter.data = draw(parameter.shape, number)
    before = network.state_dict()
    x = Tensor(to_device(draw((5, 3)), device))
    assert gradcheck(lambda *_: network(x), network.parameters(), directions=directions)
    same_state(network, before)


def test_inside_no_grad_it_says_so_or_works():
    with no_grad():
        try:
            assert gradcheck(right, [draw((3,))])
        except (GradientError, ValueError) as error:
            assert "no_grad" in str(error) or "requires a gradient" in str(error)


# ---- what it rejects ----------------------------------------------------------------------------

MISTAKES = {
    "scaled by 1.001": lambda x, dx: dx * 1.001,
    "scaled by 1.00001": lambda x, dx: dx * 1.00001,
    "another sign": lambda x, dx: -dx,
    "half": lambda x, dx: dx / 2,
    "zero": lambda x, dx: dx * 0,
    "none": lambda x, dx: None,
    "shifted": lambda x, dx: dx + 1e-3,
    "reversed": lambda x, dx: dx[::-1].copy(),
    "reordered": lambda x, dx: dx.reshape(x.shape[::-1]).T.copy(),
    "one element": lambda x, dx: dx + 0.01 * (namespace(x).arange(x.size).reshape(x.shape) == 7),
    "not a number": lambda x, dx: dx * np.nan,
    "infinite": lambda x, dx: dx * np.inf,
    "one not a number": lambda x, dx: dx + namespace(x).where(x == x.max(), np.nan, 0.0),
    "one infinite": lambda x, dx: dx + namespace(x).where(x == x.max(), np.inf, 0.0),
}
each_mistake = pytest.mark.parametrize("mistake", MISTAKES.values(), ids=MISTAKES)


@each_mistake
@pytest.mark.parametrize("directions", [None, 4])
def test_mistakes(mistake, directions, device):
    """On any values; the inputs are what they were."""
    for seed in range(3):
        values = draw((4, 6), seed)
        x = leaf(device, values, "float64")
        rejected(wrong_by(mistake), [x], directions=directions)
        same(x.data, values)
    rejected(wrong_by(mistake), values, directions=directions)


def test_a_tolerance_of_a_thousandth_would_accept_what_ours_rejects():
    """1.001 times the gradient passes with rtol 1e-3, a default common elsewhere."""
    assert gradcheck(wrong_by(MISTAKES["scaled by 1.001"]), [draw((4, 6))], tolerance=1.1e-3)


@pytest.mark.parametrize("wrong_output", [0, 1])
def test_a_mistake_in_one_of_two_outputs(wrong_output):
    class Both(Function):
        def forward(self, x):
            self.x = x
            return x * x, x * x * x

        def backward(self, dy, dz):
            parts = [2 * self.x * dy, 3 * self.x * self.x * dz]
            parts[wrong_output] *= 1.001
            return parts[0] + parts[1]

    rejected(lambda x: Both.apply(x), [draw((4, 6))])


def test_a_small_gradient_beside_a_large_one():
    """What is allowed is relative to each input's own gradients."""

    def function(x, y):
        return x * 1e6 + wrong_by(MISTAKES["scaled by 1.001"])(y)

    message = rejected(function, [draw((6,)) * 1e-6, draw((6,), 1)])
    assert "argument 1" in message


@pytest.mark.parametrize("cls, function", [
    (rearrange.Sum, lambda x: x.sum(axis=0)), (ops.Multiply, lambda x: x * 3),
    (ops.Add, lambda x: x + 3),
])  # fmt: skip
def test_a_sign_error_in_the_operations_that_could_do_the_weighting(cls, function, monkeypatch):
    """A checker that sums and weights with the package's own operations, and so runs their
    backward twice, would take two wrong signs for none."""
    right_backward = cls.backward

    def negated(self, dy):
        results = right_backward(self, dy)
        if isinstance(results, tuple):
            return tuple(None if g is None else -g for g in results)
        return -results

    monkeypatch.setattr(cls, "backward", negated)
    rejected(function, [draw((4, 6))])


class Watched(Function):
    """x -> 2 x; `spoil_forward` and `spoil_backward` do something else besides."""

    spoil_forward = spoil_backward = staticmethod(lambda node, array: None)

    def forward(self, x):
        type(self).spoil_forward(self, x)
        self.x, self.y, self.factor = x, 2 * x, namespace(x).full(x.shape, 2.0)
        return self.y

    def backward(self, dy):
        type(self).spoil_backward(self, dy)
        return self.factor * dy


class MadeByItself(Watched):
    """With an __init__ that does not ask Function's."""

    def __init__(self):
        self.made = True


def in_place(node, array):
    array *= 2


def through_a_view(node, array):
    array.reshape(-1)[:1] += 1


class Reusing(Watched):
    """Every call returns one and the same array."""

    buffers: ClassVar[dict] = {}

    def forward(self, x):
        y = super().forward(x)
        buffer = self.buffers.setdefault((namespace(y), y.shape), y)
        buffer[...] = y
        return buffer


@pytest.mark.parametrize("spoil", [in_place, through_a_view])
@pytest.mark.parametrize("around", [
    lambda f, w, x: f(x), lambda f, w, x: w + f(x), lambda f, w, x: f(x) + w,
    lambda f, w, x: w * f(w - x), lambda f, w, x: (f(w.exp()), x)], ids=range(5))  # fmt: skip
def test_a_backward_that_writes_into_its_gradient(spoil, around, device, monkeypatch):
    """Right by itself, and it spoils the gradient of whatever else the sum was made of."""
    inputs = [to_device(draw((4, 6), seed), device) for seed in (0, 1)]
    assert gradcheck(lambda w, x: around(Watched.apply, w, x), inputs)
    monkeypatch.setattr(Watched, "spoil_backward", spoil)
    for kind in (Watched, MadeByItself):
        message = rejected(lambda w, x, kind=kind: around(kind.apply, w, x), inputs)
        assert f"{kind.__name__}.backward changed gradient 0, float64 (4, 6)" in message


@pytest.mark.parametrize("spoil", [in_place, through_a_view])
@pytest.mark.parametrize("function, needs", [
    (lambda w, x: w + Watched.apply(x), True), (lambda w, x: w + Watched.apply(x), False),
    (lambda w, x: Watched.apply(w.exp()), True),  # what another function kept
])  # fmt: skip
def test_a_forward_that_writes_into_its_input(spoil, function, needs, device, monkeypatch):
    monkeypatch.setattr(Watched, "spoil_forward", spoil)
    x, w = (Tensor(to_device(draw((4, 6)), device), requires_grad=n) for n in (needs, True))
    message = rejected(function, [w, x])
    assert "Watched.forward changed input 0, float64 (4, 6)" in message and "x *= 2" in message


def test_a_function_that_writes_into_its_argument(device):
    def doubling(x):
        x.data *= 2
        return x * 1

    assert "doubling changed argument 0" in rejected(doubling, [to_device(draw((2, 3)), device)])


def test_nothing_is_watched_afterwards():
    with pytest.raises(StopIteration):
        gradcheck(lambda x: next(iter(())), [draw((2,))])
    assert not isinstance(Function.needs, property)
    node = (leaf("cpu", [1.0], "float64") * 2).node
    assert "forward" not in vars(node) and "backward" not in vars(node)


@pytest.mark.parametrize("kept, message", [
    ("x", "backward changed argument 0"), ("y", "backward changed output 0"), ("factor", "")
])  # fmt: skip
def test_a_backward_that_writes_into_what_it_kept(kept, message, device, monkeypatch):
    monkeypatch.setattr(Watched, "spoil_backward", lambda node, _: in_place(node, vars(node)[kept]))
    assert message in rejected(lambda x: Watched.apply(x), [to_device(draw((4, 6)), device)])


def test_a_backward_that_is_right_only_once(device):
    class OnlyOnce(Function):
        def forward(self, x):
            self.x = x.copy()
            return x * x

        def backward(self, dy):
            self.x *= 2
            self.x *= dy
            return self.x

    message = rejected(lambda x: OnlyOnce.apply(x), [to_device(draw((4, 6)), device)])
    assert "second backward gives argument 0 another gradient" in message


def test_a_forward_that_returns_the_same_array_at_each_call(device):
    x = to_device(draw((4, 6)), device)
    message = rejected(lambda x: Reusing.apply(x), [x])
    assert "called again, it changed output 0" in message and "new arrays" in message


def test_a_backward_that_returns_the_same_array_at_each_call(device):
    class Same(Watched):
        buffer: ClassVar[list] = []

        def backward(self, dy):
            if not self.buffer:
                self.buffer.append(dy.copy())
            self.buffer[0][...] = 2 * dy
            return self.buffer[0]

    x = to_device(draw((4, 6)), device)
    assert gradcheck(lambda x: Same.apply(x), [x])  # alone there is nothing to spoil
    message = rejected(lambda x: Same.apply(x) * 3 + Same.apply(x * 5), [x])
    assert "a gradient of Same" in message


# ---- what it says -------------------------------------------------------------------------------


def test_the_message_names_operation_argument_index_and_both_numbers(device):
    slipped = wrong_by(lambda x, dx: dx + 0.5 * (namespace(x).arange(6).reshape(2, 3) == 4))

    def my_layer(x, y):
        return x * 2 + slipped(y)

    my_layer.__qualname__ = "my_layer"
    x, y = (to_device(draw((2, 3), seed), device) for seed in (0, 1))
    message = rejected(my_layer, [x, y])
    assert message.startswith("my_layer: gradient of argument 1, float64 (2, 3) on ")
    assert "index (1, 1)" in message
    found, expected = numbers_in(message)
    assert found - expected == pytest.approx(0.5)
    assert 1.0 <= abs(expected / to_numpy(y)[1, 1]) <= 3.0  # 2 y, weighted by 0.5 to 1.5
    assert "\n" not in message


HINTS = {
    "1.001 times too large: look for a factor or a sign": ["scaled by 1.001"],
    "-1 times too large: look for a factor or a sign": ["another sign"],
    "0.5 times too large": ["half"],
    "all zero: look for a gradient returned as None, or an input cut off": ["zero", "none"],
    "a missing term, a wrong axis, or a gradient buffer given to two inputs": [
        "shifted", "reordered"],
    "a division by zero or an overflow in backward": [
        "not a number", "infinite", "one not a number", "one infinite"],
}  # fmt: skip


@pytest.mark.parametrize("hint", HINTS)
def test_the_hint_fits_the_mistake(hint):
    for mistake in HINTS[hint]:
        assert hint in rejected(wrong_by(MISTAKES[mistake]), [draw((4, 6))])


@pytest.mark.parametrize("mistake", ["one not a number", "one infinite"])
@pytest.mark.parametrize("position", [0, 5, 23])
def test_the_index_of_what_is_not_finite(mistake, position):
    x = draw((4, 6))
    x.flat[position] = 9.0
    message = rejected(wrong_by(MISTAKES[mistake]), [x])
    assert f"index {tuple(map(int, np.unravel_index(position, x.shape)))}" in message
    assert not np.isfinite(numbers_in(message)[0])


def test_directions_say_that_something_is_wrong_and_not_where():
    message = rejected(wrong_by(MISTAKES["half"]), [draw((4, 6))], directions=3)
    assert "a random direction" in message and "index" not in message
    found, expected = numbers_in(message)
    assert found == pytest.approx(expected / 2)


def test_directions_cost_two_evaluations_each_however_large_the_input():
    calls = []

    def counted(x):
        calls.append(x.data.copy())
        return right(x)

    gradcheck(counted, [draw((40, 50))], directions=3)
    assert len(calls) == 1 + 2 * 3
    calls.clear()
    x = np.array([0.25, -1.5, 40.0])
    gradcheck(counted, [x])
    assert len(calls) == 1 + 2 * 3
    moved = abs(np.array(calls) - x).max(axis=0)  # the step grows with the element, from 1 on
    np.testing.assert_allclose(moved, [1e-5, 1.5e-5, 40e-5], rtol=1e-6)


def test_the_seed_decides_the_directions_and_nothing_else_does():
    def told(seed):
        return rejected(wrong_by(MISTAKES["half"]), [draw((4, 6))], directions=1, seed=seed)

    assert told(0) == told(0) != told(1)


# ---- what it refuses ----------------------------------------------------------------------------


def test_float32_is_refused(device):
    x, w = leaf(device, [1, 2, 3], "float64"), leaf(device, [1, 2, 3])
    with pytest.raises(TypeError, match=r"argument 1 .*float64.*float32 \(3,\).*too coarse"):
        gradcheck(lambda x, y: x * y, [x, w])
    for coarse in (w.data, Parameter(np.ones(3, "float32"))):
        with pytest.raises(TypeError, match="float32"):
            gradcheck(right, [coarse])


def test_other_arguments_that_make_no_sense():
    for value in (1.5, [1.0, 2.0], None, "x"):
        with pytest.raises(TypeError, match="argument 0 must be a float64 array or Tensor"):
            gradcheck(right, [value])
    for directions in (0, -1, 1.5, "2"):
        with pytest.raises((ValueError, TypeError), match=f"directions must be .*{directions}"):
            gradcheck(right, [draw((2, 3))], directions=directions)
    for function in (lambda x: 3.0, lambda x: None, lambda x: x.data, lambda x: x.to("float32"),
                     lambda x: (x, 1)):  # fmt: skip
        with pytest.raises(TypeError, match="must return float64 Tensors, got"):
            gradcheck(function, [draw((3,))])


# ---- what it leaves behind ----------------------------------------------------------------------


@example((), 0, None)
@example((3, 0, 2), 0, 1)
@given(shapes(), seeds, st.sampled_from([None, 1, 3]))
def test_inputs_of_any_shape_are_restored_to_the_bit(device, shape, seed, directions):
    values = draw(shape, seed) * 10.0 ** np.random.default_rng(seed).integers(-9, 9, shape)
    x = leaf(device, values, "float64")
    array = x.data
    assert gradcheck(right, [x], directions=directions) is True
    assert x.data is array
    same(x.data, values)


@pytest.mark.parametrize("call", [1, 2, 3, 4])
@pytest.mark.parametrize("directions", [None, 3])
def test_inputs_are_restored_after_an_exception_in_the_function(call, directions, device):
    values = draw((4, 6))
    x = leaf(device, values, "float64")
    calls = []

    def failing(x):
        calls.append(1)
        if len(calls) == call:
            raise RuntimeError("out of luck")
        return x * x

    with pytest.raises(RuntimeError, match="out of luck"):
        gradcheck(failing, [x], directions=directions)
    same(x.data, values)


def test_tensors_in_any_layout(device):
    base = to_device(draw((4, 6)), device)
    before = to_numpy(base).copy()
    for view in (base.T, base[::-1, ::2], base[1], base[:, None, 2]):
        assert gradcheck(right, [Tensor(view, requires_grad=True)])
        same(base, before)
    before.flags.writeable = False
    assert gradcheck(right, [before]) and gradcheck(right, [before[:, ::-1]])
