"""Modules, layers, initial weights, and what may be done to a model's parameters."""

import copy
import itertools
import math
import pickle
import re

import numpy as np
import pytest
from help import changed, close, draw, put, same, same_state
from strategies import same_memory

from minimixer import SGD, AdamW, Mixer, Module, Parameter, Tensor, backend, data, nn
from minimixer import functional as F
from minimixer.backend import Purpose, random_bits, to_device, to_numpy, uniform
from minimixer.kernels import fused
from minimixer.nn import GELU, Dropout, LayerNorm, Linear, Sequential, StochasticDepth
from minimixer.nn.layers import lecun_normal


def branch():
    return Sequential(Linear(4, 4), Dropout(0.5), Linear(4, 4, bias=False), LayerNorm(4))


class Network(Module):
    """Lists, tuples, Parameters in lists, things that are no modules."""

    def __init__(self, seed=0):
        self.size = 4
        self.scale = Parameter(np.ones(4, dtype="float32"))
        self.branches = [branch(), branch()]
        self.extras = (Parameter(np.zeros((2, 2), "float32")), GELU())
        self.names = ["a", 3, None]
        self.head = Linear(4, 3)
        self.nothing = None
        self.initialize(seed)

    def forward(self, x):
        for branch in self.branches:
            x = x + branch(x)
        return self.head(self.extras[1](x * self.scale))


NAMES = ["scale", "branches.0.0.weight", "branches.0.0.bias", "branches.0.2.weight",
         "branches.0.3.weight", "branches.0.3.bias", "branches.1.0.weight", "branches.1.0.bias",
         "branches.1.2.weight", "branches.1.3.weight", "branches.1.3.bias", "extras.0",
         "head.weight", "head.bias"]  # fmt: skip


def train_step(model, optimizer, device="cpu", seed=0):
    loss = (model(Tensor(put(device, draw((5, 4), seed)))) ** 2).mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


# ---- Module -------------------------------------------------------------------------------------


def test_names_in_order_of_assignment(device):
    model = Network().to(device)
    assert [name for name, _ in model.named_parameters()] == NAMES
    assert [id(p) for p in model.parameters()] == [id(p) for _, p in model.named_parameters()]
    assert [name for name, _ in model.named_modules()][:6] == [
        "", "branches.0", "branches.0.0", "branches.0.1", "branches.0.2", "branches.0.3"
    ]  # fmt: skip
    sizes = 4 + 2 * (16 + 4 + 16 + 8) + 4 + 15
    assert model.num_parameters() == sizes == sum(p.size for p in model.parameters())
    assert model(Tensor(put(device, draw((5, 4))))).shape == (5, 3)
    with pytest.raises(TypeError, match="Module has no forward"):
        Module()(1)


def test_train_and_eval_reach_everything(device):
    model = Network().to(device)
    modules = [m for _, m in model.named_modules()]
    assert all(m.training for m in modules)
    assert model.eval() is model and not any(m.training for m in modules)
    assert model.train() is model and all(m.training for m in modules)
    model.branches[0].eval()
    assert [m.training for m in modules].count(False) == 5
    assert model.train(False) is model and not model.head.training
    assert Module.training is True


class Tied(Module):
    def __init__(self):
        self.a, self.b = Linear(3, 3), Linear(3, 3)
        self.b.weight = self.a.weight
        self.again = self.a

    def forward(self, x):
        return self.again(self.b(self.a(x)))


def test_shared_parameters_count_once(device):
    model = Tied().to(device)
    assert [n for n, _ in model.named_parameters()] == ["a.weight", "a.bias", "b.bias"]
    assert [n for n, _ in model.named_modules()] == ["", "a", "b"]
    assert model.num_parameters() == 15
    state = model.state_dict()
    assert set(state) == {"a.weight", "a.bias", "b.weight", "b.bias", "again.weight", "again.bias"}
    model(Tensor(put(device, draw((2, 3))))).sum().backward()
    assert model.a.weight.grad is not None
    SGD(model.parameters(), lr=0.1).step()
    same(model.b.weight.data, to_numpy(model.again.weight.data))
    state = {n: v + 1 for n, v in state.items()}
    model.load_state_dict(state)
    same(model.b.weight.data, state["a.weight"])
    with pytest.raises(ValueError, match=r"b\.weight.*shared"):
        model.load_state_dict(state | {"b.weight": state["b.weight"] + 1})
    same(model.b.weight.data, state["a.weight"])
    twin = copy.deepcopy(model)
    assert twin.a.weight is twin.b.weight is not model.a.weight
    assert len(twin.parameters()) == 3
    model.a.bias.requires_grad = False
    assert not copy.deepcopy(model).a.bias.requires_grad

    class Doubled(Parameter):
        def __init__(self, half):
            super().__init__(2 * half)

    same(copy.deepcopy(Doubled(np.ones(2))).data, np.full(2, 2.0))


def test_state_dict_is_a_copy(device):
    model = Network().to(device)
    state = model.state_dict()
    assert list(state) == NAMES and all(type(v) is np.ndarray for v in state.values())
    before = {n: v.copy() for n, v in state.items()}
    for value in state.values():
        value[...] = 9
    same_state(model, before)
    state = model.state_dict()
    for p in model.parameters():
        p.data = np.full(p.shape, 5.0)
    assert all((value == before[name]).all() for name, value in state.items())


def test_load_state_dict(device):
    """Any arrays will do, and the values go into the Parameters that an optimizer holds."""
    model, other = Network().to(device), Network(seed=1)
    views = [p.data for p in model.parameters()]
    optimizer = SGD(model.parameters(), lr=1.0)
    for number, p in enumerate(other.parameters()):
        p.data = draw(p.shape, number)
    state = other.state_dict()
    model.load_state_dict(state)
    same_state(model, state)
    model.load_state_dict({n: Tensor(v * 2) for n, v in state.items()})
    model.load_state_dict({n: v.astype("float64").tolist() for n, v in model.state_dict().items()})
    model.load_state_dict({n: to_device(v, device) for n, v in model.state_dict().items()})
    same_state(model, {n: v * 2 for n, v in state.items()})
    assert all(p.dtype == "float32" for p in model.parameters())
    assert all(p.data is v for p, v in zip(model.parameters(), views, strict=True))
    (model.head.weight * 1.0).sum().backward()
    optimizer.step()
    assert changed(model, {n: v * 2 for n, v in state.items()}) == {"head.weight"}
    same(model.head.weight.data, 2 * state["head.weight"] - 1)


def test_load_state_dict_names_all_that_does_not_fit_and_changes_nothing(device):
    model = Network().to(device)
    before = model.state_dict()
    state = {n: v + 1 for n, v in before.items()}
    del state["scale"], state["branches.1.3.bias"]
    state["head.wieght"] = np.zeros(3)
    state["branches.2.3.bias"] = np.zeros(4)
    state["head.weight"] = np.zeros((3, 4))
    state["extras.0"] = np.zeros(())
    state["head.bias"] = np.array(["x", "y", "z"])
    with pytest.raises(ValueError) as caught:
        model.load_state_dict(state)
    lines = str(caught.value).splitlines()
    assert "Network" in lines[0] and "7 entries" in lines[0] and len(lines) == 8
    for name, words in {
        "scale": ["missing"], "branches.1.3.bias": ["missing"], "head.wieght": ["unexpected"],
        "branches.2.3.bias": ["unexpected"], "head.weight": ["(3, 4)", "(4, 3)"],
        "extras.0": ["()", "(2, 2)"], "head.bias": ["number"],
    }.items():  # fmt: skip
        (line,) = (x for x in lines[1:] if name in x.replace(":", " ").split())
        assert all(word in line for word in words)
    same_state(model, before)
    with pytest.raises(ValueError, match="14 entries"):
        model.load_state_dict({})


@pytest.mark.parametrize("gather", [False, True])
@pytest.mark.parametrize("copied", [copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))])
def test_copies_are_independent(device, copied, gather):
    """And go on with the same random draws: seed and step are part of a model."""
    model = Network(seed=3).to(device)
    optimizer = AdamW(model.parameters(), lr=0.1)
    train_step(model, optimizer, device)
    twin = copied(model)
    if gather:
        twin.parameters()
    x = Tensor(put(device, draw((5, 4))))
    for training in (True, False):
        same(twin.train(training)(x).data, model.train(training)(x).data)
    twin.train()
    before = twin.state_dict()
    for p, q in zip(model.parameters(), twin.parameters(), strict=True):
        assert p is not q and p.buffer is not q.buffer and q.device == p.device
        assert not same_memory(p.data, q.data)
    train_step(model.train(), optimizer, device)
    same_state(twin, before)
    assert changed(model, before)
    frozen = model.state_dict()
    train_step(twin, SGD(twin.parameters(), lr=0.1), device)
    same_state(model, frozen)
    assert changed(twin, before)


def test_initialize_draws_every_layer_anew(device):
    model = Network(seed=3).to(device)
    first = model.state_dict()
    for p in model.parameters():
        p.data = np.full(p.shape, 7.0)
    model.initialize(seed=3)
    # Parameters of no layer that can draw them stay
    same_state(model, first | {n: first[n] * 0 + 7 for n in ("scale", "extras.0")})
    model.initialize(seed=4)
    second = model.state_dict()
    weights = [n for n in NAMES if n.endswith("weight") and "3" not in n]
    drawn = [state[n][:4, :3].ravel() for state in (first, second) for n in weights]
    assert all((a != b).all() for a, b in itertools.combinations(drawn, 2))
    assert model.parameters()[0].buffer.random.seed == 4


# ---- layers -------------------------------------------------------------------------------------


def test_linear():
    bare = Linear(3, 2, bias=False)
    assert bare.bias is None and [n for n, _ in bare.named_parameters()] == ["weight"]
    assert not Linear(3, 2, zero=True).weight.data.any() and Linear(3, 2).weight.data.any()
    assert not Linear(3, 2).bias.data.any() and Linear(np.int64(2), 3).weight.shape == (2, 3)
    same(Linear(3, 2, seed=5).weight.data, lecun_normal((3, 2), 3, 5, 0))


def test_what_is_added_and_dropped_may_need_no_gradient(device):
    """Then only gamma and beta get theirs, though there is something to keep."""
    x, y, gamma, beta, keep = (
        Tensor(put(device, draw(s))) for s in ((2, 3, 4), (2, 3, 4), (4,), (4,), (3,))
    )
    found = {}
    for dropped in (keep, None):
        gamma = Tensor(gamma.data, requires_grad=True)
        added = y if dropped is not None else Tensor(y.data * keep.data[:, None])
        fused.add_layer_norm(x, added, None, gamma, beta, keep=dropped)[1].sum().backward()
        found[dropped is None] = to_numpy(gamma.grad)
    np.testing.assert_allclose(found[True], found[False], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", [(0, 3), (3, 0)])
def test_dropout_of_nothing(device, shape):
    model = Sequential(Dropout(0.5)).to(device)
    assert model(Tensor(put(device, np.zeros(shape, "float32")))).shape == shape


def test_a_bias_that_needs_no_gradient_gets_none(device):
    """Not even one that is computed and thrown away, by any form of the code."""
    for rows in (3, 30_000):
        leaves = [Tensor(put(device, draw(s)), requires_grad=True) for s in ((rows, 4), (4,), (4,))]
        bias = Tensor(put(device, draw((4,))))
        s, h = fused.add_layer_norm(leaves[0], None, bias, *leaves[1:])
        found = s.node.backward(s.data, h.data)
        assert [gradient is None for gradient in found] == [False, True, True, False, False, True]
        found = s.node.backward(s.data, None)
        assert [gradient is None for gradient in found] == [False, True, True, True, True, True]


def test_layers_call_their_functions(device):
    """Whose values test_operations.py compares with formulas."""
    x = put(device, draw((5, 6)))
    for form in ("none", "tanh"):
        same(GELU(form)(x).data, to_numpy(F.gelu(Tensor(x), form).data))
    assert GELU().approximate == "none"
    for layer, epsilon in ((LayerNorm(6), 1e-6), (LayerNorm(6, epsilon=1.0), 1.0)):
        same(layer.weight.data, np.ones(6))
        same(layer.bias.data, np.zeros(6))
        w, b = layer.to(device).weight, layer.bias
        w.data, b.data = draw((6,)), draw((6,), 1)
        same(layer(x).data, to_numpy(F.layer_norm(Tensor(x), w, b, epsilon).data))
    layer = Linear(6, 2).to(device)
    layer.bias.data = draw((2,))
    for given in (x, x[0], x[None]):
        same(layer(given).data, to_numpy(F.linear(Tensor(given), layer.weight, layer.bias).data))


def counter(model):
    return model.parameters()[0].buffer.random


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout(device, p):
    model = Sequential(Linear(1, 1), Dropout(p), Dropout(p), StochasticDepth(p)).to(device)
    model.initialize(seed=11)
    _, layer, other, _ = model
    x = Tensor(put(device, draw((100, 10, 20), 1, low=0.5)), requires_grad=True)

    def mask(layer):
        return to_numpy(layer(x).data) != 0

    y, kept = layer(x), mask(layer)
    deviation = math.sqrt(p * (1 - p) / kept.size)
    assert abs(kept.mean() - (1 - p)) < 5 * deviation
    for axis in (0, 1, 2):  # no example, no element is favoured
        others = tuple({0, 1, 2} - {axis})
        spread = abs(kept.mean(axis=others) - (1 - p)).max()
        assert spread < 5 * deviation * math.sqrt(kept.shape[axis])
    close(y.data, to_numpy(x.data) * kept / (1 - p))
    y.sum().backward()
    close(x.grad, kept / (1 - p))
    assert y.dtype == "float32" and x.grad.dtype == "float32"
    same(layer(x).data, to_numpy(y.data))  # the same step, the same mask
    independent = p * p + (1 - p) ** 2
    assert abs((mask(other) == kept).mean() - independent) < 0.02  # two layers
    counter(model).set(1)
    assert abs((mask(layer) == kept).mean() - independent) < 0.02  # and two steps
    counter(model).set(0)
    counter(model).seed += 1
    assert (mask(layer) != kept).any()
    assert all(layer(x) is x for layer in (*model.eval()[1:], Dropout(0.0)))


# ---- initial weights ----------------------------------------------------------------------------


def test_lecun_normal(device):
    w = lecun_normal((400, 700), 400, seed=1, layer=2)
    assert w.dtype == np.float32 and w.shape == (400, 700)
    same(w, lecun_normal((400, 700), 400, seed=1, layer=2))
    z = w.astype("float64").ravel() * math.sqrt(400)
    n = z.size
    assert abs(z.mean()) < 5 / math.sqrt(n) and abs(z.std() - 1) < 5 / math.sqrt(n)
    limit = 2 / 0.87962566
    assert limit * 0.999 < abs(z).max() <= limit * (1 + 1e-6)
    # the distribution function of a normal variable cut off at two deviations
    z.sort()
    phi = np.array([math.erf(v / math.sqrt(2)) for v in (z * 0.87962566)[:: n // 500]])
    expected = 0.5 + phi / (2 * math.erf(math.sqrt(2)))
    assert abs(expected - np.arange(n)[:: n // 500] / n).max() < 1.7 / math.sqrt(n)  # Kolmogorov
    assert abs(np.corrcoef(w[:, :-1].ravel(), w[:, 1:].ravel())[0, 1]) < 5 / math.sqrt(n)
    for other in ({"seed": 2, "layer": 2}, {"seed": 1, "layer": 3}, {"seed": 2, "layer": 1}):
        other = lecun_normal((400, 700), 400, **other)
        assert abs(np.corrcoef(w.ravel(), other.ravel())[0, 1]) < 5 / math.sqrt(n)
    assert np.unique(w).size > 0.95 * n


def test_lecun_normal_does_not_depend_on_the_block_it_is_drawn_in(device):
    """An element is a function of its number alone: a larger matrix begins with a smaller. The
    first draw within two deviations counts, and old seeds go on meaning what they meant."""
    flat = lecun_normal(((1 << 18) + 50,), 1, 0, 0)
    same(flat[:100], lecun_normal((100,), 1, 0, 0))
    assert (flat[-50:] != flat[:50]).all()
    close(lecun_normal((5, 20), 4, 0, 0).ravel(), flat[:100] / 2)
    elements, expected = np.arange(1000, dtype=np.uint64), np.full(1000, np.inf)
    for attempt in range(4):
        bits = random_bits(0, Purpose.WEIGHTS, attempt, 0, 0, elements)
        radius = np.sqrt(-2 * np.log(1 - uniform(bits, "float64")))
        drawn = radius * np.cos((bits & np.uint64(0xFFFFFF)) * 2.0**-23 * math.pi)
        expected = np.where(abs(expected) > 2, drawn, expected)
    close(flat[:1000] * 0.87962566, expected, 1e-4, 1e-4)


# ---- what may be done to parameters -------------------------------------------------------------


def test_a_replaced_head_works_with_a_new_optimizer(device):
    model = Network(seed=6).to(device)
    old = AdamW(model.parameters(), lr=0.1)
    train_step(model, old, device)
    before = model.state_dict()
    model.head = Linear(4, 7).to(device)
    new = AdamW(model.parameters(), lr=0.1)
    for name, value in model.state_dict().items():
        assert name.startswith("head") or (value == before[name]).all()
    for p in model.parameters():
        assert p.buffer is model.head.weight.buffer and p.device == model.head.weight.device
    for call in (old.step, lambda: old.clip_grad_norm(1.0),
                 lambda: old.load_state_dict(old.state_dict())):  # fmt: skip
        with pytest.raises(ValueError, match=r"new optimizer from model.parameters\(\)"):
            call()
    train_step(model, new, device)
    assert (model.state_dict()["head.weight"] != 0).any()
    random = counter(model)
    assert random.seed == 6 and int(random.counters[0]) == 2  # the model's draws go on


def two_layers():
    return Sequential(Linear(4, 4), Dropout(0.5), Linear(4, 4))


@pytest.mark.parametrize("name", ["0", "2"])
def test_a_replaced_layer_takes_the_models_dtype_and_device(device, name):
    """Whichever it is: also the first, whose buffer the others then join."""
    model = two_layers().to(device, "float64")
    model.initialize(seed=9)
    counter(model).set(5)
    setattr(model, name, Linear(4, 4))
    for p in model.parameters():
        assert p.dtype == "float64" and p.device == backend.check_device(device)
    assert counter(model).seed == 9 and int(counter(model).counters[0]) == 5


@pytest.mark.parametrize("gather", [True, False])
def test_two_optimizers_over_parts_of_one_model(device, gather):
    """Each moves its own part, whether the parts are gathered first or later."""
    model = two_layers()
    for part in [model] if gather else model:
        part.to(device)
    first = SGD(model[0].parameters(), lr=0.1, momentum=0.9)
    second = AdamW(model[2].parameters(), lr=0.1)
    for optimizer, moved in ((first, "0"), (second, "2")):
        before = model.state_dict()
        model(Tensor(put(device, draw((5, 4))))).mean().backward()
        optimizer.step()
        first.zero_grad()
        second.zero_grad()
        assert all(p.grad is None for _, p in model.named_parameters())
        assert changed(model, before) == {f"{moved}.weight", f"{moved}.bias"}
    if not gather:
        model.parameters()  # gathered now: both must notice
        for optimizer in (first, second):
            with pytest.raises(ValueError, match="new optimizer"):
                optimizer.step()


def test_a_layer_used_in_two_models(device):
    """It belongs to the model that was gathered last; the other's optimizer says so."""
    shared = Linear(4, 4)
    a, b = (Sequential(shared, Linear(4, 4)) for _ in range(2))
    a.to(device)
    first = SGD(a.parameters(), lr=0.1)
    b.to(device)
    second = SGD(b.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="new optimizer"):
        train_step(a, first, device)
    train_step(b, second, device)


def test_a_model_without_parameters(device):
    model = Sequential(GELU())
    assert model.parameters() == [] and model.num_parameters() == 0 and model.state_dict() == {}
    model.to(device).initialize(3)
    model.load_state_dict({})
    model.train().eval().zero_grad()
    with pytest.raises(ValueError, match="no parameters"):
        SGD(model.parameters(), lr=1.0)


def test_parameters_are_tensors(device):
    p = Parameter(put(device, draw((3, 2))))
    assert isinstance(p, Tensor) and p.shape == (3, 2) and p.requires_grad and len(p) == 3
    assert p.dtype == "float32" and p.device == backend.check_device(device)
    assert "Parameter" in repr(p) and (p.T @ p).shape == (2, 2)
    assert not p.detach().requires_grad and not isinstance(p.detach(), Parameter)
    assert not isinstance(p * 1.0, Parameter)
    assert hash(p) == hash(p) and len({p, p}) == 1
    assert Parameter([1, 2.5]).dtype == "float32"
    assert not Parameter(np.ones(2), requires_grad=False).requires_grad
    assert Parameter(np.ones(2)).dtype == "float64"


# ---- what PyTorch's users type ------------------------------------------------------------------


def test_sequential(device):
    layers = [Linear(3, 4), nn.ReLU(), Linear(4, 2)]
    model = Sequential(*layers).to(device)
    assert [n for n, _ in model.named_parameters()] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert list(model) == layers and len(model) == 3 and model[-1] is layers[2]
    assert list(model[1:]) == layers[1:] and isinstance(model[1:], Sequential)
    x = put(device, draw((5, 3)))
    w = [to_numpy(p.data) for p in model.parameters()]
    expected = np.maximum(to_numpy(x) @ w[0] + w[1], 0) @ w[2] + w[3]
    close(model(Tensor(x)).data, expected)
    model(Tensor(x)).sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    assert Sequential()(x) is x
    x = put(device, draw((2, 3, 4)))
    same(nn.Flatten()(Tensor(x)).data, to_numpy(x).reshape(2, 12))
    assert nn.Flatten()(Tensor(x[:0])).shape == (0, 12)
    for wrong in ([Linear(3, 4)], F.gelu, None):
        with pytest.raises(TypeError, match="Sequential"):
            Sequential(Linear(3, 3), wrong)
    with pytest.raises(IndexError):
        model[3]


def test_mse_loss(device):
    x, t = (Tensor(put(device, draw((2, 3)) + i), requires_grad=True) for i in (0.0, 0.25))
    square = (to_numpy(x.data) - to_numpy(t.data)) ** 2
    for reduction, right in (("mean", square.mean()), ("sum", square.sum()), ("none", square)):
        found = to_numpy(F.mse_loss(x, t, reduction=reduction).data)
        np.testing.assert_allclose(found, right, rtol=1e-6)
    F.mse_loss(x, t).backward()
    difference = 2 * (to_numpy(x.data) - to_numpy(t.data)) / 6
    np.testing.assert_allclose(to_numpy(x.grad), difference, rtol=1e-6)
    np.testing.assert_allclose(to_numpy(t.grad), -difference, rtol=1e-6)
    with pytest.raises(ValueError, match=r"\(2, 3\).*\(3,\)"):
        F.mse_loss(x, t[0])
    with pytest.raises(ValueError, match=r"reduction.*'avg'"):
        F.mse_loss(x, t, reduction="avg")


def test_children_and_modules():
    model = Sequential(Linear(2, 2), Sequential(GELU()))
    assert list(model.children()) == [model[0], model[1]]
    assert next(model.modules()) is model and len(list(model.modules())) >= 3
    model = Sequential(Linear(2, 2))
    model.more = [Linear(2, 2), {"a": Linear(2, 2)}]
    assert [path for path, _ in model.named_children()] == ["0", "more.0", "more.1.a"]


def test_freezing_all_of_a_part():
    model = Sequential(Linear(2, 2), Linear(2, 2))
    assert model[0].requires_grad_(False) is model[0]
    assert [p.requires_grad for _, p in model.named_parameters()] == [False, False, True, True]
    model.requires_grad_()
    assert all(p.requires_grad for p in model.parameters())


@pytest.mark.parametrize("where, name, hint", [
    (Linear(2, 2), "cuda", '.to("cuda")'), (Linear(2, 2), "half", "set_precision"),
    (Linear(2, 2), "register_buffer", "attribute"), (Linear(2, 2), "apply", "modules()"),
    (Linear(2, 2), "add_module", "setattr"), (Linear(2, 2), "wieght", "'wieght'"),
    (nn, "CrossEntropyLoss", "functional.cross_entropy"), (nn, "ModuleList", "a list"),
    (F, "dropout", "nn.Dropout"), (F, "nonsense", "'nonsense'"),
], ids=lambda v: v if isinstance(v, str) else "")  # fmt: skip
def test_what_is_not_there_says_what_to_write(where, name, hint):
    assert not hasattr(where, name)
    with pytest.raises(AttributeError, match=re.escape(hint)):
        getattr(where, name)


# ---- what they look like ------------------------------------------------------------------------


def test_a_tree_of_layers():
    class Odd(Module):
        def __init__(self):
            self.scale = Parameter(np.ones(3))
            self.heads = {"a": Linear(3, 1), "b": (Linear(3, 1), Linear(3, 1), Linear(3, 2))}
            self.whole, self.nothing = self, []
            self.nothing.append(self.nothing)
            self.again, self.drop = self.heads["a"], Dropout(0.25)
            self.kind = Linear  # a class is no part

    one = "Linear(weight (3, 1), bias (1,); 4 weights)"
    assert repr(Odd()).splitlines() == [
        "Odd(scale (3,); 23 weights",
        f"  (heads.a): {one}",
        f"  (heads.b.0-1): 2 x {one}",
        "  (heads.b.2): Linear(weight (3, 2), bias (2,); 8 weights)",
        "  (whole): Odd(...)",
        f"  (again): {one}",
        "  (drop): Dropout(p=0.25)",
        ")",
    ]
    table = str(Odd().summary()).splitlines()
    assert table[2].split() == ["Odd", "scale", "(3,)", "3"] and table[-1].split()[-1] == "23"
    assert len({len(line) for line in table}) == 1 and len(table) == 9


def test_small_things_look_like_what_they_are(device):
    assert repr(LayerNorm(3, 1e-5)) == "LayerNorm(epsilon=1e-05, weight (3,), bias (3,); 6 weights)"
    assert repr(GELU("tanh")) == "GELU(approximate='tanh')" and repr(nn.ReLU()) == "ReLU()"
    assert repr(Parameter(put(device, draw((3,))))).startswith("Parameter([")
    model = Mixer(8, 4, 3, 8, 4, 16, in_channels=1, num_classes=2, mean=0.25).to(device)
    assert "(blocks.0-2): 3 x MixerBlock(" in repr(model) and "(head): Linear(" in repr(model)
    assert repr(model.normalization) == "Normalization(mean=[0.25], std=[0.5])"
    batches = data.Batches(np.zeros((10, 4, 4, 1), "uint8"), np.zeros(10, int), 4, max_shift=1)
    assert repr(batches) == (
        "Batches(10 images (4, 4, 1) of uint8; 3 batches of 4, seed=0, max_shift=1, shuffle=True)"
    )
