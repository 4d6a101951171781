"""The rules of the engine about arrays and their homes, 8, 9 and 11 to 14: where an array lies, the
flat buffer, products, random numbers, the control array, the same bits."""

import ast
import itertools
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from help import DTYPES, close, draw, each_dtype, leaf, put, redraw, same, small_mixer
from strategies import each_half, reference_functions, same_memory

import minimixer
from minimixer import SGD, AdamW, Dropout, Function, Linear, Module, Parameter, Tensor, backend
from minimixer import functional as F
from minimixer.backend import Purpose, is_array, random_bits, to_device, to_numpy, uniform
from minimixer.engine import products
from minimixer.engine.products import matmul
from minimixer.nn import StochasticDepth
from minimixer.nn.loss_scale import FINITE
from minimixer.nn.parameters import ParameterBuffer
from minimixer.training.settings import CLIP, LR_FACTOR, STEP

PACKAGE = Path(minimixer.__file__).parent
BOOK = "engine", "nn", "model", "training"
CORE = sorted(path for room in BOOK for path in PACKAGE.glob(f"{room}/*.py"))


# ---- 8: the namespace comes from the array ------------------------------------------------------


def test_rule_08_namespace_comes_from_the_array(device):
    array, where = put(device, [1.0, 2.0]), backend.check_device(device)
    assert backend.namespace(array).__name__ == ("numpy" if device == "cpu" else "cupy")
    assert backend.device_of(array) == where and to_device(array, device) is array
    assert isinstance(to_numpy(array), np.ndarray)
    # CPU and `device` side by side, alternating, in one process
    x, y = leaf("cpu", draw((3, 4))), leaf(device, draw((3, 4)))
    for _ in range(3):
        x2, y2 = F.gelu(x * 2.0).sum(), F.gelu(y * 2.0).sum()
        assert x2.device == "cpu" and y2.device == where
        x2.backward()
        y2.backward()
    np.testing.assert_allclose(to_numpy(y.grad), x.grad, rtol=1e-5)
    # and through `to`, a gradient travels back
    y.grad = None
    (y.to("cpu") * x).sum().backward()
    assert backend.device_of(y.grad) == where
    same(y.grad, x.data)


def python(code, *arguments):
    run = subprocess.run([sys.executable, "-W", "error", "-c", code, *arguments], encoding="utf-8",
                         capture_output=True, cwd=PACKAGE.parent)  # fmt: skip
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


def test_rule_08_cupy_is_imported_only_when_asked_for(device):
    code = """
import sys
import minimixer, numpy as np
from minimixer import functional as F
model = minimixer.Mixer(8, 4, 1, 8, 6, 10, in_channels=1, num_classes=3)
optimizer = minimixer.AdamW(model.parameters())
F.cross_entropy(model(np.ones((2, 8, 8, 1), "float32")), [0, 1]).backward()
optimizer.step()
model.to("cpu").state_dict()
minimixer.Tensor([1.0]).to("cpu", "float64")
assert "cupy" not in sys.modules
if sys.argv[1] == "cuda":
    model.to("cuda")
    assert "cupy" in sys.modules
print("done")
"""
    assert python(code, device) == "done"


def nodes(file):
    return list(ast.walk(ast.parse(file.read_text(encoding="utf-8"))))


def test_rule_08_no_environment_variable_is_read():
    assert len(CORE) > 10
    for file in CORE:
        for node in nodes(file):
            name = getattr(node, "attr", getattr(node, "id", getattr(node, "name", "")))
            assert name not in ("environ", "getenv", "getenvb", "environb"), file.name


# ---- 9: one flat buffer -------------------------------------------------------------------------


def check_buffer(model):
    """Windows of one buffer, aligned, apart from one another, matrices first."""
    parameters = model.parameters()
    buffer = parameters[0].buffer
    between, taken = to_numpy(buffer.values).copy(), 0
    for p in sorted(parameters, key=lambda p: p.start):
        assert p.buffer is buffer and p.start % 64 == 0 and p.start >= taken
        taken = p.start + p.size
        assert same_memory(p.data, buffer.values) and p.data.shape == p.shape
        same(p.data.reshape(-1), to_numpy(buffer.values[p.start : taken]))
        between[p.start : taken] = 0
        if p.grad is not None:
            assert same_memory(p.grad, buffer.gradients) and p.grad.dtype == buffer.dtype
            same(p.grad.reshape(-1), to_numpy(buffer.gradients[p.start : taken]))
    assert buffer.size == len(buffer.values) and taken <= buffer.size and not between.any()
    matrices, vectors = ([p.start for p in parameters if (p.ndim > 1) == m] for m in (True, False))
    assert max(matrices) < min(vectors)
    return buffer


def test_rule_09_one_flat_buffer(device):
    model = redraw(small_mixer(device))
    buffer = check_buffer(model)
    loss = F.cross_entropy(model(draw((2, 8, 8, 1))), [0, 1])
    assert buffer.gradients is None  # forward makes none
    assert all(p.grad is None for p in model.parameters())
    loss.backward()
    assert all(p.grad is not None for p in model.parameters())
    check_buffer(model)
    optimizer, gradients = AdamW(model.parameters()), buffer.gradients
    optimizer.step()
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())
    F.cross_entropy(model(draw((2, 8, 8, 1))), [0, 1]).backward()
    assert buffer.gradients is gradients and check_buffer(model) is buffer


def test_rule_09_assigning_copies_into_the_view(device):
    model = small_mixer(device)
    p, buffer = model.stem.weight, model.stem.weight.buffer
    view, values = p.data, buffer.values
    new = draw(p.shape, 3)
    for value in (new, Tensor(new), new.astype("float64"), to_device(new, device), new.tolist(),
                  new[::-1].copy()[::-1]):  # fmt: skip
        p.data = np.zeros(p.shape)
        p.data = value
        same(p.data, new)
        assert p.data is view and p.buffer is buffer and buffer.values is values
        assert not is_array(value) or not same_memory(to_device(value, device), view)
    new[...] = 0
    assert to_numpy(p.data).any()
    p.data += 1.0
    assert p.data is view
    before = to_numpy(p.data).copy()
    for wrong in (new.T[:-1], new.reshape(-1), 0.0, new[None]):
        with pytest.raises(ValueError, match=r"shape"):
            p.data = wrong
        same(p.data, before)


def test_rule_09_to_writes_through(device):
    """Values, gradients and what an optimizer holds; to float64 and back, no bit is lost."""
    model = redraw(small_mixer())
    optimizer = AdamW(model.parameters(), lr=0.1)
    before = model.state_dict()
    buffer = model.parameters()[0].buffer
    F.cross_entropy(model(draw((2, 8, 8, 1))), [0, 1]).backward()
    gradients = {n: np.array(p.grad) for n, p in model.named_parameters()}
    for targets in ((device,), ("float64",), ("float32", device)):
        assert model.to(*targets) is model
        assert check_buffer(model) is buffer and buffer.device == backend.check_device(device)
        for name, p in model.named_parameters():
            assert p.device == buffer.device
            assert p.dtype == p.grad.dtype == ("float64" if "float64" in targets else "float32")
            same(p.data, before[name])
            same(p.grad, gradients[name])
    optimizer.step()
    for name, p in model.named_parameters():
        moved = np.abs(to_numpy(p.data) - before[name])
        assert (moved[np.abs(gradients[name]) > 1e-4] > 0.01).all()
    with pytest.raises(TypeError):
        model.to("int32")
    check_buffer(model)


def test_rule_09_gathering_keeps_values_and_gradients(device):
    first, second = Parameter(put(device, draw((3, 5)))), Parameter(put(device, draw((7,))))
    (first * 2.0).sum().backward()
    assert first.buffer is not second.buffer
    buffer = ParameterBuffer([second, first])
    assert first.start == 0 and second.start == 64 and buffer.size == 128
    same(first.data, draw((3, 5)))
    same(second.data, draw((7,)))
    same(first.grad, np.full((3, 5), 2))
    assert second.grad is None


# ---- 11: one matrix product ---------------------------------------------------------------------


def test_rule_11_no_other_matrix_product_in_the_source():
    products = ("matmul", "dot", "vdot", "tensordot", "inner", "einsum", "vecdot", "matvec",
                "vecmat", "gemm", "linalg", "kron", "outer", "convolve", "correlate")  # fmt: skip
    found = set()
    for file in CORE:
        ours = {
            alias.asname or alias.name
            for node in nodes(file)
            if isinstance(node, ast.ImportFrom) and node.module in ("products", "engine.products")
            for alias in node.names
        }
        ours |= set(products) if file.name == "products.py" else set()
        for node in nodes(file):
            called = getattr(getattr(node, "func", None), "id", "")
            if isinstance(getattr(node, "op", None), ast.MatMult):
                found.add((file.name, "@"))
            elif isinstance(node, ast.Attribute) and node.attr in products:
                found.add((file.name, node.attr))
            elif called in products and called not in ours:
                found.add((file.name, called))
    assert found <= {
        ("products.py", "matmul"),
        ("gradcheck.py", "@"),  # the hint: two short lists of Python numbers
        ("datasets.py", "@"),  # an integer sum, exact
        ("tensor.py", "matmul"),  # ops.matmul, which calls it
    }


def test_rule_11_every_product_goes_through_backend_matmul(device, monkeypatch, reference):
    """Counted in a training step: forward and backward of every layer, the norm of clipping."""
    model = redraw(small_mixer(device))
    calls, original = [], products.matmul
    for name, module in list(sys.modules.items()):
        for attribute, value in list(vars(module).items()) if name.startswith("minimixer") else ():
            if value is original:
                counted = lambda *a, **k: calls.append(a) or original(*a, **k)  # noqa: E731
                monkeypatch.setattr(module, attribute, counted)
    scores = model(draw((2, 8, 8, 1)))
    assert len(calls) == 1 + 2 * 2 * 2 + 1  # stem, two blocks of two MLPs of two, head
    loss = F.cross_entropy(scores, [0, 1])
    calls.clear()
    loss.backward()
    found = [a for a, b in calls if 1 not in a.shape and 1 not in b.shape]
    assert len(found) == 1 + 2 * 2 * 4 + 2  # images need no gradient: the stem has one less
    calls.clear()
    with reference_functions():  # a kernel adds squares itself
        AdamW(model.parameters()).clip_grad_norm(1.0)
    assert calls


@pytest.mark.parametrize("dtype", [*DTYPES, *each_half.args[1]])
@pytest.mark.parametrize("shapes", [
    ((3, 4), (4, 5)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (6, 4, 5)), ((1, 4), (4, 1)),
    ((0, 4), (4, 5)), ((3, 0), (0, 5)), ((2, 3, 4), (2, 4, 5)),
], ids=str)  # fmt: skip
def test_rule_11_matmul(device, dtype, shapes):
    """Of small whole numbers, exact in each dtype; test_kernels.py has the errors of others."""
    dtype = backend.as_dtype(dtype)
    a, b = (np.random.default_rng(i).integers(-4, 5, s) for i, s in enumerate(shapes))
    expected = np.matmul(a, b)
    a, b = put(device, a, dtype), put(device, b, dtype)
    result = matmul(a, b)
    assert result.dtype == dtype
    same(result, expected)
    out = put(device, np.full(expected.shape, np.nan), dtype)
    assert matmul(a, b, out=out) is out
    same(out, expected)
    assert matmul(a, b, out, accumulate=True) is out
    same(out, 2 * expected)
    for out_dtype, precision in itertools.product({dtype, *DTYPES}, [None, "tf32"]):
        if backend.is_half(dtype) and (precision or out_dtype == "float64"):
            continue
        other = put(device, np.ones(expected.shape), out_dtype)
        assert matmul(a, b, other, accumulate=True, precision=precision) is other
        same(other, expected + 1)
        assert matmul(a, b, other, precision=precision) is other and other.dtype == out_dtype
        same(other, expected)
        assert matmul(a, b, precision=precision).dtype == dtype
    window = put(device, np.zeros((*expected.shape, 2)), dtype)[..., 1]  # not contiguous
    matmul(a, b, window)
    matmul(a, b, out=window, accumulate=True)
    same(window, 2 * expected)
    across = matmul(b.swapaxes(-1, -2), a.swapaxes(-1, -2))
    same(across.swapaxes(-1, -2), expected)


@each_dtype
def test_rule_11_tf32_is_for_float32_on_gpus(device, dtype):
    """Elsewhere it has no effect; test_kernels.py has the errors of products in it."""
    a, b = (put(device, draw(s), dtype) for s in ((20, 1000), (1000, 20)))
    equal = (to_numpy(matmul(a, b, precision="tf32")) == to_numpy(matmul(a, b))).all()
    assert equal or (device != "cpu" and dtype == "float32")


def test_rule_11_matmul_errors(device):
    a, b = put(device, draw((1, 3))), put(device, draw((3, 1)))
    with pytest.raises(ValueError, match="out"):
        matmul(a, b, accumulate=True)
    with pytest.raises(ValueError):
        matmul(a, a)
    with pytest.raises(ValueError):
        matmul(a, b, out=put(device, np.zeros((2, 2))))


# ---- 12: random numbers -------------------------------------------------------------------------

COUNTERS = ("seed", "purpose", "step", "layer", "example", "element")


def test_rule_12_known_bits(device):
    """Pinned: these must never change, or old seeds would mean something else."""
    elements = to_device(np.arange(3, dtype=np.uint64), device)
    bits = random_bits(7, Purpose.DROPOUT, 3, 0, 0, elements)
    assert bits.dtype == np.uint64 and backend.device_of(bits) == backend.check_device(device)
    assert [hex(int(b)) for b in bits][:2] == ["0x1673302a9d842364", "0x3c16016e89a9b92"]
    assert [int(p) for p in Purpose][:5] == [1, 2, 3, 4, 5]

    def reference(*counters):
        bits = 0
        for counter in counters:
            bits = ((bits ^ counter) + 0x9E3779B97F4A7C15) % 2**64
            bits = (bits ^ (bits >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
            bits = (bits ^ (bits >> 27)) * 0x94D049BB133111EB % 2**64
            bits ^= bits >> 31
        return bits

    edges = [[edge, 1, edge, 0, 0, edge] for edge in (0, 1, 2**31, 2**32, 2**63, 2**64 - 1)]
    drawn = np.random.default_rng(0).integers(0, 2**64, (20, 6), dtype=np.uint64).tolist()
    for plain in edges + drawn:
        assert int(random_bits(*plain)) == reference(*plain)
        *_, third, _, fifth, last = to_device(np.array(plain, np.uint64)[:, None], device)
        assert int(random_bits(*plain[:5], last)[0]) == reference(*plain)
        mixed = (*plain[:2], third, plain[3], fifth[:, None], last[None, :])
        assert int(random_bits(*mixed)[0, 0]) == reference(*plain)


@pytest.mark.parametrize("which", range(6), ids=COUNTERS)
def test_rule_12_every_counter_counts_and_every_bit_flips_half(device, which):
    count = 512
    random = np.random.default_rng(which)
    base = [random.integers(0, 1000, count).astype(np.uint64) for _ in COUNTERS]
    base[1] = np.uint64(4)

    def bits_of(counters):
        return to_numpy(
            random_bits(*(to_device(c, device) if is_array(c) else int(c) for c in counters))
        )

    before = bits_of(base)
    for bit in [0, 1, 5, 31, 32, 63]:
        changed = list(base)
        changed[which] = base[which] ^ np.uint64(1 << bit)
        flipped = (before ^ bits_of(changed)).view(np.uint8).reshape(count, 8)
        flipped = np.unpackbits(flipped, axis=1)  # (count, 64)
        assert abs(flipped.mean() - 0.5) < 0.015
        assert (abs(flipped.mean(axis=0) - 0.5) < 0.12).all()
    for other in set(range(6)) - {which, 1} if which != 1 else ():
        swapped = list(base)  # exchanging two counters gives other bits
        swapped[which], swapped[other] = base[other], base[which]
        assert (bits_of(swapped) == before).mean() < 0.02


@each_dtype
def test_rule_12_uniform(device, dtype):
    bits = random_bits(3, 1, 0, 0, 0, to_device(np.arange(100_000, dtype=np.uint64), device))
    u = uniform(bits, dtype)
    assert u.dtype == dtype
    u = to_numpy(u).astype("float64")
    assert u.min() >= 0 and u.max() < 1
    assert abs(u.mean() - 1 / 2) < 0.004 and abs(u.var() - 1 / 12) < 0.002
    assert abs(np.corrcoef(u[1:], u[:-1])[0, 1]) < 0.015
    counts = np.histogram(u, 64, (0, 1))[0]
    expected = 100_000 / 64
    assert ((counts - expected) ** 2 / expected).sum() < 120  # chi squared, 63 degrees of freedom
    extremes = to_device(np.array([0, 2**64 - 1], dtype=np.uint64), device)
    low, high = to_numpy(uniform(extremes, dtype)).tolist()
    assert low == 0 and 1 - 1e-7 < high < 1


class Dropping(Module):
    def __init__(self, layer, size=6):
        self.first = Linear(size, size)
        self.drop = layer
        self.second = type(layer)(layer.p)
        self.initialize(seed=11)

    def forward(self, x):
        return self.drop(x)


@pytest.mark.parametrize("cuts", [[8], [3, 5], [1] * 8, [4, 4]], ids=str)
@pytest.mark.parametrize("layer", [Dropout, StochasticDepth])
def test_rule_12_masks_do_not_depend_on_how_a_batch_is_cut(device, layer, cuts):
    axis, shape = (0, (8, 6)) if layer is Dropout else (1, (2, 8, 6))

    def masks(where, step, cuts):
        model, parts, start = Dropping(layer(0.5)).to(where), [], 0
        for cut in cuts:
            model.parameters()[0].buffer.random.set(step, first_example=start)
            ones = put(where, np.ones((*shape[:axis], cut, *shape[axis + 1 :])))
            parts.append(to_numpy(model(Tensor(ones)).data))
            start += cut
        return np.concatenate(parts, axis=axis)

    whole = [masks("cpu", step, [8]) for step in (0, 5)]
    assert (whole[0] != whole[1]).any()
    for step, expected in zip((0, 5), whole, strict=True):
        same(masks(device, step, cuts), expected)  # the same bits everywhere


@pytest.mark.parametrize("ask", [
    lambda m: m.left.parameters(), lambda m: m.parameters(), lambda m: m.state_dict(),
    lambda m: m.right.num_parameters(), lambda m: m.eval().train(),
    lambda m: SGD([{"params": m.left.parameters()}, {"params": m.right.parameters()}], lr=1.0),
    lambda m: SGD(m.right.parameters(), lr=1.0),
], ids=["part", "all", "state", "count", "mode", "groups", "optimizer"])  # fmt: skip
@pytest.mark.parametrize("first", [lambda: Dropping(Dropout(0.5)), lambda: Dropout(0.5)],
                         ids=["module", "layer"])  # fmt: skip
def test_rule_12_masks_do_not_depend_on_what_was_asked_before(device, first, ask):
    """No hidden state: looking at a part of a model must not renumber its random layers; also
    where the part has all the parameters there are."""

    class Two(Module):
        def __init__(self):
            self.left, self.right = first(), Dropping(Dropout(0.5))
            self.initialize(seed=1)

        def forward(self, x):
            return minimixer.concatenate([self.left(x), self.right(x)])

    model = Two().to(device)
    ones = Tensor(put(device, np.ones((8, 6))))
    before = to_numpy(model(ones).data)
    assert (before[:8] != before[8:]).any()
    ask(model)
    same(model(ones).data, before)


# ---- 13: the control array ----------------------------------------------------------------------


def sgd(parameters):
    return SGD(parameters, lr=0.25)


def adam(parameters):
    return AdamW(parameters, lr=0.25, weight_decay=0, betas=(0.9, 0.999))


@pytest.mark.parametrize("make, edit, moved, after", [
    (sgd, lambda c: None, 0.25, (LR_FACTOR, 1)),
    *[(make, lambda c, f=f: c.__setitem__(LR_FACTOR, f), 0.25 * f, (LR_FACTOR, f))
      for make in (sgd, adam) for f in (0.0, 0.5, 2.0)],
    (sgd, lambda c: c.__setitem__(CLIP, 0.5), 0.125, (CLIP, 1)),  # used up
    (adam, lambda c: c.__setitem__(STEP, 9),
     0.25 * (0.1 / (1 - 0.9**10)) / (0.001 / (1 - 0.999**10)) ** 0.5, (STEP, 10)),
])  # fmt: skip
def test_rule_13_the_update_reads_the_control_array(device, make, edit, moved, after):
    """How a parameter of ones moves under a gradient of ones after `edit(control)`."""
    p = Parameter(put(device, np.ones(4)))
    optimizer = make([p])
    (p * 1.0).sum().backward()
    edit(optimizer.control)
    optimizer.step()
    assert backend.device_of(optimizer.control) == p.device == p.buffer.device
    assert optimizer.control.shape == (4,) and float(optimizer.control[FINITE]) == 1
    assert float(optimizer.control[STEP]) == (10 if after[0] == STEP else 1)
    assert float(optimizer.control[after[0]]) == after[1]
    close(1 - to_numpy(p.data).astype("float64"), np.full(4, moved), 1e-5 * (make is adam), 0)


def test_rule_13_clipping_and_schedules_write_there(device):
    p = Parameter(put(device, np.ones(4)))
    optimizer = SGD([p], lr=1.0)
    (p * 2.0).sum().backward()
    assert backend.device_of(optimizer.clip_grad_norm(1.0)) == p.device
    close(optimizer.control[CLIP], 0.25)
    same(p.grad, [2] * 4)  # the gradients themselves stay
    optimizer.lr_factor = 0.5
    assert float(optimizer.control[LR_FACTOR]) == 0.5 == optimizer.lr_factor


# ---- 14: the same bits --------------------------------------------------------------------------

TRAINING = """
import hashlib, sys
import numpy as np
from minimixer import AdamW, Mixer, backend, functional as F, schedule

def train(device, seed=5):
    model = Mixer(8, 2, 2, 24, 20, 40, in_channels=1, num_classes=4, stochastic_depth=0.4,
                  seed=seed).to(device)
    optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    random = np.random.default_rng(0)
    images = random.standard_normal((64, 8, 8, 1)).astype("float32")
    labels = random.integers(0, 4, 64)
    losses = []
    for step in range(6):
        optimizer.lr_factor = schedule(step, 6, 2)
        part = slice(16 * (step % 4), 16 * (step % 4) + 16)
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images[part]), labels[part], 0.1)
        embedded = model.stem.weight[labels[part]]  # repeated positions
        (loss + (embedded * embedded).sum() * 0.1).backward()
        optimizer.clip_grad_norm(0.5)
        optimizer.step()
        losses.append(loss.data)
    buffer = model.parameters()[0].buffer
    found = [backend.to_numpy(a).tobytes() for a in (*losses, buffer.values, buffer.gradients)]
    return hashlib.sha256(b"".join(found)).hexdigest()
"""


def test_rule_14_the_same_run_gives_the_same_bits(device):
    scope = {}
    exec(TRAINING, scope)
    first = scope["train"](device)
    assert scope["train"](device) == first
    assert scope["train"](device, seed=6) != first
    code = TRAINING + "\nprint(train(sys.argv[1]))"
    assert [python(code, device) for _ in range(2)] == [first, first]


def test_rule_14_add_at_is_a_loop_in_order(device):
    random = np.random.default_rng(4)
    for size, count in ((7, 200), (1, 50), (100, 20), (5, 0)):
        positions = random.integers(0, size, count)
        values = random.standard_normal(count) * 10.0 ** random.integers(-4, 5, count)
        expected = draw((size,), 1)
        for position, value in zip(positions, values.astype("float32"), strict=True):
            expected[position] += value
        for _ in range(3):
            target = put(device, draw((size,), 1))
            backend.add_at(target, to_device(positions, device), put(device, values))
            same(target, expected)


def test_rule_14_gradients_are_added_in_an_order_that_the_graph_sets(device):
    """Not in that of addresses or hashes, which change from run to run: nodes get other places
    in memory each time, twelve of them are ready to fire at once, and all reach one leaf."""
    random = np.random.default_rng(0)
    bits, orders = set(), set()
    for _ in range(6):
        nodes = [Function() for _ in range(300)]
        for place in random.permutation(300):
            nodes[place] = None  # the next nodes are made where these were, in this order
        x = leaf(device, draw((64,), 1))
        parts = [(x * float(i + 1)).tanh() * (0.1 * i) for i in range(12)]
        orders.add(tuple(np.argsort([id(part.node) for part in parts])))
        minimixer.stack(parts).sum().backward()
        bits.add(to_numpy(x.grad).tobytes())
    assert len(bits) == 1 and len(orders) > 1
