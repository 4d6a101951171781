"""The CPU kernels, beyond test_kernels.py: many parts and blocks, threads, memory used again."""

import contextlib
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import forked, needs_fork
from strategies import reference_functions
from test_kernels import UNIT, check_layer_norm, check_mlp, laid_out, numbers
from test_oracles import SMALL

from minimixer import SGD, AdamW, Function, Mixer, Parameter, Tensor, no_grad
from minimixer import functional as F
from minimixer.engine import products
from minimixer.kernels import fused
from minimixer.kernels.cpu import (
    blocks,
    reuse,
    threads,
)
from minimixer.kernels.cpu import (
    layer_norm as cpu_layer_norm,
)
from minimixer.kernels.cpu import (
    mlp as cpu,
)
from minimixer.kernels.cpu import (
    training as cpu_training,
)
from minimixer.kernels.cpu.blocks import parts, staggered
from minimixer.kernels.cpu.threads import aside, blas_on_one_thread, join, run, use_threads


@pytest.fixture
def small_parts(monkeypatch):
    """Cuts so fine that small arrays have many parts and blocks."""
    monkeypatch.setattr(cpu, "ROWS", 7)
    monkeypatch.setattr(cpu, "COLUMNS", (5, 1))
    monkeypatch.setattr(cpu, "PRODUCT", 1 << 5)
    monkeypatch.setattr(cpu, "TINY", 1)
    for module in (cpu, cpu_layer_norm, cpu_training):
        monkeypatch.setattr(module, "BLOCK", 48)
    for module in (cpu, cpu_layer_norm):
        monkeypatch.setattr(module, "SMALL", 1)


@pytest.fixture(params=[1, 2, 3])
def thread_count(request):
    use_threads(request.param)
    yield request.param
    use_threads(None)


def blas_threads() -> int:
    return threads._blas()[0]()


needs_blas = pytest.mark.skipif(threads._blas() is None, reason="a BLAS that can't be told")


@pytest.fixture(autouse=True)
def blas_is_left_as_it_was():
    before = None if threads._blas() is None else blas_threads()
    yield
    assert threads._aside.waiting == [] and blas_on_one_thread.entered == 0
    assert before is None or blas_threads() == before


def training_step(seed: int = 0, dtype: str = "float32", steps: int = 2) -> bytes:
    """The bits of all weights after some steps, with a seed for weights and data."""
    rng = np.random.default_rng(seed)
    model = Mixer(**SMALL, dtype=dtype)
    for p in model.parameters():
        p.data = 0.3 * rng.standard_normal(p.shape)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    height, width = model.height, model.width
    images = rng.standard_normal((6, height, width, model.in_channels)).astype(dtype)
    labels = rng.integers(0, model.num_classes, 6)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(loss.item())
    return model.buffer.values.tobytes()


# ---- cutting ------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_parts_cover_everything_once(length, size):
    for cut in (parts, staggered):
        pieces = cut(length, size)
        assert [i for p in pieces for i in range(p.start, p.stop)] == list(range(length))
        sizes = [p.stop - p.start for p in pieces]
        assert all(sizes) and max(sizes) <= max(2 * size, 1)
    sizes = [p.stop - p.start for p in parts(length, size)]
    assert max(sizes) - min(sizes) <= 1


# ---- results ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(
    "axis, shape, hidden", [(-1, (3, 17, 6), 10), (-1, (40, 1), 3), (0, (6, 3, 17), 10),
                            (0, (5, 61), 1), (-1, (1, 9), 100), (0, (9, 1), 100)],
)  # fmt: skip
def test_mlp_in_many_parts(small_parts, thread_count, dtype, approximate, axis, shape, hidden):
    check_mlp("cpu", dtype, axis, shape, hidden, approximate)


@pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "shifted"])
@pytest.mark.parametrize("axis", [0, -1])
def test_mlp_of_any_layout_in_many_parts(small_parts, axis, layout):
    check_mlp("cpu", "float32", axis, (11, 3, 8), 7, "tanh", layout)


@pytest.mark.parametrize("form", ["y column", "y row", "y", "column", "row", ""])
@pytest.mark.parametrize("shape", [(5, 7, 6), (61, 2), (3, 100), (2, 3, 1)])
def test_layer_norm_in_many_blocks(small_parts, shape, form):
    check_layer_norm("cpu", "float32", shape, form)
    check_layer_norm("cpu", "float64", shape, form, "transposed" if len(shape) > 1 else None)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize("needs", list(itertools.product([False, True], repeat=4)))
def test_mlp_gives_the_gradients_that_are_asked_for(small_parts, axis, needs):
    rng = np.random.default_rng(1)
    shape, hidden = (6, 4, 6), 5
    w2 = (6, hidden) if axis == 0 else (hidden, 6)
    values = [rng.standard_normal(s) for s in (shape, (6, hidden), (hidden,), w2)]
    found = []
    for chosen in (needs, (True,) * 4):
        inputs = [Parameter(v, requires_grad=n) for v, n in zip(values, chosen, strict=True)]
        y = fused.mlp(*inputs, axis=axis)
        if y.requires_grad:
            y.backward(np.ones(shape))
        found.append([p.grad for p in inputs])
    for some, full, need in zip(*found, needs, strict=True):
        assert (some is None) == (not need)
        if need:
            np.testing.assert_array_equal(some, full)


@pytest.mark.parametrize("axis", [0, -1])
def test_gradients_accumulate(small_parts, axis):
    """The second time there is something to add to, and nothing can go straight to its place."""
    rng = np.random.default_rng(2)
    values = [rng.standard_normal(s) for s in ((6, 9, 6), (6, 5), (5,))]
    values.append(rng.standard_normal((6, 5) if axis == 0 else (5, 6)))
    inputs = [Parameter(v) for v in values]
    for _ in range(2):
        fused.mlp(*inputs, axis=axis).backward(np.ones((6, 9, 6)))
    once = [Parameter(v) for v in values]
    fused.mlp(*once, axis=axis).backward(np.ones((6, 9, 6)))
    for twice, single in zip(inputs, once, strict=True):
        np.testing.assert_allclose(twice.grad, 2 * single.grad, rtol=1e-12)


def test_arrays_may_be_read_only(small_parts):
    rng = np.random.default_rng(4)
    values = [rng.standard_normal(s) for s in ((6, 9, 6), (6, 5), (5,), (5, 6), (6,), (6,))]
    for value in values:
        value.flags.writeable = False
    x, w1, b1, w2, gamma, beta = (Tensor(v, requires_grad=True) for v in values)
    s, h = fused.add_layer_norm(x, x, beta, gamma, beta)
    y = (
        fused.mlp(h, w1, b1, w2)
        + F.gelu(s, "tanh")
        + fused.mlp(x, w1, b1, Tensor(values[1]), axis=0)
    )
    y.backward(np.broadcast_to(np.float64(1), y.shape))
    for v in (x, w1, b1, w2, gamma, beta):
        assert v.grad.shape == v.shape and np.isfinite(v.grad).all()


def test_a_planted_mistake_is_noticed(small_parts, monkeypatch):
    def forgets_the_last_part(product, left, right, pieces, out, hidden):
        original(product, left[:-1], right, pieces[:-1], out, hidden)

    original = cpu._sum_products
    monkeypatch.setattr(cpu, "_sum_products", forgets_the_last_part)
    with pytest.raises(AssertionError, match=r"w[12]: off by"):
        check_mlp("cpu", "float64", 0, (6, 3, 17), 10, "tanh")
    monkeypatch.setattr(cpu, "_sum_products", original)
    plain = cpu._gelu_block

    def slope_of_another_gelu(u, g, slope, approximate, scratch):
        plain(u, g, slope, approximate, scratch)
        if slope is not None:
            slope *= 1 + 1e-6

    monkeypatch.setattr(cpu, "_gelu_block", slope_of_another_gelu)
    with pytest.raises(AssertionError, match="off by"):
        check_mlp("cpu", "float64", -1, (3, 17, 6), 10, "tanh")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("value", [1e15, -1e15, 1e19, -1e25, 1e38, -3e38, np.inf, -np.inf, np.nan])
def test_gelu_and_mlp_of_extreme_numbers(small_parts, dtype, value):
    """As the plain code has them: 0 or x, slopes 0 or 1; a NaN stays in its row."""
    x = np.linspace(-3, 3, 40, dtype=dtype).reshape(8, 5)
    x[3, 2] = value
    found = []
    for context in (contextlib.nullcontext(), reference_functions()):
        with context, np.errstate(all="ignore"):
            leaf = Tensor(x, requires_grad=True)
            y = F.gelu(leaf, "tanh")
            y.backward(np.ones_like(x))
            w = np.eye(5, dtype=dtype)
            z = fused.mlp(x, Tensor(w), Tensor(np.zeros(5, dtype)), Tensor(w))
            found.append((y.data, leaf.grad, np.delete(z.data, 3, axis=0)))
    for fast, plain in zip(*found, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("size", [1, 63, 48, 100_003])
def test_sum_squares(small_parts, dtype, size):
    values = numbers(np.random.default_rng(8), size, dtype)
    for layout in (None, "shifted"):
        found = cpu_training._sum_squares(laid_out(values.astype(dtype), layout))
        bound = (7 + min(size, 48)) * UNIT[dtype]
        assert abs(found / (values**2).sum() - 1) <= bound


@settings(max_examples=150)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 200), st.integers(0, 7))
def test_products_in_parts(rows, columns, inner, seed):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cpu, "PRODUCT", 1 << 5)
        rng = np.random.default_rng(seed)
        a, b = rng.standard_normal((rows, inner)), rng.standard_normal((inner, columns))
        a, b = (np.asfortranarray(x) if seed & i else x for x, i in ((a, 1), (b, 2)))
        out = np.full((rows, columns), np.nan, order="F" if seed & 4 else "C")
        assert cpu.multiply(a, b, out=out) is out
        np.testing.assert_allclose(out, np.einsum("ij,jk->ik", a, b), rtol=1e-10, atol=1e-10)
        np.testing.assert_array_equal(cpu.multiply(a, b), cpu.multiply(a, b))


def test_a_product_may_be_written_over_its_own_factor(small_parts):
    a = np.random.default_rng(0).standard_normal((30, 30))
    expected = a @ a
    assert products.matmul(a, a, out=a) is a
    np.testing.assert_allclose(a, expected, rtol=1e-10, atol=1e-10)


# ---- threads ------------------------------------------------------------------------------------


@needs_blas
def test_threads_change_no_bit(small_parts):
    bits = {}
    for count in (1, 2, 3, 8):
        use_threads(count)
        bits[count] = training_step()
    use_threads(None)
    assert len(set(bits.values())) == 1
    assert training_step(seed=1) != bits[1]


@needs_blas
def test_nor_do_those_of_blas(small_parts):
    get, set_count = threads._blas()
    before, bits = get(), set()
    try:
        for count in (1, 2):
            set_count(count)
            bits.add(training_step())
    finally:
        set_count(before)
    assert len(bits) == 1


@needs_blas
def test_threads_are_used(small_parts):
    """Or the tests of their bits would show nothing."""
    seen = set()
    barrier = threading.Barrier(2, timeout=10)

    def task(number):
        seen.add(threading.get_ident())
        barrier.wait()

    use_threads(2)
    try:
        run(task, 2)
    finally:
        use_threads(None)
    assert len(seen) == 2


def test_each_task_runs_once(thread_count):
    for count in (0, 1, 2, 50):
        done = []
        run(done.append, count)
        assert sorted(done) == list(range(count))


def test_an_error_in_a_task_is_raised_when_all_have_stopped(thread_count):
    running = []

    def task(number):
        running.append(number)
        time.sleep(0.002)
        running.remove(number)
        if number == 3:
            raise MemoryError("three")

    with pytest.raises(MemoryError, match="three"):
        run(task, 20)
    assert running == []


@needs_blas
def test_errstate_holds_in_every_task():
    def task(_):
        time.sleep(0.001)
        np.exp(np.array([1000.0]))

    use_threads(2)
    try:
        with np.errstate(over="ignore"):
            run(task, 8)
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            run(task, 8)
        with np.errstate(over="raise"), pytest.raises(FloatingPointError):
            aside(lambda: task(0))
            join()
    finally:
        join()
        use_threads(None)


def test_what_is_put_aside_is_done_by_join(thread_count):
    done = []
    for i in range(20):
        aside(lambda i=i: done.append(i))
    join()
    assert sorted(done) == list(range(20))
    join()  # nothing left


def test_an_error_aside_is_raised_by_join_and_leaves_nothing(thread_count):
    done = []

    def fails():
        raise MemoryError("aside")

    with pytest.raises(MemoryError, match="aside"):
        aside(fails)
        aside(lambda: done.append(1))
        join()
    join()
    assert done in ([], [1])


def test_an_error_in_backward_leaves_nothing_behind(small_parts):
    class Fails(Function):
        def forward(self, x):
            return x * 1

        def backward(self, dy):
            raise KeyError("no")

    rng = np.random.default_rng(0)
    w1, b1, w2 = (Parameter(rng.standard_normal(s)) for s in ((6, 5), (5,), (5, 6)))
    x = Tensor(rng.standard_normal((30, 6)), requires_grad=True)
    with pytest.raises(KeyError, match="no"):
        fused.mlp(Fails.apply(x), w1, b1, w2).backward(np.ones((30, 6)))
    assert threads._aside.waiting == [] and blas_on_one_thread.entered == 0
    for p in (w1, b1, w2):
        p.grad = None
    fused.mlp(x, w1, b1, w2).backward(np.ones((30, 6)))
    with reference_functions():
        expected = [Parameter(p.data) for p in (w1, b1, w2)]
        fused.mlp(Tensor(x.data), *expected).backward(np.ones((30, 6)))
    for found, p in zip((w1, b1, w2), expected, strict=True):
        np.testing.assert_allclose(found.grad, p.grad, rtol=1e-10)


def test_two_threads_train_two_models(small_parts):
    expected = [training_step(seed, steps=5) for seed in (0, 1)]
    found, workers = {}, []
    for seed in (0, 1):
        work = lambda seed=seed: found.update({seed: training_step(seed, steps=5)})  # noqa: E731
        workers.append(threading.Thread(target=work))
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [found[0], found[1]] == expected


@needs_fork
@pytest.mark.parametrize("forks", [30, pytest.param(300, marks=pytest.mark.slow)])
def test_forked_processes_train_while_other_threads_do(small_parts, forks):
    """A child has their locks, in whatever state, and not them."""
    use_threads(2)
    expected, ended, found = training_step(), threading.Event(), []

    def train():
        while not ended.is_set():
            training_step(1)

    def take_turns():
        numbers = np.ones(3000)
        while not ended.is_set():
            with threads.turn:
                np.tanh(numbers, out=numbers)

    workers = [threading.Thread(target=work) for work in (train, *[take_turns] * 3)]
    try:
        for worker in workers:
            worker.start()
        for number in range(forks):
            time.sleep(0.001 * (number % 7))
            found.append(forked(lambda: training_step() == expected))
            if found[-1] is None:
                break
    finally:
        ended.set()
        for worker in workers:
            worker.join()
        use_threads(None)
    assert found == [1] * forks


@needs_fork
def test_what_was_put_aside_before_a_fork_is_done_in_both(small_parts):
    class Forks(Function):
        def forward(self, x):
            return x * 1

        def backward(self, dy):
            if os.fork() == 0:
                children.append(True)
            return dy

    rng, children = np.random.default_rng(0), []
    values = [rng.standard_normal(shape) for shape in ((6, 5), (5,), (5, 6))]
    x = Tensor(rng.standard_normal((3000, 6)), requires_grad=True)
    use_threads(2)
    found = []
    for function in (lambda x: x * 1, Forks.apply):
        weights = [Parameter(value) for value in values]
        fused.mlp(function(x), *weights).backward(np.ones((3000, 6)))
        found.append([p.grad.copy() for p in weights])
    same = all(map(np.array_equal, *found)) and blas_on_one_thread.entered == 0
    if children:
        os._exit(0 if same else 1)
    use_threads(None)
    assert same and os.waitstatus_to_exitcode(os.wait()[1]) == 0


@pytest.mark.parametrize("granted", [0, 1, 2])
def test_a_system_that_grants_few_threads(small_parts, monkeypatch, granted):
    """Python in a browser grants none."""
    expected, start, started = training_step(), threading.Thread.start, []

    def limited(thread):
        if sum(other.is_alive() for other in started) >= granted:
            raise RuntimeError("can't start new thread")
        start(thread)
        started.append(thread)

    use_threads(5)
    threads._pool.cache_clear()
    monkeypatch.setattr(threading.Thread, "start", limited)
    try:
        assert training_step() == expected
        pool = threads._pool(4)
        assert (pool._max_workers if pool else 0) == granted
    finally:
        use_threads(None)
        threads._pool.cache_clear()


def test_choosing_the_plain_code_between_forward_and_backward(small_parts):
    """What was put aside is waited for all the same."""
    rng = np.random.default_rng(0)
    values = [rng.standard_normal(s) for s in ((30, 6), (6, 5), (5,), (5, 6))]
    found = []
    for change in (False, True):
        inputs = [Parameter(v) for v in values]
        y = fused.mlp(*inputs)
        with reference_functions() if change else contextlib.nullcontext():
            y.backward(np.ones((30, 6)))
            found.append([p.grad.copy() for p in inputs])
    for a, b in zip(*found, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_gradient_is_complete_when_a_later_backward_reads_it(small_parts):
    class Reads(Function):
        def forward(self, x):
            return x * 1

        def backward(self, dy):
            seen.append(w1.grad.copy())
            return dy

    seen = []
    rng = np.random.default_rng(0)
    w1, b1, w2 = (Parameter(rng.standard_normal(s)) for s in ((6, 5), (5,), (5, 6)))
    x = Tensor(rng.standard_normal((3000, 6)), requires_grad=True)
    fused.mlp(Reads.apply(x), w1, b1, w2).backward(np.ones((3000, 6)))
    np.testing.assert_array_equal(seen[0], w1.grad)


def test_training_while_python_ends():
    """When no more threads may be started."""
    script = """
import atexit, numpy as np
from minimixer import Mixer, data
from minimixer.kernels.cpu import layer_norm as cpu_layer_norm, mlp as cpu
cpu.SMALL = cpu_layer_norm.SMALL = 1
model = Mixer(image_size=28, patch_size=7, in_channels=1, num_classes=10, num_blocks=2,
              hidden_dim=64, tokens_mlp_dim=16, channels_mlp_dim=64)
images = np.zeros((200, 28, 28, 1), "uint8")
expected = model.predict_proba(images)
atexit.register(lambda: print((model.predict_proba(images) == expected).all()))
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, encoding="utf-8")
    assert (done.stdout, done.stderr) == ("True\n", "")


@pytest.mark.parametrize("shapes", [((8, 300), (299, 8)), ((300, 20), (20, 10))])
def test_products_that_do_not_fit_are_refused(small_parts, shapes):
    a, b = map(np.ones, shapes)
    outs = [np.zeros((8, 9)), np.zeros((350, 10)), np.zeros((300, 12))]
    for out in [None, *outs] if a.shape[1] != len(b) else outs:
        with pytest.raises(ValueError):
            products.matmul(a, b, out=out)


def test_an_error_stops_the_others():
    begun = []

    def task(number):
        begun.append(number)
        if number == 0:
            raise MemoryError("first")
        time.sleep(0.01)

    with pytest.raises(MemoryError, match="first"):
        run(task, 50)
    assert len(begun) < 10


def test_threads_must_be_positive():
    for count in (0, -1, 2.5):
        with pytest.raises(ValueError, match="positive"):
            use_threads(count)


# ---- memory used again --------------------------------------------------------------------------


def test_memory_comes_back_when_its_last_view_dies(monkeypatch):
    monkeypatch.setattr(reuse, "LARGE", 64)
    reuse._idle.clear()
    a = reuse.empty((4, 8), "float32")
    place = a.ctypes.data
    views = [a[1:, ::2], a.T, a.reshape(-1)[3:5], np.broadcast_to(a[0], (3, 8)), a.view("int32")]
    views.append(memoryview(a))
    del a
    while views:
        assert reuse.empty((4, 8), "float32").ctypes.data != place
        reuse._idle.clear()
        views.pop(0)
        gc.collect()
    b = reuse.empty((2, 8), "float64")
    assert b.ctypes.data == place and b.shape == (2, 8) and b.flags.writeable


def test_small_arrays_are_numpys():
    assert reuse.empty((3, 4), "float32").base is None


def test_idle_memory_of_other_sizes_is_given_back(monkeypatch):
    monkeypatch.setattr(reuse, "LARGE", 64)
    reuse._idle.clear()
    for size in (100, 200, 300):
        reuse.empty((size,), "float64")
    assert [len(found) for found in reuse._idle.values()] == [1]


@pytest.mark.parametrize("seed", range(5))
def test_what_a_user_holds_is_never_overwritten(monkeypatch, small_parts, seed):
    """Every array that a user can get hold of, some as views, through several steps."""
    monkeypatch.setattr(reuse, "LARGE", 1)
    rng = np.random.default_rng(seed)
    model = Mixer(**SMALL)
    for p in model.parameters():
        p.data = 0.3 * rng.standard_normal(p.shape)
    optimizer = SGD(model.parameters(), lr=1e-3)
    held = []

    def hold(array):
        if rng.random() < 0.5:
            array = array.reshape(-1)[rng.integers(0, 3) :: rng.integers(1, 3)]
        held.append((array, array.copy()))

    def layers(x):
        block = model.blocks[0]
        s, h = fused.add_layer_norm(x, x, None, block.norm1.weight, block.norm1.bias)
        y = fused.mlp(h, *(getattr(block.token_mixing, n) for n in ("w1", "b1", "w2")), axis=0)
        z = fused.mlp(s, *(getattr(block.channel_mixing, n) for n in ("w1", "b1", "w2")))
        return s, h, y, z, F.gelu(z, "tanh")

    tokens = len(model.blocks[0].token_mixing.w1.data)
    for _ in range(4):
        x = Tensor(rng.standard_normal((tokens, 2, model.config["hidden_dim"]), "float32"), True)
        hold(x.data)
        outputs = layers(x)
        for v in outputs:
            hold(v.data)
        gradient = rng.standard_normal(outputs[0].shape, "float32")
        hold(gradient)
        total = outputs[0] + outputs[2] + outputs[3] + outputs[4]
        total.backward(gradient)
        hold(x.grad)
        optimizer.step()
        optimizer.zero_grad()
        with no_grad():
            hold(layers(x)[3].data)
        if rng.random() < 0.3:
            held.pop(rng.integers(len(held)))
        for array, copy in held:
            np.testing.assert_array_equal(array, copy)


def test_nothing_is_kept_after_training(monkeypatch, small_parts):
    model = Mixer(**SMALL)
    images = np.zeros((2, model.height, model.width, model.in_channels), "float32")
    loss = F.cross_entropy(model(images), [0, 1])
    node = weakref.ref(loss.node)
    loss.backward()
    del loss
    assert node() is None and threads._aside.waiting == []


def test_sizes_are_those_that_the_measurements_name():
    assert (blocks.BLOCK, blocks.ROWS) == (1 << 16, 784)
    for name in ("BLOCK", "ROWS", "COLUMNS", "PRODUCT"):
        assert name in blocks.__doc__
