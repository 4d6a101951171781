"""The CPU kernels, beyond test_kernels.py: many parts and blocks, threads, memory used again."""

import contextlib
import functools
import gc
import itertools
import os
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from help import each_dtype, functions, passing, raises, redraw, small_mixer
from hypothesis import given, settings
from hypothesis import strategies as st
from processes import forked, needs_fork
from test_kernels import any_layout, check_layer_norm, check_mlp
from test_oracles import SMALL, Case

from minimixer import SGD, AdamW, Parameter, Tensor, no_grad
from minimixer import functional as F
from minimixer.engine import products
from minimixer.kernels import fused
from minimixer.kernels.cpu import blocks, reuse, threads
from minimixer.kernels.cpu import layer_norm as cpu_layer_norm
from minimixer.kernels.cpu import mlp as cpu
from minimixer.kernels.cpu import training as cpu_training
from minimixer.kernels.cpu.blocks import parts, staggered
from minimixer.kernels.cpu.threads import aside, blas_on_one_thread, join, run, use_threads


@pytest.fixture
def small_parts(monkeypatch):
    """Cuts so fine that small arrays have many parts and blocks."""
    for name, size in {"ROWS": 7, "COLUMNS": (5, 1), "PRODUCT": 1 << 5, "TINY": 1}.items():
        monkeypatch.setattr(cpu, name, size)
    for module in (cpu, cpu_layer_norm, cpu_training):
        monkeypatch.setattr(module, "BLOCK", 48)
    for module in (cpu, cpu_layer_norm):
        monkeypatch.setattr(module, "SMALL", 1)


@pytest.fixture(params=[1, 2, 3])
def thread_count(request):
    with using_threads(request.param):
        yield request.param


needs_blas = pytest.mark.skipif(threads._blas() is None, reason="a BLAS that can't be told")


@pytest.fixture(autouse=True)
def blas_is_left_as_it_was(blas_threads):
    count = threads._blas()[0] if threads._blas() else lambda: 0
    before = count()
    yield
    assert threads._aside.waiting == [] and blas_on_one_thread.entered == 0
    assert count() == before


def mlp_values(rng, rows=(30,), axis=-1) -> list[np.ndarray]:
    """x, w1, b1 and w2 of an MLP on six features with a hidden layer of five."""
    shapes = ((*rows, 6), (6, 5), (5,), (5, 6) if axis == -1 else (6, 5))
    return [rng.standard_normal(shape) for shape in shapes]


@contextlib.contextmanager
def using_threads(count: int):
    use_threads(count)
    try:
        yield
    finally:
        use_threads(None)


def training_step(seed: int = 0, dtype: str = "float32", steps: int = 2) -> bytes:
    """The bits of all weights after some steps, with a seed for weights and data."""
    case = Case(SMALL, batch=6, seed=seed)
    model, images = case.model("cpu", dtype), case.images().astype(dtype)
    optimizer = AdamW(model.parameters(), lr=1e-2, weight_decay=0.1)
    for _ in range(steps):
        loss = F.cross_entropy(model(images), case.labels())
        node = weakref.ref(loss.node)
        loss.backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        optimizer.zero_grad()
    assert np.isfinite(loss.item())
    del loss
    assert node() is None  # nothing is kept after training
    return model.buffer.values.tobytes()


# ---- cutting ------------------------------------------------------------------------------------


@given(st.integers(1, 10_000), st.integers(1, 3000))
def test_parts_cover_everything_once(length, size):
    """In pieces of about that size; staggered, the first and the last are half as long."""
    for cut in (parts, staggered):
        pieces = cut(length, size)
        assert [i for p in pieces for i in range(p.start, p.stop)] == list(range(length))
        sizes = [p.stop - p.start for p in pieces]
        assert all(sizes) and max(sizes) <= max(2 * size, 1)
        if cut is parts:
            assert max(sizes) - min(sizes) <= 1 and min(sizes) >= min(length, 0.66 * size - 1)
        elif len(sizes) > 2:
            assert all(abs(2 * end - max(sizes)) <= 2 for end in (sizes[0], sizes[-1]))


# ---- results ------------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("approximate", ["tanh", "none"])
@pytest.mark.parametrize(
    "axis, shape, hidden", [(-1, (3, 17, 6), 10), (-1, (40, 1), 3), (0, (6, 3, 17), 10),
                            (0, (5, 61), 1), (-1, (1, 9), 100), (0, (9, 1), 100)],
)  # fmt: skip
def test_mlp_in_many_parts(small_parts, thread_count, dtype, approximate, axis, shape, hidden):
    check_mlp("cpu", dtype, axis, shape, hidden, approximate)


@any_layout
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
    """The second time there is something to add to, and nothing can go straight to its place."""
    values = mlp_values(np.random.default_rng(1), (6, 4), axis)
    found = []
    for chosen in (needs, (True,) * 4):
        inputs = [Parameter(v, requires_grad=n) for v, n in zip(values, chosen, strict=True)]
        for times in (1, 2):
            y = fused.mlp(*inputs, axis=axis)
            if y.requires_grad:
                y.backward(np.ones((6, 4, 6)))
            found.append([None if p.grad is None else p.grad / times for p in inputs])
    for some, twice, full, again, need in zip(*found, needs, strict=True):
        assert (some is None) == (twice is None) == (not need)
        if need:
            np.testing.assert_array_equal(some, full)
            np.testing.assert_array_equal(twice, again)
            np.testing.assert_allclose(twice, some, rtol=1e-12)


def test_arrays_may_be_read_only(small_parts):
    rng = np.random.default_rng(4)
    values = [*mlp_values(rng, (6, 9)), *rng.standard_normal((2, 6))]
    for value in values:
        value.flags.writeable = False
    x, w1, b1, w2, gamma, beta = inputs = [Tensor(v, requires_grad=True) for v in values]
    s, h = fused.add_layer_norm(x, x, beta, gamma, beta)
    first = fused.mlp(x, w1, b1, Tensor(values[1]), axis=0)
    y = fused.mlp(h, w1, b1, w2) + F.gelu(s, "tanh") + first
    y.backward(np.broadcast_to(np.float64(1), y.shape))
    for v in inputs:
        assert v.grad.shape == v.shape and np.isfinite(v.grad).all()


def test_a_planted_mistake_is_noticed(small_parts, monkeypatch):
    add, plain = cpu._sum_products, cpu._gelu_block

    def forgets_the_last_part(product, left, right, pieces, out, hidden):
        add(product, left[:-1], right, pieces[:-1], out, hidden)

    def slope_of_another_gelu(u, g, slope, approximate, scratch):
        plain(u, g, slope, approximate, scratch)
        if slope is not None:
            slope *= 1 + 1e-6

    for name, wrong, axis, shape, message in (
        ("_sum_products", forgets_the_last_part, 0, (6, 3, 17), r"w[12]: off by"),
        ("_gelu_block", slope_of_another_gelu, -1, (3, 17, 6), "off by"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(cpu, name, wrong)
            with pytest.raises(AssertionError, match=message):
                check_mlp("cpu", "float64", axis, shape, 10, "tanh")


@each_dtype
@pytest.mark.parametrize("value", [1e15, -1e15, 1e19, -1e25, 1e38, -3e38, np.inf, -np.inf, np.nan])
def test_gelu_and_mlp_of_extreme_numbers(small_parts, dtype, value):
    """As the plain code has them: 0 or x, slopes 0 or 1; a NaN stays in its row."""
    x = np.linspace(-3, 3, 40, dtype=dtype).reshape(8, 5)
    x[3, 2] = value
    found = []
    for kind in ("kernels", "reference"):
        with functions(kind), np.errstate(all="ignore"):
            leaf = Tensor(x, requires_grad=True)
            y = F.gelu(leaf, "tanh")
            y.backward(np.ones_like(x))
            w = np.eye(5, dtype=dtype)
            z = fused.mlp(x, Tensor(w), Tensor(np.zeros(5, dtype)), Tensor(w))
            found.append((y.data, leaf.grad, np.delete(z.data, 3, axis=0)))
    for fast, plain in zip(*found, strict=True):
        np.testing.assert_allclose(fast, plain, rtol=1e-5, atol=1e-6)


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


def test_products_of_stacks_and_over_a_factor(small_parts):
    a = np.random.default_rng(0).standard_normal((3, 30, 30))
    b, expected = a[0].copy(), a[0] @ a[0]
    assert products.matmul(b, b, out=b) is b
    pairs = [(a, a), (a, a[0]), (a[0], a)]
    for y, right in [(b, expected), *((products.matmul(*p), np.matmul(*p)) for p in pairs)]:
        np.testing.assert_allclose(y, right, rtol=1e-10, atol=1e-10)


# ---- threads ------------------------------------------------------------------------------------


@needs_blas
def test_threads_change_no_bit(small_parts):
    """Ours, nor those of BLAS."""
    get, set_count = threads._blas()
    before, bits = get(), set()
    for count in (1, 2, 3, 8):
        with using_threads(count):
            bits.add(training_step())
    try:
        for count in (1, 2):
            set_count(count)
            bits.add(training_step())
    finally:
        set_count(before)
    assert len(bits) == 1
    assert training_step(seed=1) not in bits


@needs_blas
def test_threads_are_used():
    """Or the tests of their bits would show nothing."""
    both = threading.Barrier(2, timeout=10)
    with using_threads(2):
        run(lambda number: both.wait(), 2)  # where one alone would wait in vain
    for count in (0, -1, 2.5):
        with pytest.raises(ValueError, match="positive"):
            use_threads(count)


def put_aside(task, count):
    for i in range(count):
        aside(lambda i=i: task(i))
    join()
    join()  # nothing left


@pytest.mark.parametrize("do", [run, put_aside])
def test_each_task_runs_once(thread_count, do):
    for count in (0, 1, 2, 50):
        done = []
        do(done.append, count)
        assert sorted(done) == list(range(count))


def test_an_error_stops_the_others_and_is_raised_when_all_have_stopped(thread_count):
    begun, ended = [], []

    def task(number):
        begun.append(number)
        if number == 2:
            raise MemoryError("two")
        time.sleep(0.01)
        ended.append(number)

    with pytest.raises(MemoryError, match="two"):
        run(task, 50)
    assert len(begun) < 10 and {*begun} - {*ended} == {2}


@needs_blas
def test_errstate_holds_in_every_task():
    def task(_):
        time.sleep(0.001)
        np.exp(np.array([1000.0]))

    with using_threads(2):
        with np.errstate(over="ignore"):
            run(task, 8)
        for do, count in ((run, 8), (put_aside, 1)):
            with np.errstate(over="raise"), pytest.raises(FloatingPointError):
                do(task, count)
        join()


def test_an_error_aside_is_raised_by_join_and_leaves_nothing(thread_count):
    done = []
    with pytest.raises(MemoryError, match="aside"):
        aside(lambda: raises(MemoryError("aside")))
        aside(lambda: done.append(1))
        join()
    join()
    assert done in ([], [1])


def test_an_error_in_backward_leaves_nothing_behind(small_parts):
    fails = passing(lambda dy: raises(KeyError("no")))
    x, *values = mlp_values(np.random.default_rng(0))
    weights, others = ([Parameter(v) for v in values] for _ in range(2))
    with pytest.raises(KeyError, match="no"):
        fused.mlp(fails(Tensor(x, requires_grad=True)), *weights).backward(np.ones((30, 6)))
    assert threads._aside.waiting == [] and blas_on_one_thread.entered == 0
    for p in weights:
        p.grad = None
    for parameters in (weights, others):
        fused.mlp(Tensor(x), *parameters).backward(np.ones((30, 6)))
    for found, p in zip(weights, others, strict=True):
        np.testing.assert_array_equal(found.grad, p.grad)


def test_two_threads_train_two_models(small_parts):
    step = functools.partial(training_step, steps=5)
    expected = [step(seed) for seed in (0, 1)]
    with ThreadPoolExecutor(2) as pool:
        assert list(pool.map(step, (0, 1))) == expected


@needs_fork
@pytest.mark.parametrize("forks", [pytest.param(40, marks=pytest.mark.slow)])
def test_forked_processes_train_while_other_threads_do(small_parts, forks):
    """A child has their locks, in whatever state, and not them."""
    use_threads(2)
    expected, ended, found = training_step(), threading.Event(), []

    def train():
        while not ended.is_set():
            training_step(1)

    def take_turns():
        while not ended.is_set():
            with threads.turn:
                np.tanh(np.ones(3000))

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
    def fork(dy):
        if os.fork() == 0:
            children.append(True)
        return dy

    (x, *values), children = mlp_values(np.random.default_rng(0), (3000,)), []
    x = Tensor(x, requires_grad=True)
    use_threads(2)
    found = []
    for function in (lambda x: x * 1, passing(fork)):
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


def test_a_gradient_is_complete_when_a_later_backward_reads_it(small_parts):
    reads = passing(lambda dy: seen.append(weights[0].grad.copy()) or dy)
    x, *weights = mlp_values(np.random.default_rng(0), (3000,))
    seen, weights = [], [Parameter(w) for w in weights]
    fused.mlp(reads(Tensor(x, True)), *weights).backward(np.ones((3000, 6)))
    np.testing.assert_array_equal(seen[0], weights[0].grad)


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
    reuse._idle.clear()
    for size in (100, 200, 300):  # idle memory of other sizes is given back
        reuse.empty((size,), "float64")
    assert [len(found) for found in reuse._idle.values()] == [1]
    assert reuse.empty((3, 4), "float32").base is None  # small arrays are NumPy's


@pytest.mark.parametrize("seed", range(3))
def test_what_a_user_holds_is_never_overwritten(monkeypatch, small_parts, thread_count, seed):
    """Every array that a user can get hold of, some as views, through several steps. All are of one
    size: idle memory of another would be given back, and none used again."""
    monkeypatch.setattr(reuse, "LARGE", 1)
    rng = np.random.default_rng(seed)
    model = redraw(small_mixer(tokens_mlp_dim=4, channels_mlp_dim=8), seed)
    optimizer, block = SGD(model.parameters(), lr=1e-3), model.blocks[0]
    tokens, channels = (mlp.w1 for mlp in (block.token_mixing, block.channel_mixing))
    held = []

    def hold(*arrays):
        for array in arrays:
            if rng.random() < 0.5:
                array = array.reshape(-1)[rng.integers(0, 3) :: rng.integers(1, 3)]
            held.append((array, array.copy()))

    def layers(x):
        s, h = fused.add_layer_norm(x, x, None, block.norm1.weight, block.norm1.bias)
        y = fused.mlp(h, tokens, block.token_mixing.b1, block.token_mixing.w2, axis=0)
        z = fused.mlp(s, channels, block.channel_mixing.b1, block.channel_mixing.w2)
        return s, h, y, z, F.gelu(z, "tanh")

    for _ in range(4):
        x, gradient = rng.standard_normal((2, len(tokens.data), 2, len(channels.data)), "float32")
        x = Tensor(x, requires_grad=True)
        hold(x.data, gradient)
        s, h, y, z, g = layers(x)
        hold(*[v.data for v in (s, h, y, z, g)])
        (s + y + z + g).backward(gradient)
        hold(x.grad)
        optimizer.step()
        optimizer.zero_grad()
        with no_grad():
            hold(layers(x)[3].data)
        if rng.random() < 0.3:
            held.pop(rng.integers(len(held)))
        for array, copy in held:
            np.testing.assert_array_equal(array, copy)
    # Several threads have scratch of other sizes.
    assert any(reuse._idle.values()) or thread_count > 1


def test_sizes_are_those_that_the_measurements_name():
    assert (blocks.BLOCK, blocks.ROWS) == (1 << 16, 784)
    for name in ("BLOCK", "ROWS", "COLUMNS", "PRODUCT"):
        assert name in blocks.__doc__
