"""Optimizers against their formulas, written out for one parameter at a time in float64."""

import math
import weakref
from itertools import pairwise

import help
import numpy as np
import pytest
from help import by_kernels_and_plainly, each_dtype, functions, same
from minimixer.optim import Optimizer

from minimixer import SGD, Adam, AdamW, Mixer, Module, Parameter, Tensor, schedule
from minimixer.backend import device_of, to_device, to_numpy
from minimixer.kernels import fused
from minimixer.nn import Linear, Sequential
from minimixer.nn.buffer import ParameterBuffer
from minimixer.nn.loss_scale import LARGEST_SCALE, SCALE_HOLDS, adjust_scale

STEPS = 6


class Body(Module):
    def __init__(self):
        self.layers, self.head = [Linear(3, 4), Linear(4, 4)], Linear(4, 2)

    def forward(self, x):
        return self.head(self.layers[1](self.layers[0](x)))


def train_once(model, *optimizers):
    for optimizer in optimizers:
        optimizer.zero_grad()
    device = optimizers[0].buffer.device
    (model(Tensor(np.ones((2, 3), "float32"), device=device)) ** 2).sum().backward()
    for optimizer in optimizers:
        optimizer.step()


SHAPES = [(3, 4), (5,), (2, 2, 2), (), (70, 3), (64,)]


def draw(shape, seed=0):
    return help.draw(shape, seed, "float64")


def make_parameters(device, dtype="float64", shapes=SHAPES):
    """Parameters in one buffer, as a model's are."""
    parameters = [
        Parameter(to_device(draw(s, i).astype(dtype), device)) for i, s in enumerate(shapes)
    ]
    ParameterBuffer(parameters)
    return parameters


def gradient(shape, number, step):
    return draw(shape, 1000 + 100 * step + number)


def give_gradients(parameters, step, numbers=None):
    """Through backward, as training does: the loss is a sum of products with random numbers."""
    for number, p in enumerate(parameters):
        if numbers is None or number in numbers:
            values = to_device(gradient(p.shape, number, step).astype(str(p.dtype)), p.device)
            (p * values).sum().backward()


def close(array, expected, dtype="float64"):
    help.close(array, expected, *((1e-12, 1e-14) if dtype == "float64" else (2e-5, 2e-6)))


def copies(parameters):
    return [to_numpy(p.data).copy() for p in parameters]


def train(parameters, optimizer, steps, prepare=lambda step: None, numbers=lambda step: None):
    """Steps with the gradients of `gradient`; `numbers`: which Parameters get one."""
    for step in steps:
        optimizer.zero_grad()
        give_gradients(parameters, step, numbers(step))
        prepare(step)
        optimizer.step()


def check_formula(parameters, formula, settings, steps, own=None, factors=None):
    """Each is where its formula leads in `steps` steps; `own`: settings of each of its own."""
    for number, p in enumerate(parameters):
        keep = {"weight_decay": 0.0, **settings, **(own[number] if own else {})}
        if p.ndim < 2:
            keep["weight_decay"] = 0.0
        lr, dtype = keep.pop("lr"), str(p.dtype)
        rates = [lr * factor for factor in factors or [1.0] * steps]
        start = draw(p.shape, number).astype(dtype).astype("float64")
        grads = [gradient(p.shape, number, t).astype(dtype) for t in range(steps)]
        close(p.data, formula(start, zip(grads, rates, strict=True), **keep), dtype)


# Each formula: where w is after `steps`, pairs of a gradient and a learning rate.


def sgd(w, steps, weight_decay, momentum=0.0, nesterov=False):
    velocity = 0.0
    for g, lr in steps:
        g = g + weight_decay * w
        velocity = momentum * velocity + g
        w = w - lr * (g + momentum * velocity if nesterov else velocity)
    return w


def adamw(w, steps, weight_decay, betas=(0.9, 0.999), eps=1e-8):
    m = v = 0.0
    for t, (g, lr) in enumerate(steps, 1):
        w = w - lr * weight_decay * w
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g * g
        m_hat, v_hat = m / (1 - betas[0] ** t), v / (1 - betas[1] ** t)
        w = w - lr * m_hat / (np.sqrt(v_hat) + eps)
    return w


class Lion(Optimizer):
    """One's own, as README has it; slower and slower, to see the number of the step too."""

    moments = ("exp_avg",)

    def update(self, w, g, state, lr, decay, t):
        (m,) = state
        w -= lr / t * (np.sign(0.9 * m + 0.1 * g) + decay * w)
        m += 0.01 * (g - m)


def lion(w, steps, weight_decay):
    m = 0.0
    for t, (g, lr) in enumerate(steps, 1):
        w = w - lr / t * (np.sign(0.9 * m + 0.1 * g) + weight_decay * w)
        m = m + 0.01 * (g - m)
    return w


NESTEROV = {"lr": 0.1, "momentum": 0.9, "nesterov": True}
CASES = {
    "of one's own": (Lion, lion, {"lr": 0.02, "weight_decay": 0.1}),
    "sgd": (SGD, sgd, {"lr": 0.1}),
    "sgd decay": (SGD, sgd, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (SGD, sgd, {"lr": 0.1, "momentum": 0.9}),
    "momentum decay": (SGD, sgd, {"lr": 0.1, "momentum": 0.5, "weight_decay": 0.2}),
    "nesterov": (SGD, sgd, NESTEROV),
    "nesterov decay": (SGD, sgd, NESTEROV | {"weight_decay": 0.1}),
    "adamw": (AdamW, adamw, {"lr": 0.01, "weight_decay": 0.5}),
    "adamw betas": (AdamW, adamw, {"lr": 0.1, "betas": (0.5, 0.7), "weight_decay": 0.1}),
    "adamw eps": (AdamW, adamw, {"lr": 0.1, "eps": 0.3, "weight_decay": 0.0}),
    "adamw short memory": (AdamW, adamw, {"lr": 0.1, "betas": (0.0, 0.5), "weight_decay": 0.0}),
    "adam": (Adam, adamw, {"lr": 0.05}),
    "adam decay": (Adam, adamw, {"lr": 0.05, "weight_decay": 0.2}),
}
each_case = pytest.mark.parametrize("case", CASES)


@by_kernels_and_plainly
@each_dtype
@each_case
def test_against_the_formulas(device, case, dtype, kind):
    """AdamW's own update is not run where its fast twin is: both are tested."""
    optimizer_class, formula, settings = CASES[case]
    parameters = make_parameters(device, dtype)
    factors = [schedule(t, STEPS, 2) for t in range(STEPS)]
    with functions(kind):
        optimizer = optimizer_class(parameters, **settings)
        set_factor = lambda t: setattr(optimizer, "lr_factor", factors[t])  # noqa: E731
        train(parameters, optimizer, range(STEPS), set_factor)
    check_formula(parameters, formula, settings, STEPS, factors=factors)
    assert all(p.dtype == dtype for p in parameters)
    assert all(str(a.dtype) == dtype for a in optimizer.state.values())
    for number, p in enumerate(parameters):  # the gradients are left as they are
        close(p.grad, gradient(p.shape, number, STEPS - 1), dtype)


@pytest.mark.parametrize("make, formula, settings", [
    (AdamW, adamw, {"lr": 1e-3, "weight_decay": 0.01}), (Adam, adamw, {"lr": 1e-3}),
    (lambda p: SGD(p, lr=0.5), sgd, {"lr": 0.5}),
])  # fmt: skip
def test_defaults(device, make, formula, settings):
    p = make_parameters(device)
    optimizer = make(q for q in p)  # a generator is fine, and so is a model
    assert optimizer.parameters == p
    train(p, optimizer, range(2))
    check_formula(p, formula, settings, 2)
    model = Body().to(device)
    assert make(model).parameters == model.parameters()
    with pytest.raises(TypeError, match="lr"):
        SGD(p)


def test_blocks_of_large_parameters(device):
    """Updates run in blocks: their borders must not show."""
    p = make_parameters(device, "float64", [(3, 70_000), (1 << 16,), ((1 << 16) + 1,)])
    settings = {"lr": 0.1, "weight_decay": 0.1}
    train(p, AdamW(p, **settings), range(2))
    check_formula(p, adamw, settings, 2)


@by_kernels_and_plainly
@each_case
def test_groups(device, case, kind):
    optimizer_class, formula, settings = CASES[case]
    p = make_parameters(device)
    groups = [
        {"params": p[:1], "lr": 0.3, "weight_decay": 0.7},
        {"params": iter(p[1:3]), "weight_decay": 0.0},
        {"params": p[3:], "lr": 0.02},
    ]
    own = [{"lr": 0.3, "weight_decay": 0.7}, *[{"weight_decay": 0.0}] * 2, *[{"lr": 0.02}] * 3]
    with functions(kind):
        train(p, optimizer_class(groups, **settings), range(3))
    check_formula(p, formula, settings, 3, own)


@each_case
def test_parameters_without_a_gradient_are_skipped(device, case):
    """Not decayed, not moved by what their momentum remembers."""
    optimizer_class, _, settings = CASES[case]
    p = make_parameters(device)
    optimizer = optimizer_class(p, **settings)
    train(p, optimizer, [0])
    for given in ([0, 3, 5], []):
        moments = {n: to_numpy(a).copy() for n, a in optimizer.state.items()}
        before = copies(p)
        train(p, optimizer, [1], numbers=lambda step, given=given: given)
        for number, q in enumerate(p):
            assert (to_numpy(q.data) != before[number]).any() == (number in given)
            for name, array in optimizer.state.items():
                moved = (to_numpy(q.window(array)) != q.window(moments[name])).any()
                assert moved == (number in given)


def test_frozen_parameters_are_left_out(device):
    p = make_parameters(device)
    p[0].requires_grad = p[4].requires_grad = False
    optimizer = SGD(p, lr=0.1, weight_decay=0.5)
    assert len(optimizer.parameters) == 4
    p[0].requires_grad = True  # with a gradient, but not in the optimizer's list
    before = copies(p)
    give_gradients(p[:4], 0)
    optimizer.step()
    assert [(a != b).any() for a, b in zip(copies(p), before, strict=True)] == [0, 1, 1, 1, 0, 0]
    optimizer.zero_grad()
    assert [q.grad is None for q in p] == [False] + [True] * 5  # it forgets only its own


# ---- clipping -----------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("max_norm", [0.5, 1e9])
def test_clipping(device, max_norm, dtype):
    p = make_parameters(device, dtype)
    numbers = [0, 1, 3, 4]
    optimizer, other = SGD(p[:5], lr=1.0), SGD(p[5:], lr=1.0)
    give_gradients(p, 0)
    optimizer.zero_grad()  # what the others had is in the buffer still, and must not count
    give_gradients(p, 1, numbers)
    norm = optimizer.clip_grad_norm(max_norm)
    grads = {i: gradient(p[i].shape, i, 1) for i in numbers}
    expected = math.sqrt(sum((g**2).sum() for g in grads.values()))
    assert abs(float(norm) / expected - 1) < 1e-5 and norm.shape == ()
    optimizer.step()
    other.step()  # which is not clipped
    factor = min(1, max_norm / expected)
    for i, q in enumerate(p):
        moved = draw(q.shape, i) - to_numpy(q.data)
        right = gradient(q.shape, i, 0) if i == 5 else factor * grads.get(i, 0)
        np.testing.assert_allclose(moved, right, rtol=1e-3, atol=1e-6)
    for i in numbers:  # gradients themselves are left as they are
        close(p[i].grad, grads[i], dtype)
    before = copies(p)[0]
    train(p, optimizer, [2], numbers=lambda step: [0])  # clipping is for one step
    close(p[0].data, before - gradient(p[0].shape, 0, 2), dtype)


@by_kernels_and_plainly
@pytest.mark.parametrize("size, dtype", [
    (1e19, "float32"), (1e37, "float32"), (1e-30, "float32"), (1e-38, "float32"),
    (1e-22, "float32"), (1e153, "float64"), (1e200, "float64"), (1e-170, "float64"),
])  # fmt: skip
def test_clipping_gradients_whose_squares_are_no_numbers(device, size, dtype, kind):
    """Two ranges of the buffer, of which one may have no gradient to speak of."""
    if device != "cpu" and kind == "kernels" and dtype == "float64":
        pytest.skip("the kernel adds squares in float64: they must be numbers there")
    if device != "cpu" and size in (1e37, 1e-38):  # CuPy takes numbers below 1e-38 for 0
        size = {1e37: 1e35, 1e-38: 1e-36}[size]
    with functions(kind):
        for other in (0.0, 1.0):
            values = np.zeros((8, 16), dtype), np.zeros(128, dtype)
            p, frozen, q = (Parameter(to_device(values[i], device)) for i in (0, 1, 1))
            ParameterBuffer([p, frozen, q])
            optimizer = SGD([p, q], lr=1.0)
            given = np.full(128, size, dtype)
            p.grad = to_device(given.reshape(8, 16), device)
            q.grad = to_device(given * other, device)
            g = np.concatenate([given, given * other]).astype("longdouble")
            expected = np.sqrt((g * g).sum())
            norm = float(optimizer.clip_grad_norm(1.0))
            assert abs(norm / expected - 1) < 1e-5
            optimizer.step()
            moved = np.concatenate([to_numpy(x.data).reshape(-1) for x in (p, q)])
            length = np.linalg.norm(moved.astype("float64") / abs(moved).max()) * abs(moved).max()
            assert abs(length / min(expected, 1) - 1) < 1e-4


def test_clipping_edges(device):
    p = make_parameters(device)
    optimizer = SGD(p, lr=1.0)
    assert float(optimizer.clip_grad_norm(1.0)) == 0  # no gradient at all
    (p[0] * 0.0).sum().backward()
    assert float(optimizer.clip_grad_norm(1.0)) == 0
    optimizer.step()
    same(p[0].data, draw(p[0].shape, 0))
    for wrong in (np.inf, -np.inf, np.nan):
        p[0].grad = to_device(np.array([[1, wrong, 2, 3]] * 3), device)
        assert not np.isfinite(float(optimizer.clip_grad_norm(1.0)))


# ---- state --------------------------------------------------------------------------------------


@each_dtype
@each_case
def test_state_dict_continues_with_the_same_bits(device, case, dtype):
    optimizer_class, _, settings = CASES[case]

    def run(p, optimizer, *steps):
        def some(step):
            return [0, 1, 2, 4] if step == 1 else None

        train(p, optimizer, range(*steps), lambda step: optimizer.clip_grad_norm(2.0), some)

    def make():
        p = make_parameters(device, dtype)
        return p, optimizer_class(p, **settings)

    whole, first, second = make(), make(), make()
    run(*whole, 6)
    run(*first, 3)
    state, values = first[1].state_dict(), copies(first[0])
    assert state["step"] == 3 and type(state["step"]) is int
    run(*first, 3, 5)  # the state is a copy: this changes nothing in it
    for q, value in zip(second[0], values, strict=True):
        q.data = value
    second[1].load_state_dict(state)
    for arrays in (v for v in state.values() if isinstance(v, list)):
        for array in arrays:
            assert type(array) is np.ndarray
            array[...] = np.nan  # nor is it held
    run(*second, 3, 6)
    for p, q in zip(whole[0], second[0], strict=True):
        same(q.data, p.data)


def test_after_to(device):
    """A step in float64, one in float32, one on the device: the optimizer follows the model."""
    reference, model = (Sequential(Linear(4, 3, seed=1)) for _ in range(2))
    optimizers = [AdamW(m, lr=0.1, weight_decay=0.1) for m in (reference.to("float64"), model)]
    moves = [(), ("float64",), (device,), ("float32",), (device, "float64")]
    for step, targets in enumerate(moves):
        model.to(*targets)
        for m, optimizer in zip((reference, model), optimizers, strict=True):
            clip = lambda step, o=optimizer: o.clip_grad_norm(1.0)  # noqa: E731
            train(m.parameters(), optimizer, [step], clip)
        for p, q in zip(reference.parameters(), model.parameters(), strict=True):
            close(q.data, p.data, "float32")
        weight = model[0].weight
        buffer, optimizer = weight.buffer, optimizers[1]
        assert optimizer.buffer is buffer
        assert all(a.dtype == buffer.dtype for a in optimizer.state.values())
        arrays = *optimizer.state.values(), optimizer.control, buffer.random.counters
        assert {device_of(a) for a in arrays} == {weight.device}
        same(buffer.random.counters, [step + 1, 0])  # the random step, too, is the optimizer's
        assert weight.grad.dtype == buffer.dtype == weight.dtype
    assert weight.dtype == "float64" and optimizers[1].state_dict()["step"] == 5


# ---- errors -------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [np.float64(0.1), np.float32(0.5)])
@pytest.mark.parametrize("optimizer_class", [SGD, AdamW])
def test_numpy_numbers_are_numbers(device, optimizer_class, number):
    """lr=np.float64(0.1) is what a sweep over np.logspace gives: the same bits as 0.1."""
    values = []
    for lr in (float(number), number):
        p = make_parameters(device, "float32")
        train(p, optimizer_class(p, lr=lr, weight_decay=lr), [0])
        values.append(copies(p))
    for a, b in zip(*values, strict=True):
        same(a, b)


def test_an_update_that_gives_new_weights_is_refused(device):
    class Descent(Optimizer):
        def update(self, w, g, state, lr, decay, t):
            return w - lr * g

    p = make_parameters(device)
    with pytest.raises(TypeError, match=r"Descent.update returns nothing: write w -= "):
        train(p, Descent(p, lr=0.1, weight_decay=0.0), [0])
    with pytest.raises(TypeError, match="Optimizer has no update"):
        train(p, Optimizer(p, lr=0.1, weight_decay=0.0), [0])
    Descent.moments = "exp_avg"
    with pytest.raises(TypeError, match=r"must be a tuple of names: \('exp_avg',\)"):
        Descent(p, lr=0.1, weight_decay=0.0)


# ---- schedules ----------------------------------------------------------------------------------


@pytest.mark.parametrize("decay", ["cosine", "linear", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 5, 20])
def test_schedule(device, decay, warmup):
    total = 20
    formula = {
        "cosine": lambda p: (1 + math.cos(math.pi * p)) / 2,
        "linear": lambda p: 1 - p,
        "constant": lambda p: 1.0,
    }[decay]
    factors = [schedule(t, total, warmup, decay) for t in range(total + 1)]
    expected = [(t + 1) / warmup for t in range(warmup)]
    expected += [formula((t - warmup) / (total - warmup)) for t in range(warmup, total)]
    assert all(type(f) is float for f in factors) and max(factors) == 1.0
    np.testing.assert_allclose(factors[:total], expected, rtol=0, atol=1e-12)
    if decay != "constant" and warmup < total:
        assert max(abs(factors[-1]), abs(schedule(total + 50, total, warmup, decay))) < 1e-12
    assert schedule(0, total) == 1.0 and schedule(5, 20, 0) == schedule(5, 20)


# ---- layers that came later ---------------------------------------------------------------------

NEW_LAYERS = {
    "head.weight, head.bias": lambda m, d: setattr(m, "head", Linear(4, 3).to(d)),
    "layers.1.weight": lambda m, d: m.layers.__setitem__(1, Linear(4, 4, bias=False).to(d)),
}


@pytest.mark.parametrize("choose", [lambda p: p, lambda p: [{"params": p[:2]}, {"params": p[2:]}]],
                         ids=["all", "groups"])  # fmt: skip
@pytest.mark.parametrize("names", NEW_LAYERS)
def test_a_layer_put_in_after_the_optimizer_is_named(device, names, choose):
    """Whichever way it came in, and whatever list of its Parameters the optimizer was given."""
    model = Body().to(device)
    optimizer = SGD(choose(model.parameters()), lr=0.1)
    train_once(model, optimizer)
    model.layers[0].parameters()  # a part, which owns nothing
    NEW_LAYERS[names](model, device)
    before = to_numpy(model.layers[0].weight.data).copy()
    with pytest.raises(ValueError, match=f"^{names} came into.*new optimizer"):
        train_once(model, optimizer)
    same(model.layers[0].weight.data, before)
    train_once(model, SGD(model.parameters(), lr=0.1))


@pytest.mark.parametrize("gather", [False, True])
def test_an_optimizer_whose_layers_were_all_replaced_is_noticed(device, gather):
    model = Body().to(device)
    model.parameters()
    optimizer = SGD(model.head.parameters(), lr=0.1)
    model.head = Linear(4, 3).to(device)
    if gather:
        model.parameters()
    with pytest.raises(ValueError, match=r"head\.weight, head\.bias came into"):
        train_once(model, optimizer)


def test_layers_that_are_no_longer_frozen_are_named(device):
    model = Body().to(device)
    model.layers[0].requires_grad_(False)
    optimizer = SGD(model.parameters(), lr=0.1)
    train_once(model, optimizer)
    model.layers[0].requires_grad_()
    with pytest.raises(ValueError, match=r"layers\.0\.weight, layers\.0\.bias came .*frozen"):
        train_once(model, optimizer)
    train_once(model, optimizer, SGD(model.layers[0].parameters(), lr=0.1))


def test_a_layer_beside_the_only_one_that_had_a_buffer_is_named(device):
    """The outermost Module is asked for what is new, though a part had the buffer first."""
    inner = Body().to(device)
    inner.parameters()
    outer = Sequential(inner)
    optimizer = SGD(outer.parameters(), lr=0.1)
    setattr(outer, "1", Linear(2, 2).to(device))
    with pytest.raises(ValueError, match=r"^1\.weight, 1\.bias came into"):
        train_once(outer, optimizer)


def test_what_is_left_out_on_purpose_is_no_newcomer(device):
    model = Body().to(device)
    frozen = SGD([p for p in model.parameters() if p is not model.head.bias], lr=0.1)
    train_once(model, frozen)  # frozen, in the same buffer
    model.head = Linear(4, 3).to(device)
    train_once(model, frozen, SGD(model.head.parameters(), lr=0.1))  # an optimizer of its own
    model = Body().to(device)
    optimizer = SGD(model.parameters(), lr=0.1)
    model.unused, model.layers[1] = Linear(5, 5).to(device), Linear(4, 4).to(device)
    for p in model.layers[1].parameters():
        p.requires_grad = False
    train_once(model, optimizer)  # no gradients, none wanted
    model.layers[1] = lambda x: x
    train_once(model, optimizer)  # removed
    other = Body().to(device)
    SGD(other.parameters(), lr=0.1)
    train_once(model, optimizer)  # another model's layers come and go


# ---- what PyTorch's users type ------------------------------------------------------------------


def test_weight_decay_can_be_set(device):
    w, b = (Parameter(to_device(np.ones(s, "float32"), device)) for s in ((2, 2), (2,)))
    ParameterBuffer([w, b])
    optimizer = SGD([w, b], lr=0.5, weight_decay=0.1)
    optimizer.weight_decay = 0.5
    w.grad, b.grad = w.data * 0, b.data * 0
    optimizer.step()
    same(w.data, np.full((2, 2), 0.75))
    same(b.data, np.ones(2))
    assert optimizer.weight_decay == 0.5 and "weight_decay=0.5: 1 Parameters" in repr(optimizer)


def test_an_optimizer_holds_nothing_of_a_model_that_moved():
    model = Linear(3, 3)
    optimizer = AdamW(model.parameters())
    before = weakref.ref(model.weight.buffer.values)
    model.to("float64")
    assert before() is None
    assert optimizer.state["exp_avg"].dtype == np.float32  # until it is asked
    optimizer.step()
    assert optimizer.state["exp_avg"].dtype == np.float64


def test_an_optimizer_shows_its_settings(device):
    model = Body().to(device)
    groups = [{"params": model.layers[0].parameters(), "lr": 0.5}, {"params": [model.head.weight]}]
    optimizer = SGD(groups, lr=0.25, momentum=0.9, weight_decay=0.125)
    train_once(model, optimizer)
    assert repr(optimizer).splitlines() == [
        "SGD(momentum=0.9, nesterov=False, step 1",
        "  lr=0.5, weight_decay=0.125: 1 Parameters, 12 weights",
        "  lr=0.5, weight_decay=0.0: 1 Parameters, 4 weights",
        "  lr=0.25, weight_decay=0.125: 1 Parameters, 8 weights",
        ")",
    ]
    plain = Optimizer(model.parameters(), lr=0.5, weight_decay=0.0)
    assert repr(plain).splitlines()[0] == "Optimizer(step 0"
    for thing in (optimizer, model):  # gradients are never set to zero
        thing.zero_grad(set_to_none=True)
        with pytest.raises(ValueError, match=r"zero_grad\(\)"):
            thing.zero_grad(set_to_none=False)
    for name, hint in (("param_groups", "lr_factor"), ("nonsense", "nonsense")):
        with pytest.raises(AttributeError, match=hint):
            getattr(optimizer, name)


# ---- small things that would be missed by no other test -----------------------------------------


def test_equal_neighbours_are_one_range_and_others_are_not(device):
    model = Body().to(device)
    model.parameters()
    settings = [1.0, 1.0, 2.0, 2.0, 2.0, 1.0]
    groups = [{"params": [p], "lr": lr} for p, lr in zip(model.parameters(), settings, strict=True)]
    for given, wanted in ((model.parameters(), [1.0, 1.0]), (groups, [1.0, 2.0, 1.0, 2.0, 1.0])):
        optimizer = SGD(given, lr=1.0, weight_decay=0.5)
        train_once(model, optimizer)
        ranges = optimizer._active_ranges()
        assert all(a[1] == b[0] for a, b in pairwise(ranges))
        assert sorted(r[2] for r in ranges) == sorted(wanted), ranges
        for p, (lr, decay) in zip(optimizer.parameters, optimizer._settings, strict=True):
            (own,) = [r for r in ranges if r[0] <= p.start and p.stop <= r[1]]
            assert own[2:] == (lr, decay)


def test_nothing_is_scaled_where_nothing_needs_to_be(device):
    same(Linear(2, 2).to(device).weight.buffer.loss_scale, [1, 0])
    mixer = Mixer(8, 4, 1, 8, 4, 16, in_channels=1, num_classes=2).to(device)
    same(mixer.buffer.loss_scale, [1, 0])
    mixer.buffer.loss_scale[...] = 8
    same(mixer.set_precision("float32").buffer.loss_scale, [1, 0])


def test_a_parameter_in_two_places_of_one_function(device):
    """Its gradient has one place, and two parts to add."""
    values = draw((4, 4)).astype("float32")
    x, b = (Tensor(v, device=device) for v in (draw((4, 3)).astype("float32"), values[0]))
    p, w1, w2 = (Parameter(to_device(values, device)) for _ in range(3))
    fused.mlp(x, p, b, p, axis=0).sum().backward()
    fused.mlp(x, w1, b, w2, axis=0).sum().backward()
    close(p.grad, to_numpy(w1.grad) + to_numpy(w2.grad), "float32")


def test_the_loss_scale_has_a_largest_value(device):
    for scale, after in ((LARGEST_SCALE / 2, LARGEST_SCALE), (LARGEST_SCALE, LARGEST_SCALE)):
        state = to_device(np.array([scale, SCALE_HOLDS - 1.0]), device)
        adjust_scale(state, to_device(np.ones(1), device))
        assert float(state[0]) == after
