"""The rules of the engine about the graph, 1 to 7 and 10: each test is named after its rule.

Those about arrays and their homes are in test_rules_of_arrays.py.
"""

import asyncio
import contextvars
import gc
import itertools
import sys
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from help import DTYPES, close, draw, leaf, passing, put, raises, same, small_mixer
from strategies import each_half, same_memory

from minimixer import SGD, AdamW, Function, Parameter, Tensor, backend, enable_grad, no_grad, ops
from minimixer import functional as F
from minimixer.backend import is_array, to_numpy
from minimixer.engine.grad_mode import is_grad_enabled, set_grad_enabled
from minimixer.nn import LayerNorm, Linear
from minimixer.ops import maximum, where
from minimixer.rearrange import concatenate, stack

# ---- 1: Functions -------------------------------------------------------------------------------


class Recorder(Function):
    """(a, b, c) -> (a + b, b * c, c), writing down what it is told."""

    log: list = []  # noqa: RUF012

    def forward(self, a, b, c):
        self.b, self.c = b, c
        return a + b, b * c, c.copy()

    def backward(self, *gradients):
        Recorder.log.append((self.needs, [None if d is None else to_numpy(d) for d in gradients]))
        d_sum, d_product, d_copy = gradients
        through = d_product is not None
        da = d_sum if self.needs[0] else None
        db = sum_of(d_sum, d_product * self.c if through else None) if self.needs[1] else None
        dc = sum_of(d_copy, d_product * self.b if through else None) if self.needs[2] else None
        return da, db, dc


def sum_of(a, b):
    return b if a is None else a if b is None else a + b


CHOICES = [chosen for chosen in itertools.product([False, True], repeat=3) if any(chosen)]


@pytest.mark.parametrize("used", CHOICES)
@pytest.mark.parametrize("needs", CHOICES)
def test_rule_01_several_outputs_unused_ones_are_none(device, used, needs):
    Recorder.log.clear()
    values = [np.array([2.0, 3.0]), np.array([5.0, 7.0]), np.array([11.0, 13.0])]
    inputs = [Tensor(put(device, v), n) for v, n in zip(values, needs, strict=True)]
    outputs = Recorder.apply(*inputs)
    assert isinstance(outputs, tuple) and len(outputs) == 3
    sum((y * (i + 1)).sum() for i, y in enumerate(outputs) if used[i]).backward()
    ((seen_needs, gradients),) = Recorder.log
    assert seen_needs == needs
    assert [None if g is None else g.tolist() for g in gradients] == [
        [i + 1.0] * 2 if used[i] else None for i in range(3)
    ]
    expected = [
        [1.0 * used[0]] * 2,
        used[0] + used[1] * 2 * values[2],
        used[1] * 2 * values[1] + 3 * used[2],
    ]
    reached = [used[0], used[0] or used[1], used[1] or used[2]]
    for t, need, right, hit in zip(inputs, needs, expected, reached, strict=True):
        assert (t.grad is not None) == (need and hit)
        if t.grad is not None:
            same(t.grad, right)


@pytest.mark.parametrize("kind", [tuple, list])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_rule_01_several_outputs_come_in_a_tuple_or_a_list(device, dtype, kind):
    class Parts(Function):
        def forward(self, x):
            return kind([2 * x, 3 * x])

        def backward(self, d_double, d_triple):
            return kind([2 * d_double + 3 * d_triple])

    x = leaf(device, [1.0, 2.0], dtype)
    outputs = Parts.apply(x)
    assert type(outputs) is tuple and [y.shape for y in outputs] == [(2,), (2,)]
    (outputs[0] + outputs[1]).sum().backward()
    same(x.grad, [5, 5])


def test_rule_01_none_passes_through_a_node_to_those_behind(device):
    """A node that is never reached must not keep those behind it waiting."""
    x = leaf(device, [1.0, 2.0])
    shared = x * 3
    y = passing(lambda dy: None)(shared * 5) + shared
    y.backward(put(device, [1.0, 1.0]))
    same(x.grad, [3, 3])


def test_rule_01_saves_only_what_it_needs(device):
    x, w = put(device, draw((3, 4))), put(device, draw((4, 5)))

    def saved(y):
        values = [v for v in vars(y.node).values() if is_array(v)]
        return [any(same_memory(v, z) for v in values) for z in (x, w)]

    for function in (F.linear, ops.matmul):
        assert saved(function(Tensor(x, True), Tensor(w))) == [False, True]
        assert saved(function(Tensor(x), Tensor(w, True))) == [True, False]
        assert saved(function(Tensor(x, True), Tensor(w, True))) == [True, True]
    y = put(device, draw((3, 4), 1))
    product = Tensor(x, True) * Tensor(y)
    assert not any(same_memory(v, x) for v in vars(product.node).values() if is_array(v))
    for sums in (Tensor(x, True) + Tensor(y, True), Tensor(x, True).sum(), Tensor(x, True).T):
        assert not any(is_array(v) for v in vars(sums.node).values())


@pytest.mark.parametrize("dtype, gradients, error, message", [
    ("float32", lambda dy: (dy,), ValueError, r"Wrong.backward returned 1 gradients for 2"),
    ("float32", lambda dy: (dy, dy), ValueError, r"Wrong.*\(3, 4\) for input 1 of shape \(4,\)"),
    ("float32", lambda dy: (1.0, dy[0]), TypeError, "must be an array"),
    *[(dtype, lambda dy, wrong=wrong: (dy.astype(wrong), dy[0].astype(wrong)), TypeError,
       f"returned {wrong} as the gradient .*0, {dtype}")
      for dtype, wrong in (("float16", "float64"), ("float64", "float32"), ("float32", "float16"),
                           ("float32", "float64"))],
], ids=range(7))  # fmt: skip
def test_rule_01_wrong_backwards_are_named(device, dtype, gradients, error, message):
    class Wrong(Function):
        any_dtype = True

        def forward(self, a, b):
            return a + b

        def backward(self, dy):
            return gradients(dy)

    with pytest.raises(error, match=message):
        y = Wrong.apply(leaf(device, draw((3, 4)), dtype), leaf(device, draw((4,)), dtype))
        y.backward(put(device, np.ones((3, 4)), dtype))


# ---- 2: broadcasting ----------------------------------------------------------------------------

PATTERNS = [
    (tuple(n if keep else 1 for n, keep in zip(full[cut:], kept, strict=True)), full)
    for full in [(2, 3, 4), (2, 0, 3)]
    for cut in range(4)
    for kept in itertools.product([True, False], repeat=3 - cut)
]


@pytest.mark.parametrize("shape, full", PATTERNS, ids=str)
def test_rule_02_sum_to_shape_undoes_every_broadcast(device, shape, full):
    gradient = np.random.default_rng(1).integers(-9, 9, full).astype("float64")
    expected = np.zeros(shape)
    positions = np.broadcast_to(np.arange(expected.size).reshape(shape), full)
    for position, value in zip(positions.ravel(), gradient.ravel(), strict=True):
        expected.reshape(-1)[position] += value
    for dtype in DTYPES:
        before = put(device, gradient, dtype)
        result = ops.sum_to_shape(before, shape)
        assert result.shape == shape and result.dtype == dtype
        same(result, expected)
        same(before, gradient)
    # and so do the operations: the gradient of a repeated operand is the sum of the repetitions
    a, b = leaf(device, np.ones(shape)), leaf(device, np.zeros(full))
    for y in (a + b, b - (-a), a * (b + 1), (b + 1) * a, where(b.data == 0, a, b)):
        a.grad = None
        y.backward(put(device, gradient))
        same(a.grad, expected)


# ---- 3: no adding in place into foreign buffers -------------------------------------------------


@pytest.mark.parametrize("function", [
    lambda x, y: x + y, lambda x, y: concatenate([x, y])[:3] + concatenate([x, y])[3:],
    lambda x, y: x.reshape(12).reshape(3, 4) + y.T.T,
], ids=["add", "concatenate", "views"])  # fmt: skip
def test_rule_03_one_array_is_never_handed_to_two_gradients(device, function):
    """Of one operation, test_operations.py has it."""
    x, y = leaf(device, draw((3, 4))), leaf(device, draw((3, 4), 1))
    seed = put(device, np.ones((3, 4)))
    function(x, y).backward(seed)
    x.grad[...] = 77
    same(y.grad, np.ones((3, 4)))
    same(seed, np.ones((3, 4)))
    y.grad += 1
    seed[...] = -1
    same(x.grad, np.full((3, 4), 77))


def test_rule_03_sums_of_equal_and_of_many_parts(device):
    """The third contribution may be added in place, into a sum that the engine made."""
    x, seed = leaf(device, [1.0, 2.0]), put(device, [1.0, 10.0])
    h, identity = x * 1, passing(lambda dy: dy)
    parts = [identity(h) for _ in range(5)]
    for function, times in ((lambda: x + x, 2), (lambda: sum(parts[1:], parts[0]), 5)):
        x.grad = None
        function().backward(seed)
        same(x.grad, [times, 10 * times])
        same(seed, [1, 10])
        assert not same_memory(x.grad, seed)


def test_rule_03_a_gradient_kept_by_a_function_stays(device):
    kept = []
    keep = passing(lambda dy: kept.append((dy, to_numpy(dy).copy())) or dy)
    h = keep(leaf(device, draw((4,))))
    y = keep(keep(h) + h) + keep(h) + h
    (y * y).sum().backward()
    assert len(kept) == 4
    for array, value in kept:
        same(array, value)


# ---- 4: the order of backward -------------------------------------------------------------------


def test_rule_04_chain_of_10000(device):
    limit = sys.getrecursionlimit()
    x = leaf(device, [1.0])
    y = x
    for _ in range(10_000):
        y = -y
    y.backward()
    same(x.grad, [1])
    del y
    y = x
    for _ in range(10_000):
        y = y + 0.0
    del y  # a graph of this depth is freed without recursion, too
    a, b = x, x
    for _ in range(10_000):
        a, b = b, a + b * 0.0
    del a, b
    assert sys.getrecursionlimit() == limit


def test_rule_04_sixty_doublings_in_linear_time(device):
    fired, x = [], leaf(device, [1.0])
    count = passing(lambda dy: fired.append(1) or dy)
    y = x
    for _ in range(60):
        y = count(y + y)
    y.backward()
    same(y.data, [2.0**60])
    same(x.grad, [2.0**60])
    assert len(fired) == 60


def test_rule_04_a_node_fires_once_all_its_uses_have(device):
    """Random graphs: every node fires once, after all that used it, with the full gradient."""
    order = []

    class Weighted(Function):
        def forward(self, *inputs, number, weights):
            self.number, self.weights = number, weights
            return sum(a * w for a, w in zip(inputs, weights, strict=True))

        def backward(self, dy):
            order.append((self.number, to_numpy(dy).item()))
            return tuple(dy * w for w in self.weights)

    random = np.random.default_rng(3)
    for _ in range(10):
        order.clear()
        x = leaf(device, 1.0, "float64")
        tensors, edges = [x], [[]]
        for number in range(1, 25):
            count = int(random.integers(1, 5))
            chosen = random.integers(max(0, number - 6), number, count).tolist()
            weights = random.integers(-2, 3, count).astype(float).tolist()
            inputs = [tensors[i] for i in chosen]
            tensors.append(Weighted.apply(*inputs, number=number, weights=weights))
            edges.append(list(zip(chosen, weights, strict=True)))
        tensors[-1].backward()
        expected = [0.0] * 24 + [1.0]
        needed = {24}
        for number in range(24, 0, -1):
            if number in needed:
                for i, w in edges[number]:
                    expected[i] += w * expected[number]
                    needed.add(i)
        position = {n: i for i, (n, _) in enumerate(order)}
        assert sorted(n for n, _ in order) == sorted(needed - {0})
        for number, gradient in order:
            assert gradient == expected[number]
            assert all(i == 0 or position[i] > position[number] for i, _ in edges[number])
        assert to_numpy(x.grad).item() == expected[0]


def test_rule_04_backward_is_reentrant(device):
    """Checkpointing in one line: a backward that builds a graph and runs backward in it; also
    into the very leaf that the outer one is on its way to."""

    class Again(Function):
        def forward(self, x):
            self.x = x
            return backend.namespace(x).tanh(x)

        def backward(self, dy):
            inner = Tensor(self.x, requires_grad=True)
            inner.tanh().backward(dy)
            (w * 10.0).sum().backward()
            return inner.grad

    w = Parameter(put(device, [2.0], "float64"))
    values = draw((5,), dtype="float64")
    x, plain = leaf(device, values, "float64"), leaf(device, values, "float64")
    y, z = x, plain
    for _ in range(4):
        y, z = Again.apply(y) * y, z.tanh() * z
    (y.sum() + (w * 3.0).sum()).backward()
    z.sum().backward()
    close(x.grad, plain.grad, 1e-13, 0)
    same(w.grad, [43])


# ---- 5: release, no cycles ----------------------------------------------------------------------


def test_rule_05_second_backward_says_what_to_do(device):
    """And changes nothing; with retain_graph=True it is possible."""
    x = leaf(device, [3.0])
    y = x * x
    for _ in range(2):
        y.backward(retain_graph=True)
    y.backward()
    for again in (y, (y * 2.0).sum()):  # a new graph on top of a released one
        with pytest.raises(ValueError, match=r"Multiply.*retain_graph=True"):
            again.backward()
    same(x.grad, [18])


def test_rule_05_one_of_two_graphs_over_a_shared_part(device):
    x = leaf(device, [3.0])
    h = x * x
    a, b = h * 2.0, h * 3.0
    a.backward()
    other = leaf(device, [1.0])
    with pytest.raises(ValueError, match="retain_graph"):
        (other * 5.0 + b).backward()
    assert other.grad is None  # found out before anything was done
    same(x.grad, [12])


@pytest.fixture
def no_collector():
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def graph_of(variables):
    """All nodes behind `variables`."""
    found, todo = set(), [v.node for v in variables if v.node is not None]
    while todo:
        node = todo.pop()
        if node not in found:
            found.add(node)
            todo += [p[0] for p in node.parents if p and isinstance(p[0], Function)]
    return found


def test_rule_05_a_training_step_leaves_nothing_for_the_collector(device, no_collector):
    model = small_mixer(device, stochastic_depth=0.3)
    optimizer = AdamW(model.parameters())
    images, labels = draw((4, 8, 8, 1)), np.array([0, 1, 2, 1])

    def step():
        loss = F.cross_entropy(model(images), labels)
        references = [weakref.ref(n) for n in graph_of([loss])]
        references.append(weakref.ref(loss))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return references

    step()
    gc.collect()
    references = step()
    assert len(references) > 10 and all(r() is None for r in references)
    with no_grad():
        scores = model(images)
    reference = weakref.ref(scores.data)
    del scores
    assert reference() is None
    assert gc.collect() == 0


def test_rule_05_memory_falls_during_backward(device):
    saved, gradients, alive = [], [], []

    class Probe(Function):
        def forward(self, x):
            self.kept = x * 2
            saved.append(weakref.ref(self.kept))
            return x + 0

        def backward(self, dy):
            alive.append((sum(r() is not None for r in saved),
                          sum(r() is not None for r in gradients)))  # fmt: skip
            dx = dy * 1
            gradients.append(weakref.ref(dx))
            return dx

    for retain_graph in (False, True):
        saved.clear(), gradients.clear(), alive.clear()
        x = leaf(device, draw((4,)))
        y = x
        for _ in range(10):
            y = Probe.apply(y)
        y.backward(put(device, np.ones(4)), retain_graph=retain_graph)
        kept = [10] * 10 if retain_graph else list(range(10, 0, -1))
        assert [a for a, _ in alive] == kept
        assert max(b for _, b in alive) <= 2  # the gradient that comes in, and what is on its way
        assert all(r() is None for r in gradients)


def test_rule_05_branches_are_released_as_they_fire(device):
    """An output that was only needed by one branch dies with that branch."""
    x = leaf(device, draw((4,)))
    h = x.exp()
    reference, middle = weakref.ref(h.data), h.tanh()
    first, second = middle * 2.0, h * h
    del h
    total = (first + second).sum()
    del first, second, middle
    assert reference() is not None
    total.backward()
    assert reference() is None


@pytest.mark.parametrize("kind", [Tensor, Parameter])
def test_rule_05_exception_in_backward_leaves_things_sane(device, kind):
    broken = passing(lambda dy: raises(RuntimeError("planted")))
    x = kind(put(device, [1.0, 2.0]), requires_grad=True)
    tail = (broken(x * 2.0) * 3.0).sum()
    with pytest.raises(RuntimeError, match="planted"):
        tail.backward()
    assert is_grad_enabled() and x.grad is None
    with pytest.raises((ValueError, RuntimeError)):
        tail.backward()
    (x * 5.0).sum().backward()
    same(x.grad, [5, 5])


@pytest.mark.parametrize("change", [
    lambda w: setattr(w, "data", np.zeros((2, 2))), lambda w: SGD([w], lr=0.1).step()
], ids=["assignment", "step"])  # fmt: skip
def test_rule_05_changed_parameters_are_noticed(device, change):
    """What a node kept of a Parameter is a view: a change before backward would go unseen."""
    x, w = leaf(device, draw((3, 2))), Parameter(put(device, draw((2, 2))))
    (w * w).sum().backward()
    for y in (F.linear(x, w).sum(), (w * w).sum()):
        change(w)
        with pytest.raises(ValueError, match="changed after forward"):
            y.backward()
    w.requires_grad = False  # frozen, it gets no gradient, but x's is computed with it
    y = F.linear(x, w).sum()
    w.data = w.data + 1
    with pytest.raises(ValueError, match="changed after forward"):
        y.backward()


# ---- 6: dtypes ----------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype, quiet", [("float32", True), ("float16", False)])
def test_functions_see_and_set_the_context_variables_of_who_calls(device, dtype, quiet):
    """Though NumPy's own, which says whether it warns, is another there."""
    variable = contextvars.ContextVar[list]("variable")

    class Note(Function):
        def forward(self, x, function):  # whatever its options are called
            variable.set([*variable.get(), function])
            return 1e38 * x * 1e38  # without a warning

        def backward(self, dy):
            variable.set([*variable.get(), "backward"])
            return 1e38 * dy * 1e38

    Note.quiet = quiet
    variable.set(["before"])
    with np.errstate(all="raise"):
        x = leaf(device, [2.0], dtype)
        Note.apply(x, function="forward").backward()
        assert np.geterr()["over"] == "raise"
    assert np.isinf(to_numpy(x.grad)).all()
    assert variable.get() == ["before", "forward", "backward"]


BINARY = [ops.add, ops.subtract, ops.multiply, ops.divide, ops.power, ops.matmul, ops.maximum,
          lambda a, b: where(np.ones((2, 2), bool), a, b), lambda a, b: concatenate([a, b]),
          lambda a, b: stack([a, b]), F.linear]  # fmt: skip


def test_rule_06_mixed_dtypes_are_an_error_that_names_both(device):
    a, b = leaf(device, np.ones((2, 2))), leaf(device, np.ones((2, 2)), "float64")
    pairs = (a, b), (b, a), (a, b.data), (a.data, b)
    for function, pair in itertools.product(BINARY, pairs):
        with pytest.raises(TypeError, match=r"dtypes.*float(32|64) .*float(32|64) ") as caught:
            function(*pair)
        assert "float32" in str(caught.value) and "float64" in str(caught.value)


def test_rule_06_mixed_devices_are_an_error_that_names_both(device):
    a, b = leaf("cpu", np.ones((2, 2))), leaf(device, np.ones((2, 2)))
    for function, pair in itertools.product(BINARY, ((a, b), (b, a))):
        if device == "cpu":
            function(*pair)
            continue
        with pytest.raises(TypeError, match="device") as caught:
            function(*pair)
        assert "cpu" in str(caught.value) and "cuda:0" in str(caught.value)


def test_rule_06_a_memory_map_is_on_the_cpu(device, tmp_path):
    """np.load(..., mmap_mode="r") returns a subclass of ndarray, which is no other device."""
    np.save(tmp_path / "x.npy", draw((4, 8, 8, 1)))
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    model = small_mixer(device)
    same(model(mapped).data, to_numpy(model(np.array(mapped)).data))
    if device == "cpu":
        same((Tensor(mapped) + Tensor(np.ones(1, "float32"))).data, np.array(mapped) + 1)


@pytest.mark.parametrize("dtype", ["int64", "uint8", "bool", "complex64"])
def test_rule_06_only_floats_do_arithmetic(device, dtype):
    x, odd = leaf(device, np.ones((2, 2))), Tensor(put(device, np.ones((2, 2)), dtype))
    alone = {
        "Exp": ops.exp, "Sqrt": ops.sqrt, "GELU": F.gelu, "MatMul": lambda odd: odd @ odd,
        "Linear": lambda odd: F.linear(odd, odd), "Parameter": lambda odd: Parameter(odd.data),
        "Tensor": lambda odd: Tensor(odd.data, requires_grad=True),
    }  # fmt: skip
    calls = [(name, function, [odd]) for name, function in alone.items()]
    calls += [("", function, pair) for function in BINARY for pair in ((x, odd), (odd, x))]
    for name, function, inputs in calls:
        with pytest.raises(TypeError, match=rf"{name}(?=.*float).*{dtype} \(2, 2\)"):
            function(*inputs)
    for wrong in ("1", 1j):
        with pytest.raises(TypeError, match=r"number|Tensor"):
            x * wrong


@pytest.mark.parametrize("dtype", ["int64", "int32", "int16", "uint8", "bool"])
def test_rule_06_whole_numbers_alone_are_counted_with(device, dtype):
    """As NumPy does; what is divided, averaged or met by a float is float32."""
    a = put(device, np.array([[3, 1], [0, 2]]), dtype)
    x = Tensor(a)
    host = to_numpy(a)
    for y, wanted in (
        (x + x, host + host), (x * x, host * host), (x.sum(), host.sum()), (x.max(), host.max()),
        (x.sum(axis=0), host.sum(axis=0)), (x.min(axis=1), host.min(axis=1)), (x[0], host[0]),
        (x.T, host.T), (x.reshape(4), host.reshape(4)), (stack([x, x]), np.stack([host, host])),
        (maximum(x, x), host), (where(x == x, x, x), host), (abs(x), host),
        (x.argmax(axis=1), host.argmax(axis=1)), (x.any(axis=0), host.any(axis=0)),
        (x.all(), host.all()), (~x, ~host), (x & x, host), (x | x, host), (x ^ x, host ^ host),
    ):  # fmt: skip
        assert is_array(y.data) and y.dtype == wanted.dtype and not y.requires_grad
        np.testing.assert_array_equal(to_numpy(y.data), wanted)
    assert type(Parameter(host.astype("float32"), requires_grad=False).to(dtype)) is Tensor
    for y, wanted in (
        (x.mean(), host.mean()), (x.mean(axis=1), host.mean(axis=1)), (x / 2, host / 2),
        (x * 0.5, host * 0.5), (1.5 + x, host + 1.5), (x / (x + x + 1), host / (host + host + 1.0)),
    ):  # fmt: skip
        assert is_array(y.data) and y.dtype == "float32"
        np.testing.assert_allclose(to_numpy(y.data), wanted, rtol=1e-6)
    losses = leaf(device, [1.0, 2.0])
    mean = (losses * 2).sum() / x.sum()  # one whole number beside floats
    mean.backward()
    assert mean.dtype == "float32" and mean.item() == 6 / host.sum()
    if dtype == "bool":
        with pytest.raises(TypeError, match=r"Subtract of bool \(2, 2\)"):
            x - x


@each_half
def test_rule_06_two_byte_floats_never_meet_float32_by_accident(device, dtype):
    """Parameters say what they want, too."""
    x = leaf(device, np.ones((2, 2)))
    low = x.to(dtype)
    for function, pair in itertools.product(BINARY, ((x, low), (low, x))):
        both = rf"(?=.*{dtype} \(2, 2\))(?=.*float32 \(2, 2\)).*\.to\("
        with pytest.raises(TypeError, match=both):
            function(*pair)
    with pytest.raises(TypeError, match=rf"float32.*{dtype} \(2, 2\)"):
        Parameter(low.data)
    pairs = [function(low, 2 * low) for function in BINARY]
    for y in (*pairs, F.gelu(low), -low, low.exp(), low.max(), low.sum(), low.T, low.reshape(4)):
        assert y.dtype == dtype and y.device == x.device
        x.grad = None
        y.backward(backend.namespace(y.data).ones_like(y.data), retain_graph=True)
        assert x.grad.dtype == "float32" and (x.grad.any() or y is pairs[3])  # x / 2x is constant
    assert low.mean().dtype == "float32"


def test_rule_06_a_backward_in_float32_serves_two_bytes(device):
    """Every input's gradient, whether it stays float32 until its leaf or goes on in two bytes."""

    class Three(Function):
        any_dtype = True

        def forward(self, *arrays):
            return arrays[0] + arrays[1] + arrays[2]

        def backward(self, dy):
            return tuple(n * dy.astype("float32") for n in (1, 2, 3))

    leaves = [leaf(device, np.ones(2)) for _ in range(3)]
    Three.apply(*[x.to("float16") for x in leaves]).backward(put(device, np.ones(2), "float16"))
    for n, x in enumerate(leaves, 1):
        assert x.grad.dtype == "float32"
        same(x.grad, np.full(2, n))


@pytest.mark.parametrize("activations", DTYPES)
@pytest.mark.parametrize("parameters", DTYPES)
def test_rule_06_parameters_are_read_in_the_activations_dtype(device, parameters, activations):
    """And their gradients are of their own dtype: rule 10."""
    seen = []

    class Look(Function):
        def forward(self, x, w):
            seen.append((x.dtype, w.dtype))
            self.x = x
            return x * w

        def backward(self, dy):
            return None, dy * self.x

    w = Parameter(put(device, draw((4,)), parameters))
    for function in (Look.apply, lambda x, w: w * x):
        w.grad = None
        x = leaf(device, draw((4,)), activations)
        y = function(x, w)
        assert y.dtype == activations
        y.backward(put(device, np.ones(4), activations))
        assert w.grad.dtype == w.data.dtype == parameters
        close(w.grad, x.data, 1e-7, 0)
    assert seen == [(np.dtype(activations), np.dtype(activations))]
    layer, norm = (kind.to(device, parameters) for kind in (Linear(4, 2), LayerNorm(2)))
    for count in (1, 2):
        x = leaf(device, np.ones((3, 4)), activations)
        y = norm(layer(x))
        (y.sum() + layer(x).sum()).backward()
        assert y.dtype == x.grad.dtype == activations
        for p in (*layer.parameters(), *norm.parameters()):
            assert p.grad.dtype == p.buffer.gradients.dtype == np.dtype(parameters)
        close(layer.bias.grad, np.full(2, 3.0 * count), atol=1e-4)
    model = small_mixer(device, dtype=parameters)
    assert model(Tensor(put(device, draw((2, 8, 8, 1)), activations))).dtype == activations
    assert model(np.zeros((1, 8, 8, 1), "uint8")).dtype == parameters


# ---- 7: no_grad ---------------------------------------------------------------------------------


def test_rule_07_no_grad_as_context_and_decorator(device):
    x, nodes, once = leaf(device, [1.0]), [], no_grad()

    class Watch(Function):
        def forward(self, x):
            nodes.append(weakref.ref(self))
            assert self.needs == (False,)
            return x * 1

    @once
    def quiet(depth=0):
        """Its doc."""
        assert not is_grad_enabled()
        return quiet(depth - 1) if depth else Watch.apply(x)

    assert quiet.__name__ == "quiet" and quiet.__doc__ == "Its doc."
    for depth in (0, 1, 5):
        y = quiet(depth)
        assert not y.requires_grad and y.node is None and is_grad_enabled()
        assert nodes.pop()() is None  # nothing is kept
    with once:
        assert not (x * 2.0).requires_grad
        with once:  # one object, entered twice
            assert not is_grad_enabled()
        assert not is_grad_enabled()
        with enable_grad():
            assert (x * 2.0).requires_grad
            assert not quiet().requires_grad and is_grad_enabled()
        assert not is_grad_enabled()
    assert is_grad_enabled() and (x * 2.0).requires_grad
    with pytest.raises(ValueError, match="no_grad"):
        quiet().backward()
    with pytest.raises(ZeroDivisionError), no_grad(), enable_grad(), once:
        raise ZeroDivisionError
    with pytest.raises(KeyError):
        no_grad()({}.__getitem__)("planted")
    assert is_grad_enabled()


@pytest.mark.parametrize("mode, inside", [(no_grad, False), (enable_grad, True)])
def test_rule_07_generators_and_coroutines_keep_the_mode_while_they_run(mode, inside):
    closed = []

    @mode()
    def steps(n):
        """Its doc."""
        try:
            for i in range(n):
                try:
                    sent = yield i, is_grad_enabled()
                    assert is_grad_enabled() is inside and sent in (None, "sent")
                except KeyError:
                    assert is_grad_enabled() is inside
                    yield "caught"
        finally:
            closed.append(is_grad_enabled())
        return "done"

    @mode()
    async def waits():
        first = is_grad_enabled()
        await asyncio.sleep(0)
        return first, is_grad_enabled()

    async def beside():
        seen = []
        for _ in range(3):
            seen.append(is_grad_enabled())
            await asyncio.sleep(0)
        return seen

    async def several():
        return await asyncio.gather(waits(), beside(), waits())

    assert steps.__doc__ == "Its doc." and steps.__name__ == "steps"
    assert mode(lambda: is_grad_enabled())() is inside  # `@no_grad` without brackets
    for outside in (True, False):
        with set_grad_enabled(outside):
            for number, step in enumerate(steps(3)):
                assert step == (number, inside) and is_grad_enabled() is outside
            running = steps(3)
            next(running)
            assert running.send("sent") == (1, inside) and is_grad_enabled() is outside
            assert running.throw(KeyError()) == "caught" and is_grad_enabled() is outside
            running.close()
            with pytest.raises(StopIteration, match="done"):
                next(steps(0))
            mine = (inside, inside)
            assert asyncio.run(several()) == [mine, [outside] * 3, mine]
            assert is_grad_enabled() is outside
    assert closed and set(closed) == {inside}

    async def numbers():
        yield 1

    with pytest.raises(TypeError, match=f"{mode.__name__}.* asynchronous generator"):
        mode()(numbers)


def test_rule_07_threads_do_not_see_each_other(device):
    x = leaf(device, [1.0])
    barrier = threading.Barrier(2, timeout=20)
    shared = no_grad()

    def look(wanted):
        barrier.wait()
        assert is_grad_enabled() is wanted and (x * 2.0).requires_grad is wanted
        barrier.wait()

    def quiet():
        no_grad()(lambda: [look(False) for _ in range(50)])()
        for _ in range(20):
            assert is_grad_enabled()
            with shared:
                look(False)
        assert is_grad_enabled()

    def loud():
        for _ in range(50):
            look(True)
        for _ in range(20):
            with enable_grad():
                look(True)
            assert is_grad_enabled()

    with no_grad(), ThreadPoolExecutor(2) as pool:  # nor does a new thread inherit the mode
        for running in [pool.submit(quiet), pool.submit(loud)]:
            running.result(30)
        assert not is_grad_enabled()
    assert is_grad_enabled()


def test_rule_07_one_decorated_function_in_two_threads(device):
    """The first to return must not switch recording on for the second, nor leave it off."""
    x = leaf(device, [1.0])
    inside, leave = threading.Barrier(2, timeout=20), [threading.Event(), threading.Event()]

    @no_grad()
    def quiet(number):
        inside.wait()
        leave[number].wait(20)
        return (x * 2.0).requires_grad

    def run(number):
        with enable_grad() if number else no_grad():
            return quiet(number), is_grad_enabled()

    with ThreadPoolExecutor(2) as pool:
        running, results = [pool.submit(run, number) for number in (0, 1)], []
        for number in (0, 1):
            leave[number].set()
            results.append(running[number].result(20))
    assert results == [(False, False), (False, True)]


# ---- 10: gradients ------------------------------------------------------------------------------


def test_rule_10_the_first_gradient_overwrites_later_ones_add(device):
    p = Parameter(put(device, [1.0, 2.0]))
    (p * 3.0).sum().backward()
    same(p.grad, [3, 3])
    (p * 4.0).sum().backward()
    same(p.grad, [7, 7])
    p.grad = None
    assert p.grad is None
    p.buffer.gradients[...] = np.nan  # what was there is not even read
    (p * 5.0).sum().backward()
    same(p.grad, [5, 5])
    SGD([p], lr=1.0).zero_grad()
    (p * 6.0 + p).sum().backward()
    same(p.grad, [7, 7])
    window, p.grad = p.grad, None
    (p * 2 + p * 3).backward(window)  # which is overwritten by it
    same(p.grad, [35, 35])


def test_rule_10_arrays_that_the_user_holds_stay(device):
    x, y = leaf(device, [1.0, 2.0]), Tensor(put(device, [3.0, 3.0]))
    h = x * y
    h.sum().backward()
    held = x.grad
    (x * 4.0).sum().backward()
    same(held, [3, 3])
    same(x.grad, [7, 7])
    assert y.grad is None and h.grad is None  # only leaves that ask get one
    seed = put(device, [1.0, 1.0])
    x.grad = None
    x.backward(seed)
    seed[...] = 9
    same(x.grad, [1, 1])
