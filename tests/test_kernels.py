"""The fast forms of kernels/ against the plain ones, and what can go wrong on a GPU only.

Most bodies run on both devices. What they compare with is the plain code in float64 on the CPU,
given the very same (rounded) numbers: on the GPU and the CPU that tests the kernels, and the plain
code in two bytes, for which the CPU has none.
"""

import functools
import itertools
import math
from pathlib import Path

import numpy as np
import pytest
from help import by_kernels_and_plainly, each_dtype, functions, redraw
from hypothesis import given
from hypothesis import strategies as st
from rounding import UNIT
from scripts import watch
from strategies import each_half, reference_functions, same_memory, with_layout
from test_oracles import SMALL, Case, examples

from baselines import gpu as gpu_baselines
from minimixer import SGD, AdamW, Mixer, Parameter, Tensor, no_grad, record
from minimixer import functional as F
from minimixer.backend import namespace, to_device, to_numpy
from minimixer.engine import forms
from minimixer.engine.precision import as_dtype, is_half, wide, widen
from minimixer.engine.products import matmul
from minimixer.kernels import fused
from minimixer.kernels.cpu import layer_norm as cpu_layer_norm
from minimixer.kernels.cpu import mlp as cpu
from minimixer.kernels.cpu import training as cpu_training
from minimixer.kernels.gpu import (
    channel_mixing,
    cublas,
    hopper,
    plans,
    small,
    spare_row,
    token_mixing,
)
from minimixer.kernels.gpu import cuda as compiling
from minimixer.kernels.gpu import mlp as gpu_mlp
from minimixer.kernels.gpu import sums as gpu_sums
from support.kernels import using

DTYPES = ["float64", "float32", *each_half.args[1]]
BFLOAT16 = DTYPES[-1]
each_float = pytest.mark.parametrize("dtype", DTYPES)
any_layout = pytest.mark.parametrize("layout", ["transposed", "strided", "reversed", "shifted"])


def in_dtype(values, dtype, device):
    """An array on the device; two-byte numbers are made there, of float32."""
    dtype = as_dtype(dtype)
    return to_device(np.asarray(values).astype(wide(dtype)), device).astype(dtype)


@pytest.fixture(autouse=True)
def kernels_for_small_arrays_too(monkeypatch, blas_threads):
    for module in (cpu, cpu_layer_norm):
        monkeypatch.setattr(module, "SMALL", 1)


@pytest.fixture(autouse=True)
def all_kernels_compiled():
    yield
    assert compiling._failed == set(), "the plain code stood in: nothing was compared"


# ---- how far a result may be off ----------------------------------------------------------------
#
# Errors are measured as the norm of all differences of one result. A result is reached in
#     stored   roundings to its dtype, each a relative error of at most UNIT[dtype],
#     steps    roundings of arithmetic, in float32 (float64), of at most 2^-24 (2^-53), and
#     terms    the length of the longest sum: rounding its n partial sums adds up, with random
#              signs, to at most sqrt(n) roundings of the result's typical size.
# What one rounding does to the result is not guessed but measured, in float64: it moves the result
# by at most its own size times the rounding (the last one does), or as much as the same relative
# change of every input, of random sign, moves it (earlier ones do; where a sum cancels, this is
# more). `floor` adds what neither shows: terms that cancel for every input. The float64 reference
# has roundings of its own, hence a factor of two there.


def numbers(rng, shape, dtype, scale=1.0):
    """Normal numbers that `dtype` holds exactly, in float64."""
    return (scale * rng.standard_normal(shape)).astype(as_dtype(dtype)).astype("float64")


def fill_free_memory_with_nan(device):
    """So that whatever a kernel leaves unwritten shows. Bits all one are NaN in every dtype."""
    if device != "cpu":
        import cupy

        cupy.get_default_memory_pool().free_all_blocks()
        cupy.full(64 << 20, 255, dtype="uint8")


def laid_out(array, layout):
    if layout == "roomy":
        roomy = spare_row.empty(array.shape, array.dtype)
        roomy[...] = array
        roomy.base[-1] = 1
        return roomy
    if layout == "backwards":  # along the first axis alone
        return array[::-1].copy()[::-1]
    if layout != "shifted":
        return array if layout is None else with_layout(array, layout)
    flat = namespace(array).empty(array.size + 1, dtype=array.dtype)
    flat[1:] = array.reshape(-1)
    return flat[1:].reshape(array.shape)  # whose address is no multiple of 16


def float64(array):
    return to_numpy(widen(array)).astype("float64")


def differentiate(function, arrays, seeds, device, dtype, layout=None, passes=1):
    """Outputs ("0", "1") and gradients, by name, from each of several backward passes. x and y are
    activations, the others Parameters, or Tensors too with most layouts."""
    stored, inputs = as_dtype(dtype), {}
    for name, value in arrays.items():
        if name in ("x", "y") or layout not in (None, "roomy"):
            value = laid_out(in_dtype(value, stored, device), layout)
            inputs[name] = Tensor(value, requires_grad=True)
        else:
            inputs[name] = Parameter(to_device(value.astype(wide(stored)), device))
    given = [in_dtype(s, stored, device) for s in seeds]
    seeds = [laid_out(s, layout) for s in given]
    fill_free_memory_with_nan(device)
    outputs = function(**inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert all(v.dtype == stored for v in outputs)
    total, gradient = outputs[0], seeds[0]
    if len(outputs) == 2:
        total = outputs[0] * seeds[0] + outputs[1] * seeds[1]
        gradient = namespace(gradient).ones_like(gradient)
    results = []
    for _ in range(passes):
        for v in inputs.values():
            v.grad = None
        total.backward(gradient, retain_graph=passes > 1)
        found = {str(i): float64(v.data) for i, v in enumerate(outputs)}
        for name, v in inputs.items():
            assert v.grad.dtype == v.dtype and v.grad.shape == v.shape
            found[name] = float64(v.grad)
        results.append(found)
    for name, value in arrays.items():
        assert (float64(inputs[name].data) == value).all(), f"{name} was changed"
    assert all((float64(s) == float64(g)).all() for s, g in zip(seeds, given, strict=True))
    return results


def effects_of_roundings(function, arrays, seeds, expected):
    rng, step = np.random.default_rng(0), 2.0**-26
    moved = dict.fromkeys(expected, 0.0)

    def nearby(value):
        return value * (1 + step * rng.choice([-1.0, 1.0], value.shape))

    for _ in range(4):  # the largest of four: one may cancel by chance
        changed = {name: nearby(value) for name, value in arrays.items()}
        result = differentiate(function, changed, list(map(nearby, seeds)), "cpu", "float64")[0]
        for name, value in expected.items():
            moved[name] = max(moved[name], np.linalg.norm(result[name] - value) / step)
    return {name: np.linalg.norm(value) + moved[name] for name, value in expected.items()}


def check(function, arrays, seeds, device, dtype, layout=None, *, stored, steps, terms, floor=()):
    """Twice the same bits; a second backward is as good as the first; all within the bound."""
    with reference_functions():
        expected = differentiate(function, arrays, seeds, "cpu", "float64")[0]
        effects = effects_of_roundings(function, arrays, seeds, expected)
    once = functools.partial(differentiate, function, arrays, seeds, device, dtype, layout)
    runs = [once(passes=2) for _ in range(2)]
    sums = min(UNIT[dtype], 2.0**-24)
    one = (stored * UNIT[dtype] + (steps + math.sqrt(terms)) * sums) * (1 + (dtype == "float64"))
    for name, value in expected.items():
        for first, second in zip(*runs, strict=True):
            assert first[name].tobytes() == second[name].tobytes(), f"{name}: other bits"
            error = np.linalg.norm(first[name] - value)
            bound = one * (effects[name] + dict(floor).get(name, 0.0))
            assert error <= bound, f"{name}: off by {error:.3g}, allowed {bound:.3g}"


# ---- the mean over the tokens -------------------------------------------------------------------


@each_float
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (49, 2, 128), (196, 1, 1, 5), (1024, 3, 100)])
def test_mean_of_the_first_axis(device, dtype, shape):
    rng = np.random.default_rng(4)
    x, dy = numbers(rng, shape, dtype), rng.standard_normal(shape[1:]).astype("float32")
    tensor = Tensor(in_dtype(x, dtype, device), requires_grad=True)
    mean = tensor.mean(axis=0)
    assert mean.dtype == wide(as_dtype(dtype)) and mean.shape == shape[1:]
    mean.backward(to_device(dy, device).astype(mean.dtype))
    sums = UNIT["float64" if dtype == "float64" else "float32"]
    error = np.linalg.norm(float64(mean.data) - x.mean(axis=0))
    assert error <= (2 + 2 * math.sqrt(len(x))) * sums * np.linalg.norm(np.abs(x).mean(axis=0))
    exact = np.broadcast_to(dy.astype("float64") / len(x), shape)
    assert tensor.grad.dtype == as_dtype(dtype)
    error = np.linalg.norm(float64(tensor.grad) - exact)
    assert error <= 2 * (UNIT[dtype] + sums) * np.linalg.norm(exact)


# ---- the MLP and GELU ---------------------------------------------------------------------------

# The longest path is dx's: u, u with its bias, dg, du and dx are stored, and cuBLAS's GELU takes
# the hardware's tanh, wrong by 2^-11 too. GELU and its slope take some 12 steps of arithmetic.
MLP_ROUNDINGS = {"stored": 6, "steps": 12}


def check_mlp(device, dtype, axis, shape, hidden, approximate, layout=None, seed=0):
    rng = np.random.default_rng(seed)
    size = shape[axis]
    arrays = {
        "x": numbers(rng, shape, dtype),
        "w1": numbers(rng, (size, hidden), dtype, size**-0.5),
        "b1": numbers(rng, hidden, dtype, 0.3),
        "w2": numbers(rng, (size, hidden) if axis == 0 else (hidden, size), dtype, hidden**-0.5),
    }
    terms = max(size, hidden, math.prod(shape) // size)

    def function(x, w1, b1, w2):
        return fused.mlp(x, w1, b1, w2, axis=axis, approximate=approximate)

    seeds = [numbers(rng, shape, dtype)]
    check(function, arrays, seeds, device, dtype, layout, terms=terms, **MLP_ROUNDINGS)


MLPS = [  # axis, shape, hidden
    (-1, (3, 5, 1), 7), (-1, (257, 8), 13), (-1, (1, 100), 64), (-1, (49, 1, 768), 64),
    (-1, (3, 2, 1280), 7), (-1, (1, 2, 1536), 13), (-1, (196, 3, 16), 40),
    (0, (1, 3, 8), 7), (0, (49, 1, 100), 13), (0, (196, 2, 8), 64), (0, (1024, 1, 3), 7),
    (0, (5, 257, 1), 13), (0, (7, 2, 768), 64),
]  # fmt: skip


@each_float
@pytest.mark.parametrize("axis, shape, hidden", MLPS)
def test_mlp(device, dtype, axis, shape, hidden):
    check_mlp(device, dtype, axis, shape, hidden, "tanh")


@pytest.mark.parametrize("dtype", ["float32", BFLOAT16])
@pytest.mark.parametrize("axis, shape, hidden", [MLPS[i] for i in (1, 3, 8, 12)])
def test_mlp_with_exact_gelu(device, dtype, axis, shape, hidden):
    check_mlp(device, dtype, axis, shape, hidden, "none")


@any_layout
@pytest.mark.parametrize("axis", [0, -1])
def test_mlp_of_any_layout(device, axis, layout):
    check_mlp(device, "float32", axis, (6, 4, 8), 12, "tanh", layout)


FUSED_MLPS = [
    (0, (1, 1, 8), 3), (0, (5, 3, 8), 16), (0, (49, 2, 100), 64), (0, (196, 7, 8), 384),
    (-1, (1, 1, 8), 16), (-1, (49, 2, 100), 64), (-1, (7, 3, 768), 40), (-1, (1024, 1, 8), 8),
]  # fmt: skip


@each_half
@pytest.mark.parametrize("slope", [True, False], ids=["slope", "no slope"])
@pytest.mark.parametrize("axis, shape, hidden", FUSED_MLPS)
def test_mlp_with_gelu_in_the_product(gpu, dtype, axis, shape, hidden, slope, monkeypatch):
    """GELU and its slope are cuBLAS's; in token mixing b1 is a row of w1."""
    fused = {"matmul_gelu": 0, "matmul_slope": 0}
    for name, original in [(name, getattr(cublas, name)) for name in fused]:

        def noted(*arguments, name=name, original=original):
            result = original(*arguments) if slope or name == "matmul_gelu" else None
            fused[name] += result is not None
            return result

        monkeypatch.setattr(cublas, name, noted)
    check_mlp(gpu, dtype, axis, shape, hidden, "tanh", layout="roomy")
    assert fused == {"matmul_gelu": 2, "matmul_slope": 4 * slope}


MIXED = [  # shape, hidden: few tokens and the most; of tiles one, and three for some blocks
    ((196, 1, 128), 384), ((196, 9, 128), 384), ((1, 2, 64), 64), ((8, 1, 128), 128),
    ((15, 4, 96), 192), ((49, 3, 128), 64), ((200, 1, 256), 128), ((5, 301, 128), 64),
    ((5, 301, 128), 192),
]  # fmt: skip


def same_without_gradients(device, dtype, axis, shape, hidden):
    """What is not kept for backward changes no bit of y."""
    rng, size = np.random.default_rng(1), shape[axis]
    w2 = (size, hidden) if axis == 0 else (hidden, size)
    arrays = [in_dtype(numbers(rng, s, dtype, scale), dtype, device) for s, scale in (
        (shape, 1.0), ((size, hidden), size**-0.5), (hidden, 0.3), (w2, hidden**-0.5))]  # fmt: skip
    with no_grad():
        alone = fused.mlp(*arrays, axis=axis).data
    kept = fused.mlp(*[Tensor(a, requires_grad=True) for a in arrays], axis=axis).data
    assert (to_numpy(alone) == to_numpy(kept)).all()


@each_half
@pytest.mark.parametrize("layout", [None, "roomy"])
@pytest.mark.parametrize("shape, hidden", MIXED)
def test_token_mixing_in_one_kernel(gpu, dtype, shape, hidden, layout, monkeypatch):
    if to_device(np.zeros(1), gpu).device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    calls = []
    for name in ("forward", "backward"):
        watch(monkeypatch, token_mixing, name, lambda *_, name=name: calls.append(name))
    check_mlp(gpu, dtype, 0, shape, hidden, "tanh", layout=layout)
    assert calls == ["forward", "backward", "backward"] * 2
    same_without_gradients(gpu, dtype, 0, shape, hidden)


@each_half
def test_token_mixing_of_what_no_kernel_takes(gpu, dtype):
    """Too many tokens, columns that are no whole tiles, units that are no whole chunks."""
    for shape, hidden in (((201, 1, 128), 64), ((8, 3, 8), 64), ((8, 1, 128), 72)):
        x = in_dtype(np.zeros((shape[0], shape[1] * shape[2])), dtype, gpu)
        w1 = in_dtype(np.zeros((shape[0], hidden)), dtype, gpu)
        assert not token_mixing.suits(x, w1, w1[0])
        check_mlp(gpu, dtype, 0, shape, hidden, "tanh", layout="roomy")


CHANNELS = [  # shape, hidden: one tile of a cluster, of 128 and of 192 columns; more than clusters;
    ((4, 64, 64), 128), ((8, 32, 64), 192), ((196, 64, 128), 384), ((2, 384, 192), 640),
    ((100, 256, 64), 576), ((110, 256, 64), 384),
    # rows and a depth that are no whole tiles: one row, a cluster's second block with none, ...
    ((1, 1, 64), 128), ((1, 100, 8), 192), ((3, 43, 96), 256), ((49, 128, 96), 256),
    ((49, 131, 200), 384),
]  # fmt: skip


lean_or_not = pytest.mark.parametrize("which", ["auto", "lean"])


@each_half
@lean_or_not
@pytest.mark.parametrize("shape, hidden", CHANNELS)
def test_channel_mixing_with_gelu_where_it_is_stored(gpu, dtype, shape, hidden, which, monkeypatch):
    monkeypatch.setattr(channel_mixing, "SMALLEST", 0)
    if to_device(np.zeros(1), gpu).device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    calls, kept = [], "SLOPE" if which == "auto" else "U"
    watch(monkeypatch, channel_mixing, "forward", lambda *given: calls.append(("there", given[3])))
    watch(monkeypatch, channel_mixing, "backward", lambda *given: calls.append(("back", given[2])))
    with using(which):
        check_mlp(gpu, dtype, -1, shape, hidden, "tanh")
        assert calls == [("there", kept), ("back", kept)] * 4
        same_without_gradients(gpu, dtype, -1, shape, hidden)


def test_what_channel_mixing_keeps():
    most = channel_mixing.MOST_KEPT
    with using("auto"):
        assert channel_mixing.what_is_kept(most) == "SLOPE"
        assert channel_mixing.what_is_kept(most + 1) == "U"
        assert channel_mixing.what_is_kept(most, wanted=False) == "NOTHING"
    with using("lean"):
        assert channel_mixing.what_is_kept(most) == "U"
        assert channel_mixing.what_is_kept(most, wanted=False) == "NOTHING"


@each_half
def test_what_was_kept_is_what_backward_takes(gpu, dtype, monkeypatch):
    """Whatever was chosen in between."""
    monkeypatch.setattr(channel_mixing, "SMALLEST", 0)
    rng, found = np.random.default_rng(0), {}
    shapes = (256, 64), (64, 384), 384, (384, 64)
    arrays = [in_dtype(numbers(rng, shape, dtype, 0.1), dtype, gpu) for shape in shapes]
    for there, back in itertools.product(("auto", "lean"), repeat=2):
        inputs = [Tensor(a, requires_grad=True) for a in arrays]
        with using(there):
            y = fused.mlp(*inputs)
        with using(back):
            y.sum().backward()
        found[there, back] = [to_numpy(widen(i.grad)) for i in inputs]
    for there in ("auto", "lean"):
        for one, other in zip(found[there, "auto"], found[there, "lean"], strict=True):
            assert one.any() and (one == other).all()


@each_half
@lean_or_not
def test_the_slope_of_gelu_far_out(gpu, dtype, which, monkeypatch):
    """Is 0 or 1, up to the largest numbers; NaN stays NaN."""
    if to_device(np.zeros(1), gpu).device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    monkeypatch.setattr(channel_mixing, "SMALLEST", 0)
    largest = 3e38 if dtype == BFLOAT16 else 6e4
    u = np.repeat([-largest, -20, 20, largest, np.nan], [24, 24, 24, 24, 32])
    x, w1, w2 = (in_dtype(a, dtype, gpu) for a in (
        np.zeros((256, 64)), np.zeros((64, 128)), np.ones((128, 64))))  # fmt: skip
    b1 = Tensor(in_dtype(u, dtype, gpu), requires_grad=True)
    with using(which):
        fused.mlp(x, w1, b1, w2).sum().backward()
    slope = to_numpy(widen(b1.grad)) / (256 * 64)
    assert (slope[:48] == 0).all() and (slope[48:96] == 1).all() and np.isnan(slope[96:]).all()


@each_half
@pytest.mark.parametrize("kept", ["SLOPE", "U"])
def test_channel_mixing_packs_weights_that_lie_anywhere(gpu, dtype, kept):
    rng = np.random.default_rng(0)
    w1, w2 = (in_dtype(rng.standard_normal(shape), dtype, gpu) for shape in ((72, 192), (192, 72)))
    if w1.device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    shifted = laid_out(w2, "shifted")
    assert shifted.data.ptr % 16
    both = [[p.view("uint16") for p in channel_mixing.pack(w1, w, kept)] for w in (w2, shifted)]
    for packed, again in zip(*both, strict=True):
        assert packed.any() and (packed == again).all()


@lean_or_not
def test_a_recorded_step_of_both(gpu, which, monkeypatch):
    """It gives the bits of the same step that was not recorded."""
    if to_device(np.zeros(1), gpu).device.compute_capability != hopper.CAPABILITY:
        pytest.skip("of compute capability 9.0 alone")
    monkeypatch.setattr(channel_mixing, "SMALLEST", 0)
    calls, rng, found = [], np.random.default_rng(2), []
    kept = "SLOPE" if which == "auto" else "U"
    watch(monkeypatch, token_mixing, "backward", lambda *_: calls.append("tokens"))
    watch(monkeypatch, channel_mixing, "backward", lambda *given: calls.append(given[2]))
    batches = [(rng.integers(256, size=(4, 32, 32, 3)).astype("uint8"), np.arange(4))] * 5
    for graph in ("off", "on"):
        sizes = {"num_blocks": 2, "hidden_dim": 64, "tokens_mlp_dim": 128, "channels_mlp_dim": 192}
        model = redraw(Mixer(32, patch_size=4, in_channels=3, num_classes=4, **sizes,
                             precision="bfloat16")).to(gpu)  # fmt: skip
        optimizer = AdamW(model.parameters(), lr=1e-3)

        def step(x, y, model=model, optimizer=optimizer):
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            return loss

        run = record(step, model, optimizer, graph=graph)
        with using(which):
            for images, labels in batches:
                run(images, labels)
        assert run.recordings == (graph == "on") and {*calls} == {"tokens", kept}
        calls.clear()
        found.append(to_numpy(model.buffer.values).copy())
    assert (found[0] == found[1]).all()


def test_places_that_32_bits_hold():
    """Tiles are asked for by 32-bit places: what has more columns, or rows, goes another way."""
    assert token_mixing.fits(4, 64, 2**30) and not token_mixing.fits(4, 64, 2**30 + 128)
    assert channel_mixing.fits(2 * 2**30, 8, 128) and not channel_mixing.fits(2 * 2**30 + 2, 8, 128)


@each_half
def test_channel_mixing_of_what_no_kernel_takes(gpu, dtype, monkeypatch):
    """A depth whose rows begin anywhere, units that are no whole tiles, a small array."""
    for shape, hidden in (((4, 64, 68), 128), ((4, 64, 64), 136), ((4, 64, 64), 128)):
        monkeypatch.setattr(channel_mixing, "SMALLEST", 1 << 17 if hidden == 128 else 0)
        x = in_dtype(np.zeros((shape[0] * shape[1], shape[2])), dtype, gpu)
        w1 = in_dtype(np.zeros((shape[2], hidden)), dtype, gpu)
        assert not channel_mixing.suits(x, w1, w1[0])
        check_mlp(gpu, dtype, -1, shape, hidden, "tanh")


@each_half
@pytest.mark.parametrize("axis, shape, hidden", FUSED_MLPS[4:])
def test_large_channel_mixing_forgets_g(gpu, dtype, axis, shape, hidden, monkeypatch):
    monkeypatch.setattr(gpu_mlp, "LARGEST", 0)
    check_mlp(gpu, dtype, axis, shape, hidden, "tanh", layout="roomy")


@pytest.mark.parametrize("channels", [8, 40, 1288])
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_rows_of_ones_behind_layer_norm(gpu, channels, dtype):
    x = Tensor(to_device(np.zeros((3, 2, channels), dtype), gpu))
    gamma, beta = ones_on(gpu, channels), ones_on(gpu, channels)
    for bias_axis, fills in ((-1, dtype == "float16"), (0, False)):
        bias = ones_on(gpu, channels if bias_axis else 3)
        fill_free_memory_with_nan(gpu)
        _, h = fused.add_layer_norm(x, x, bias, gamma, beta, 1e-6, bias_axis=bias_axis)
        whole = spare_row.with_ones(h.data)
        assert (whole is not None) == fills
        assert whole is None or (whole.shape == (4, 2 * channels) and bool((whole[-1] == 1).all()))


def ones_on(device, size):
    parameter = Parameter(np.ones(size, dtype="float32"))
    parameter.buffer.to(device=device)
    return parameter


def test_arrays_with_a_spare_row(gpu):
    like = to_device(np.arange(12.0, dtype="float16").reshape(3, 4), gpu)
    roomy = laid_out(like, "roomy")
    ones = spare_row.with_ones(roomy)
    assert (float64(ones) == [*float64(like), [1, 1, 1, 1]]).all() and same_memory(ones[:3], roomy)
    assert same_memory(spare_row.with_ones(roomy.reshape(3, 2, 2))[:3], roomy)
    for other in (like, roomy[:2], roomy[1:], roomy.T, roomy + 1, roomy.view("int16"), like[None]):
        assert spare_row.with_ones(other) is None
    assert type(roomy) is type(like) and type(ones) is type(like)
    assert type(roomy[1]) is type(roomy * 2) is type(like)


@each_float
def test_mlp_of_any_small_shape(device, dtype):
    side = st.integers(1, 9)

    @examples(device, cpu=10, cuda=6)
    @given(st.sampled_from([0, -1]), st.tuples(side, side, side), st.integers(3, 9), side)
    def run(axis, shape, hidden, seed):
        check_mlp(device, dtype, axis, shape, hidden, "tanh", seed=seed)

    run()


@each_float
@pytest.mark.parametrize("shape", [(1,), (13,), (257, 8), (3, 5, 700)])
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu(device, dtype, shape, approximate):
    """The tanh form of the plain code is as exact as 1 is where it is nearly 0: see erf.py."""
    rng = np.random.default_rng(1)
    x, dy = numbers(rng, shape, dtype, 2), numbers(rng, shape, dtype)
    floor = {"0": np.linalg.norm(x), "x": np.linalg.norm(dy)}
    for layout in (None, "shifted") if dtype == "float32" else (None,):
        check(
            lambda x: F.gelu(x, approximate), {"x": x}, [dy], device, dtype, layout,
            stored=1, steps=12, terms=1, floor=floor,
        )  # fmt: skip


@each_float
@pytest.mark.parametrize("approximate", ["tanh", "none"])
def test_gelu_of_large_numbers(device, dtype, approximate):
    most = 1e38 if device == "cpu" and dtype != "float16" else 1e4
    values = np.float32([-most, -1e4, -300.0, -50, 0, 50, 300, 1e4, most])
    x = Tensor(in_dtype(values, dtype, device), requires_grad=True)
    with np.errstate(all="raise", under="ignore"):
        y = F.gelu(x, approximate)
        y.backward(namespace(x.data).ones_like(x.data))
    assert abs(float64(y.data) - np.maximum(float64(x.data), 0)).max() < 1e-30
    assert abs(float64(x.grad) - [0, 0, 0, 0, 0.5, 1, 1, 1, 1]).max() <= 2 * UNIT[dtype]


# ---- LayerNorm ----------------------------------------------------------------------------------


def check_layer_norm(device, dtype, shape, form, layout=None, seed=0):
    """form: what is added to x: "y", "column", "row" bias in any combination; "kept": or not."""
    rng = np.random.default_rng(seed)
    axis = 0 if "row" in form else -1
    channels = shape[-1]
    arrays = {name: numbers(rng, shape, dtype) for name in ("x", "y") if name in "x" + form}
    if "row" in form or "column" in form:
        arrays["bias"] = numbers(rng, shape[axis], dtype, 0.5)
    arrays |= {name: numbers(rng, channels, dtype) for name in ("gamma", "beta")}
    ds, dh = numbers(rng, shape, dtype), numbers(rng, shape, dtype)
    kept = rng.choice(in_dtype([0.0, 1.25], dtype, "cpu").astype("float64"), shape[-2])
    kept = kept if "kept" in form else np.ones(shape[-2])

    def function(x, gamma, beta, y=None, bias=None):
        keep = Tensor(in_dtype(kept, x.dtype.name, x.device)) if "kept" in form else None
        return fused.add_layer_norm(x, y, bias, gamma, beta, bias_axis=axis, keep=keep)

    # Where C is small, x_hat hardly depends on s, and the parts of dx cancel, for any input: what
    # is rounded is s, hence x_hat by UNIT |s| / sigma, and the parts of dx, of size `part`.
    bias = arrays.get("bias", np.zeros(channels))
    bias = bias if axis == -1 else bias.reshape(-1, *[1] * (len(shape) - 1))
    s = arrays["x"] + (arrays.get("y", 0) + bias) * kept[:, None]
    inverse = 1 / np.sqrt(s.var(axis=-1, keepdims=True) + 1e-6)
    shaken = 1 + abs(s).max(axis=-1, keepdims=True) * inverse
    if channels == 1:  # x_hat is 0, exactly: nothing is rounded but parts that cancel
        shaken, inverse = 1.0, inverse * (min(UNIT[dtype], 2.0**-24) / UNIT[dtype])
    part = np.linalg.norm(abs(dh * arrays["gamma"]) * inverse * shaken + abs(ds))
    floor = {
        "1": np.linalg.norm(shaken * arrays["gamma"] * np.ones(shape)),
        "gamma": np.linalg.norm(shaken * dh), "x": part, "y": 2 * part, "bias": 2 * part,
    }  # fmt: skip
    # Stored: s and the result. Arithmetic: 7 roundings for x_hat, gamma and beta, as many back.
    roundings = {"stored": 2, "steps": 14, "terms": max(channels, math.prod(shape) // channels)}
    check(function, arrays, [ds, dh], device, dtype, layout, floor=floor, **roundings)
    if channels == 1:
        found = differentiate(function, arrays, [ds, dh], device, dtype)[0]
        assert (found["1"] == arrays["beta"]).all() and (found["gamma"] == 0).all()


FORMS = ["y column", "y row", "y column kept", "y row kept", "y kept", "y", "column", ""]
NORMS = [(257, 3, 8), (49, 2, 100), (3, 7, 768), (2, 1, 1280), (1, 3, 1536), (196, 2, 1)]


@each_float
@pytest.mark.parametrize("shape", NORMS)
def test_add_layer_norm(device, dtype, shape):
    for form in FORMS if shape[-1] in (8, 100) else FORMS[:4]:
        check_layer_norm(device, dtype, shape, form)


@any_layout
@pytest.mark.parametrize("form", FORMS)
def test_add_layer_norm_of_any_layout(device, form, layout):
    check_layer_norm(device, "float32", (5, 3, 8), form, layout)


@each_float
def test_add_layer_norm_of_any_small_shape(device, dtype):
    side = st.integers(1, 9)

    @examples(device, cpu=10, cuda=6)
    @given(side, side, st.sampled_from([1, 3, 5, 7, 8]), st.sampled_from(FORMS), side)
    def run(tokens, batch, channels, form, seed):
        check_layer_norm(device, dtype, (tokens, batch, channels), form, seed=seed)

    run()


HARD_ROWS = {  # what is drawn for (rows, C), where rounding of the mean may cost all digits
    "mean 3": lambda rng, shape: 3 + rng.standard_normal(shape),
    "mean 1e4": lambda rng, shape: 1e4 + rng.standard_normal(shape),
    "mean -1e5, spread 0.1": lambda rng, shape: -1e5 + 0.1 * rng.standard_normal(shape),
    "mixed sizes": lambda rng, shape: rng.standard_normal(shape) * 10 ** rng.uniform(-6, 6, shape),
    "one far off": lambda rng, shape: 1 + 1e4 * (np.arange(shape[1]) == shape[1] - 1)
    + 1e-3 * rng.standard_normal(shape),
}  # fmt: skip


def norm_of_rows(rows, form, beta, device, kind):
    """LayerNorm of the float32 `rows`, enough of them for the fast code, with gamma 1."""
    s = np.tile(rows, (-(-(1 << 16) // rows.size), 1))
    x, y, bias = s, None, None
    if form == "y and bias":  # whose sum is exact
        x, y, bias = s / 2, s / 2, np.zeros(s.shape[1], "float32")
    x, y, bias, gamma, beta = (
        None if a is None else Tensor(a, device=device)
        for a in (x, y, bias, np.ones(s.shape[1], "float32"), beta)
    )
    with functions(kind):
        return to_numpy(fused.add_layer_norm(x, y, bias, gamma, beta)[1].data)[: len(rows)]


@by_kernels_and_plainly
@pytest.mark.parametrize("form", ["x alone", "y and bias"])
@pytest.mark.parametrize("channels", [2, 3, 96, 128, 1000, 1024])
def test_layer_norm_of_hard_rows(device, channels, form, kind):
    """Off by what rounding of the mean, of numbers of this size, is beside sigma, and by roundings
    of x_hat itself: of its variance, a sum of C squares in at least 16 parts, and five more."""
    rng = np.random.default_rng(9)
    for name, draw in HARD_ROWS.items():
        rows = draw(rng, (40, channels)).astype("float32")
        h = norm_of_rows(rows, form, np.zeros(channels, "float32"), device, kind)
        s = rows.astype("float64")
        mean, sigma = s.mean(axis=1)[:, None], np.sqrt(s.var(axis=1) + 1e-6)[:, None]
        x_hat = (s - mean) / sigma
        size = abs(s).mean(axis=1)[:, None]
        allowed = 2.5 * size / sigma + (10 + channels / 16) * abs(x_hat)
        assert (abs(h - x_hat) <= 2.0**-24 * allowed).all(), name


@by_kernels_and_plainly
@pytest.mark.parametrize("form", ["x alone", "y and bias"])
@pytest.mark.parametrize("channels", [2, 3, 96, 100, 768, 1000, 1024, 3072])
def test_layer_norm_of_equal_numbers_is_beta(device, channels, form, kind):
    values = np.array([12345.678, 100.3, 12.7, 1e-3, -77.0, -7e6, 3.3e7, 0.0], "float32")
    beta = np.linspace(-1, 1, channels, dtype="float32")
    h = norm_of_rows(np.repeat(values[:, None], channels, 1), form, beta, device, kind)
    np.testing.assert_array_equal(h, np.broadcast_to(beta, h.shape))


@each_float
@pytest.mark.parametrize("channels", [8, 100])
@pytest.mark.parametrize("only", ["s", "h", "h of a mean"])
def test_add_layer_norm_of_which_one_output_is_used(device, dtype, channels, only):
    """Below a mean over the tokens, all rows of dh are one and the same in memory."""
    rng, shape = np.random.default_rng(3), (4, 3, channels)
    arrays = {name: numbers(rng, shape, dtype) for name in ("x", "y")}
    arrays |= {name: numbers(rng, channels, dtype) for name in ("gamma", "beta")}
    d = numbers(rng, shape[1:] if "mean" in only else shape, dtype)

    def gradients(device, dtype):
        put = {n: Tensor(in_dtype(v, dtype, device), True) for n, v in arrays.items()}
        s, h = fused.add_layer_norm(put["x"], put["y"], None, put["gamma"], put["beta"])
        seed = in_dtype(d, dtype, device)
        seed = namespace(seed).broadcast_to(seed, shape)
        (s if only == "s" else h).backward(seed)
        return {n: None if v.grad is None else float64(v.grad) for n, v in put.items()}

    found, expected = gradients(device, dtype), gradients("cpu", "float64")
    # Stored: s, the result, and here also the gradients of gamma and beta; 1 + |s| / sigma is
    # below 8 for such numbers.
    allowed = 8 * (3 * UNIT[dtype] + 20 * min(UNIT[dtype], 2.0**-24))
    for name, value in expected.items():
        if value is None:
            assert found[name] is None
        else:
            assert np.linalg.norm(found[name] - value) <= allowed * np.linalg.norm(value), name


# ---- the loss -----------------------------------------------------------------------------------


@each_dtype
@pytest.mark.parametrize("shape", [(1, 2), (257, 10), (3, 1000), (2, 2100), (5, 1)])
@pytest.mark.parametrize("target", ["labels", "distributions"])
def test_cross_entropy(device, dtype, shape, target):
    rng = np.random.default_rng(4)
    z, labels = numbers(rng, shape, dtype, 3), rng.integers(shape[1], size=shape[0])
    t = rng.dirichlet(np.ones(shape[1]), shape[0])
    if dtype == "float32":
        t = t.astype("float32").astype("float64")

    def function(x, **options):
        right = to_device(labels if target == "labels" else t.astype(x.dtype), x.device)
        return F.cross_entropy(x, right, **options)

    for smoothing, reduction in itertools.product([0.0, 0.1], ["mean", "sum", "none"]):
        loss = functools.partial(function, label_smoothing=smoothing, reduction=reduction)
        seed = numbers(rng, shape[0] if reduction == "none" else (), dtype)
        rows = np.broadcast_to(seed, shape[0]) / (shape[0] if reduction == "mean" else 1)
        # p - t may cancel, as log sum e^z and z may. t is no input here, nor rounded in sum.
        floor = {"0": 3 * abs(z).max() * np.linalg.norm(rows / seed), "x": np.linalg.norm(rows)}
        check(
            loss, {"x": z}, [np.asarray(seed)], device, dtype,
            stored=1, steps=8, terms=max(shape), floor=floor,
        )  # fmt: skip


INF, NAN = np.inf, np.nan
HARD_SCORES = {  # scores, target, options, what torch's float32 says or better; None: NaN
    "large, all equal": ([[1e8, 1e8]], [0], {}, [math.log(2)]),
    "almost sure": ([[10, 0]], [0], {}, [math.log1p(math.exp(-10))]),
    "surer than float32 has digits": ([[20, 0]], [0], {}, [math.log1p(math.exp(-20))]),
    "not at all": ([[10, 0]], [1], {}, [10 + math.log1p(math.exp(-10))]),
    "an offset": ([[10001, 10000, 9999]], [1], {}, [math.log(1 + math.e + 1 / math.e)]),
    "the largest numbers": ([[3e38, -3e38]], [0], {}, [0]),
    "further apart than float32 goes": ([[3e38, -3e38]], [1], {}, [INF]),
    "impossible": ([[1, -INF]], [1], {}, [INF]),
    "impossible, and of weight 0": ([[1, -INF]], [[1.0, 0.0]], {}, [0]),
    "impossible, with smoothing": ([[1, -INF]], [0], {"label_smoothing": 0.1}, [INF]),
    "one class": ([[3.0]], [0], {}, [0]),
    "one class, with smoothing": ([[-7.5]], [0], {"label_smoothing": 0.1}, [0]),
    "nothing is possible": ([[-INF, -INF]], [0], {}, [NAN]),
    "infinite": ([[INF, 0], [1, 1]], [0, 0], {}, [NAN, math.log(2)]),
}


@by_kernels_and_plainly
@pytest.mark.parametrize("name", HARD_SCORES)
@pytest.mark.filterwarnings("error")
def test_cross_entropy_and_softmax_of_hard_scores(device, name, kind):
    scores, target, options, wanted = HARD_SCORES[name]
    target = np.array(target, dtype="int64" if np.ndim(target) == 1 else "float32")
    with functions(kind):
        for dtype in ("float32", "float64"):
            z = Tensor(np.array(scores, dtype), requires_grad=True, device=device)
            right = to_device(target.astype(dtype) if target.ndim == 2 else target, device)
            losses = F.cross_entropy(z, right, reduction="none", **options)
            losses.sum().backward()
            found, expected = to_numpy(losses.data), np.array(wanted)
            if dtype == "float64" and name == "further apart than float32 goes":
                expected = np.array([6e38])
            np.testing.assert_allclose(found, expected, rtol=3e-7, atol=1e-15)
            assert np.isnan(to_numpy(z.grad)).any(axis=1).tolist() == np.isnan(expected).tolist()
            p, log_p = (to_numpy(f(z).data) for f in (F.softmax, F.log_softmax))
            np.testing.assert_allclose(np.exp(log_p), p, rtol=1e-6, atol=1e-30)
            if target.ndim == 1 and not options:
                picked = -log_p[np.arange(len(target)), target]
                np.testing.assert_allclose(picked, expected, rtol=3e-7, atol=1e-7)
            sums = p.sum(axis=1)
            np.testing.assert_allclose(sums[~np.isnan(expected)], 1, rtol=1e-6)


@each_half
def test_the_loss_and_softmax_of_two_byte_scores(device, dtype):
    """Computed in float32 and rounded; of an array, softmax is float32."""
    low = Tensor(numbers(np.random.default_rng(3), (5, 4), "float32", 3), device=device).to(dtype)
    for function in (F.softmax, F.log_softmax, lambda z: F.cross_entropy(z, [0, 1, 2, 3, 0])):
        z, wide = (Tensor(low.to(d).data, requires_grad=True) for d in (dtype, "float32"))
        for x in (z, wide):
            y = function(x)
            seed = np.arange(1, y.size + 1, dtype="float32").reshape(y.shape) / 8
            y.backward(to_device(seed, device).astype(x.dtype))
        assert function(z).dtype == z.grad.dtype == as_dtype(dtype)
        close = np.testing.assert_allclose
        found, expected = float64(function(z).data), float64(function(wide).data)
        close(found, expected, rtol=2 * UNIT[dtype], atol=2.0**-24)  # float16's smallest
        close(float64(z.grad), float64(wide.grad), rtol=0, atol=8 * UNIT[dtype])
    assert isinstance(F.softmax(z), Tensor) and F.softmax(z.data).dtype == np.float32


# ---- gradients are arrays of their own ----------------------------------------------------------


@each_float
def test_gradients_share_no_memory(device, dtype):
    """But for the residual's: dx and dy of add_layer_norm are one array."""
    rng, x = np.random.default_rng(5), (4, 3, 8)
    cases = [  # function, shapes, options
        (F.gelu, [x], {}), (fused.mlp, [x, (8, 5), (5,), (5, 8)], {}),
        (fused.mlp, [x, (4, 5), (5,), (4, 5)], {"axis": 0}),
        (fused.add_layer_norm, [x, x, (8,), (8,), (8,)], {}),
        (fused.add_layer_norm, [x, x, (4,), (8,), (8,)], {"bias_axis": 0}),
        (fused.add_layer_norm, [x, None, None, (8,), (8,)], {}),
    ]  # fmt: skip
    if not is_half(as_dtype(dtype)):
        cases.append((F.cross_entropy, [(4, 3)], {"target": np.array([0, 1, 2, 0])}))
    for function, shapes, options in cases:
        inputs = [
            s and Tensor(in_dtype(numbers(rng, s, dtype), dtype, device), requires_grad=True)
            for s in shapes
        ]
        outputs = function(*inputs, **options)
        outputs = outputs if isinstance(outputs, tuple) else (outputs,)
        seeds = [namespace(v.data).ones_like(v.data) for v in outputs]
        found = outputs[0].node.backward(*seeds)
        found = list(found) if isinstance(found, (tuple, list)) else [found]
        if function is fused.add_layer_norm:
            found.pop(1)
        others = [v.data for v in (*inputs, *outputs) if v is not None] + seeds
        for gradient in (g for g in found if g is not None):
            assert not any(same_memory(gradient, other) for other in others), function
            others.append(gradient)


# ---- optimizers ---------------------------------------------------------------------------------

LR, STEPS = 0.01, 5


def low_copy_is_current(buffer):
    return bool((buffer.low == buffer.values.astype(buffer.low.dtype)).all())


def optimize(kind, device, dtype, low):
    """STEPS of it with given gradients: two groups, a frozen Parameter, clipping now and then."""
    model = Case(SMALL, batch=1, seed=6).model(device, dtype)
    model.blocks[0].norm1.weight.requires_grad = False
    buffer, parameters = model.buffer, model.parameters()
    if low:
        buffer.read_low(as_dtype(low))
    groups = [{"params": parameters[::2], "lr": LR / 2, "weight_decay": 0.3},
              {"params": parameters[1::2]}]  # fmt: skip
    optimizer = kind(groups, lr=LR)
    rng = np.random.default_rng(7)
    frozen = to_numpy(model.blocks[0].norm1.weight.data).copy()
    for step in range(STEPS):
        optimizer.zero_grad()
        for p in parameters:
            if p.requires_grad:
                p.grad = to_device(rng.standard_normal(p.shape).astype(dtype), device)
        if step % 2:
            expected = math.sqrt(sum((float64(p.grad) ** 2).sum() for p in optimizer.parameters))
            norm = float(optimizer.clip_grad_norm(1.0))
            # n squares and their partial sums, of random sign, and the last few steps
            allowed = (math.sqrt(buffer.size) + 8) * UNIT[dtype]
            assert abs(norm / expected - 1) <= allowed and norm > 1
        optimizer.step()
        assert not low or low_copy_is_current(buffer)
    assert to_numpy(model.blocks[0].norm1.weight.data).tobytes() == frozen.tobytes()
    assert optimizer.control[1] == STEPS
    return model, optimizer


LOWS = [("float64", None), ("float32", None), ("float32", "float16")]
LOWS.append(pytest.param("float32", "bfloat16", marks=BFLOAT16.marks))


@pytest.mark.parametrize("kind", [AdamW, SGD])
@pytest.mark.parametrize("dtype, low", LOWS)
def test_an_update_is_the_plain_one(device, kind, dtype, low):
    fast_model, fast = optimize(kind, device, dtype, low)
    with reference_functions():
        plain_model, plain = optimize(kind, device, dtype, low)
    # Each step rounds the weight (twice: decay, update), and the update, of size lr, about 10
    # times; m, a mean of gradients up to 4 deviations long, may have cancelled to a part of them.
    w = float64(plain_model.buffer.values)
    allowed = STEPS * UNIT[dtype] * (2 * abs(w) + 40 * LR)
    assert (abs(float64(fast_model.buffer.values) - w) <= allowed).all()
    assert abs(w - float64(Case(SMALL, 1, 6).model(device, dtype).buffer.values)).max() > LR
    for name, state in plain.state.items():
        error = abs(float64(fast.state[name]) - float64(state)).max()
        assert error <= STEPS * 16 * 16 * UNIT[dtype], name  # v is a mean of squares up to 16
    if low:  # whatever else writes weights refreshes the copy too
        buffer = fast_model.buffer
        fast_model.load_state_dict({n: v * 3 for n, v in fast_model.state_dict().items()})
        assert low_copy_is_current(buffer)
        fast_model.head.weight.data = np.full(fast_model.head.weight.shape, 0.1)
        assert low_copy_is_current(buffer) and float(buffer.low.astype("float32").max()) > 0.05


@each_dtype
@pytest.mark.parametrize("size", [1, 48, 63, 64, 100_003])
def test_sum_squares(device, dtype, size, monkeypatch):
    """Of blocks, on the CPU, added in float64; a GPU multiplies in float64, too."""
    monkeypatch.setattr(cpu_training, "BLOCK", 48)
    values = numbers(np.random.default_rng(8), size, dtype)
    of_cpu, of_gpu = (7 + min(size, 48)) * UNIT[dtype], (3 + size**0.5) * UNIT["float64"]
    for layout in (None, "shifted"):
        fill_free_memory_with_nan(device)
        array = laid_out(to_device(values.astype(dtype), device), layout)
        on_cpu = device == "cpu"
        found = cpu_training._sum_squares(array) if on_cpu else gpu_sums.sum_squares(array)[0]
        assert abs(float(found) / (values**2).sum() - 1) <= (of_cpu if on_cpu else of_gpu)


# ---- images -------------------------------------------------------------------------------------

PICTURES = [((28, 28), 4, 1), ((4, 4), 4, 1), ((6, 9), 3, 3), ((8, 12), 2, 1), ((32, 16), 16, 3)]


@pytest.mark.parametrize("batch", [1, 5])
@pytest.mark.parametrize("size, patch, channels", PICTURES)
@pytest.mark.parametrize("images", ["uint8", "float32", "float64"])
@each_float
def test_patches(device, dtype, images, size, patch, channels, batch):
    mean, std = np.array([0.5, 0.4, 0.3])[:channels], np.array([0.2, 0.3, 0.5])[:channels]
    kind = {"precision": dtype} if is_half(as_dtype(dtype)) else {"dtype": dtype}
    model = Mixer(
        size, patch, 1, 4, 1, 1, in_channels=channels, num_classes=2, mean=mean, std=std, **kind
    ).to(device)
    rng, shape = np.random.default_rng(9), (batch, *size, channels)
    values = 256 * rng.random(shape) if images == "uint8" else rng.standard_normal(shape)
    values = values.astype(images)
    exact, allowed = values.astype("float64"), np.zeros(shape)
    if images == "uint8":
        exact, size_of_parts = (exact / 255 - mean) / std, (exact / 255 + mean) / std
        sums = min(UNIT[dtype], 2.0**-24)  # scale and offset are rounded, product and sum too
        allowed = UNIT[dtype] * abs(exact) + 3 * sums * size_of_parts
    else:  # to the model's dtype first, then to the activations'
        exact = exact.astype(model.dtype).astype(as_dtype(dtype)).astype("float64")
    rows, columns = size[0] // patch, size[1] // patch

    def cut(array):
        array = array.reshape(batch, rows, patch, columns, patch, channels)
        return array.transpose(1, 3, 0, 2, 4, 5).reshape(rows * columns, batch, -1)

    for where in {"cpu", device}:
        fill_free_memory_with_nan(device)
        found = model.patches(to_device(values, where))
        assert found.dtype == as_dtype(dtype) and found.device == model.device
        error = abs(float64(found.data) - cut(exact))
        assert (error <= cut(allowed)).all()


# ---- products -----------------------------------------------------------------------------------

KINDS = ["plain", "transposed", "rows", "repeated", "shifted"]


def as_kind(values, kind, device, dtype):
    array = in_dtype(values, dtype, device)
    xp = namespace(array)
    if kind == "rows":
        wider = xp.full((array.shape[0], array.shape[1] + 3), 99, dtype=array.dtype)
        wider[:, 1:-2] = array
        return wider[:, 1:-2]
    if kind == "repeated":
        return xp.broadcast_to(array[:1], array.shape)
    return laid_out(array, None if kind == "plain" else kind)


@pytest.mark.parametrize("most", [small.MOST, 0], ids=["small", "cuBLAS"])
@pytest.mark.parametrize("dtype", [*DTYPES, "tf32"])
def test_products_of_any_shape_and_layout(device, dtype, most, monkeypatch):
    if device == "cpu" and (dtype == "tf32" or most == 0):
        pytest.skip("a GPU's")
    monkeypatch.setattr(small, "MOST", most)
    precision = "tf32" if dtype == "tf32" else None
    dtype = "float32" if precision else dtype
    side, kinds = st.integers(0, 40), st.sampled_from(KINDS)

    @examples(device, cpu=60, cuda=100)
    @given(side, side, side, kinds, kinds, st.booleans(), st.booleans(), st.integers(0, 99))
    def run(m, k, n, kind_a, kind_b, into_wide, accumulate, seed):
        rng = np.random.default_rng(seed)
        a, b = numbers(rng, (m, k), dtype), numbers(rng, (k, n), dtype)
        for values, kind in ((a, kind_a), (b, kind_b)):
            if kind == "repeated":
                values[1:] = values[:1]
        out_dtype = wide(as_dtype(dtype)).name if into_wide else dtype
        held, row = numbers(rng, (m, n), out_dtype), numbers(rng, n, out_dtype)
        out = bias = None
        if into_wide or accumulate:
            out = as_kind(held, ["plain", "rows"][seed % 2], device, out_dtype)
        if seed % 3:
            bias = as_kind(row, ["plain", "shifted"][seed % 2], device, out_dtype)
        arrays = as_kind(a, kind_a, device, dtype), as_kind(b, kind_b, device, dtype)
        found = matmul(*arrays, out=out, accumulate=accumulate, precision=precision, bias=bias)
        assert found is out if out is not None else found.dtype == as_dtype(dtype)
        held, row = held * accumulate, row * (bias is not None)
        exact, parts = a @ b + held + row, abs(a) @ abs(b) + abs(held) + abs(row)
        # Every product and partial sum is rounded (by cutting off, on tensor cores: 2 units); TF32
        # cuts both factors to 11 digits; the product is stored, and once more after being added to.
        sums = 2.0**-53 if dtype == "float64" else 2.0**-24
        allowed = (2 * (k + 2) * sums + (2.0**-9 if precision else 0)) * parts
        allowed += 3 * UNIT[out_dtype] * (abs(exact) + abs(held) + abs(row))
        if out_dtype == "float16":  # whose numbers below 2^-14 are 2^-24 apart
            allowed += 2.0**-24
        assert (abs(float64(found) - exact) <= allowed).all()
        for array, values in zip(arrays, (a, b), strict=True):
            assert (float64(array) == values).all()

    run()


@each_float
@pytest.mark.parametrize("layout", [None, "transposed", "strided", "shifted", "backwards"])
@pytest.mark.parametrize("lead_a, lead_b", [
    ((3,), (3,)), ((2, 3), (2, 3)), ((2, 3), ()), ((), (2, 3)), ((2, 1), (1, 3)), ((0,), (0,)),
    ((300,), (300,)), ((2, 3), (3,)),
])  # fmt: skip
def test_products_of_many_matrices(device, dtype, layout, lead_a, lead_b):
    for m, k, n in ((5, 7, 3), (1, 64, 65), (16, 8, 1)):
        rng = np.random.default_rng(m)
        a, b = numbers(rng, (*lead_a, m, k), dtype), numbers(rng, (*lead_b, k, n), dtype)
        arrays = [laid_out(in_dtype(values, dtype, device), layout) for values in (a, b)]
        found = matmul(*arrays)
        assert found.dtype == as_dtype(dtype) and found.shape == (a @ b).shape
        allowed = 2 * (k + 2) * (2.0**-53 if dtype == "float64" else 2.0**-24) * (abs(a) @ abs(b))
        assert (abs(float64(found) - a @ b) <= allowed + 2 * UNIT[dtype] * abs(a @ b)).all()


def test_products_of_wrong_shapes_name_both():
    a, b = np.ones((2, 3)), np.ones((4, 5))
    with pytest.raises(ValueError, match=r"\(2, 3\) @ \(4, 5\)"):
        cublas.matmul(a, b, None, False, None)
    with pytest.raises(ValueError, match=r"\(1, 1\).*\(2, 2\)"):
        cublas.matmul(a, a.T, np.ones((1, 1)), False, None)


# ---- choosing, and doing without ----------------------------------------------------------------


def test_untimed_products_are_done_as_cublas_guesses(gpu, monkeypatch):
    """Not as was found to be the fastest, here the last of its proposals."""
    x = to_device(np.ones((500, 500), "float32"), gpu)
    monkeypatch.setattr(cublas.context, "plans", {})
    found = type("Found", (dict,), {"get": lambda *_: plans.CANDIDATES})()
    monkeypatch.setattr(cublas, "choices", lambda device: (Path(), found))
    for which in ("auto", "untimed", "auto"):
        with using(which):
            matmul(x, x)
    timed, untimed = cublas.context.plans.values()
    assert timed.chosen == timed.found - 1 > 0 == untimed.chosen


def test_another_thread_may_choose_in_between(device, monkeypatch):
    """Looked for, a form is there; when it is taken, it is not."""
    here = type("Here", (dict,), {"__contains__": lambda *_: True})
    monkeypatch.setattr(forms, "table", here())
    x = to_device(np.ones((3, 3), "float32"), device)
    assert (matmul(x, x) == 3).all()
    assert (F.linear(x, x).data == 3).all()


@pytest.mark.filterwarnings("error")
def test_a_bias_beyond_float16_is_infinite(device):
    x = Tensor(to_device(np.full((2, 3), 6e4, "float16"), device))
    assert np.isinf(to_numpy(fused.add_bias(x, x.data[0]).data)).all()


@pytest.mark.parametrize("shape", [(1, 1), (197, 13), (4099, 10), (5003, 264), (840_000, 10)])
@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_of_columns(gpu, dtype, shape):
    """Of whole numbers, whose sums are exact: not one may be missing."""
    numbers = np.random.default_rng(0).integers(-8, 9, shape)
    matrix = in_dtype(numbers, dtype, gpu)
    for out in None, namespace(matrix).empty(shape[1], wide(matrix.dtype)):
        sums = gpu_sums.column_sums(matrix, out)
        assert out is None or sums is out
        assert np.array_equal(to_numpy(sums), numbers.sum(axis=0))


@pytest.mark.parametrize(
    "file", ["gelu.cu", "layer_norm.cu", "cross_entropy.cu", "adamw.cu", "reduce.cu", "patches.cu"]
)
def test_without_a_kernel_the_plain_code_works_after_one_warning(gpu, file, monkeypatch):
    good, case = compiling.source, Case(SMALL, batch=3, seed=10)

    def source(name, more=""):
        return good(name, more) if name != file else "this is no C++\n"

    def results():
        model = case.model(gpu, "float64")
        optimizer = AdamW(model.parameters())
        images = np.random.default_rng(11).integers(256, size=case.images().shape)
        F.cross_entropy(model(images.astype("uint8")), to_device(case.labels(), gpu)).backward()
        F.gelu(Tensor(np.ones((3, 5)), requires_grad=True, device=gpu)).sum().backward()
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        return to_numpy(model.buffer.gradients).copy()

    expected = results()
    monkeypatch.setattr(compiling, "source", source)
    monkeypatch.setattr(compiling, "_failed", set())
    compiling._kernels.clear()
    try:
        with pytest.warns(RuntimeWarning, match=file) as said:
            found = results()
        assert len(said) == 1
        assert abs(found - expected).max() <= 1e-12 * abs(expected).max()
        results()  # a second warning would be an error
    finally:
        monkeypatch.undo()
        compiling._kernels.clear()


def test_products_hold_no_more_memory_than_they_ask_for(gpu):
    import cupy

    pool, a = cupy.get_default_memory_pool(), to_device(np.ones((128, 128), "float32"), gpu)
    before = set(plans.context.plans)
    cublas.matmul(a, a)
    asked = [plans.context.plans[place].workspace for place in {*plans.context.plans} - before]
    cupy.cuda.Device().synchronize()
    used, streams = pool.used_bytes(), [cupy.cuda.Stream(non_blocking=True) for _ in range(4)]
    for stream in streams:
        with stream:
            assert (cublas.matmul(a, a) == 128).all()
    assert pool.used_bytes() - used <= 4 * (sum(asked) + 512) < 4 * plans.WORKSPACE


# ---- other GPUs, large tensors ------------------------------------------------------------------


FLOATS_ALONE = (
    "cross_entropy.cu", "softmax.cu", "attention.cu", "norms.cu", "windows.cu", "small.cu",
)  # fmt: skip


def expressions(file):
    """Every kernel of a file in every type it is used with, for packs and for single numbers."""
    floats, all_types = {"float": 4, "double": 2}, {"__nv_bfloat16": 8, "__half": 8}
    all_types |= floats
    names = []
    for t, pack in (floats if file.name in FLOATS_ALONE else all_types).items():
        a = "double" if t == "double" else "float"
        for w, tanh, flag in itertools.product((1, pack), ("true", "false"), ("true", "false")):
            names += {
                "gelu.cu": [f"gelu_{way}{kind}>" for way in ("rows", "columns") for kind in
                            (f"<{t},{w},{tanh}", f"_backward<{t},{w},{tanh},{flag}")],
                "layer_norm.cu": [f"add_layer_norm<{t},{pack},768,{flag}>",
                                  f"add_layer_norm_backward<{t},{pack},768,{flag}>"]
                + [f"add_layer_norm{kind}_any<{t}>" for kind in ("", "_backward", "_sums")],
                "adamw.cu": [f"adamw<{p},{t},{floats[p]}>" for p in floats] + ["count_step"],
                "patches.cu": [f"cut_patches<{i},{t},{w}>" for i in ("unsigned char", "float")],
                "cross_entropy.cu": [f"cross_entropy<{t}>", f"count_right<{t}>"],
                "keep.cu": [f"keep<{t}>"],
                "reduce.cu": [f"{kind}<{a}>" for kind in ("sum_rows", "sum_columns")]
                + [f"sum_squares<{a},{floats[a]}>"]
                + [f"mean_rows<{t},{a},{min(2, w)}>", f"divide<{t},{a}>"]
                + [f"sum_stretches<{t},{a},{w}>"],
                "spare_row.cu": [f"append_row<{t}>", f"split_row<{t}>"],
                "softmax.cu": [f"softmax<{t},32>", f"softmax_backward<{t},32>"],
                "attention.cu": [f"attention<{t},65,64>", f"attention_backward<{t},65,64>"],
                "norms.cu": [f"group_norm<{t},{w},{flag}>", f"standardize<{t}>",
                             f"group_norm_backward<{t},{w},{flag}>", f"standardize_backward<{t}>"],
                "windows.cu": [f"cut<{t},{w}>", f"uncut<{t},{w}>"],
                "small.cu": [f"multiply_small<{t}>"],
                "shift.cu": [f"shift<{word}>" for word in ("unsigned char", "short", "int")],
            }[file.name]  # fmt: skip
    return list(dict.fromkeys(names))


BASELINES = Path(gpu_baselines.__file__).parent
# But for what all share, and what is of newer GPUs alone.
FILES = [path for folder in (compiling.DIRECTORY, BASELINES) for path in sorted(folder.glob("*.cu"))
         if path.stem not in ("common", "hopper", "token_mixing", "channel_mixing")]  # fmt: skip


@pytest.mark.parametrize("capability", [75, 80])
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_kernels_compile_for_older_gpus(gpu, file, capability):
    from cupy._core import core
    from cupy.cuda import nvrtc

    options = core.assemble_cupy_compiler_options(("-std=c++17",))
    program = nvrtc.createProgram(compiling.source(str(file)), file.name, [], [])
    try:
        for name in expressions(file):
            nvrtc.addNameExpression(program, name)
        nvrtc.compileProgram(program, (*options, f"--gpu-architecture=compute_{capability}"))
    except nvrtc.NVRTCError:
        pytest.fail(nvrtc.getProgramLog(program))
    finally:
        nvrtc.destroyProgram(program)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["gelu", "add_layer_norm"])
def test_more_than_two_to_the_31_elements(gpu, what):
    """The last rows, computed with all others and alone, in bfloat16: 20 GB."""
    import cupy

    if cupy.cuda.Device().mem_info[1] < 40e9:
        pytest.skip("needs a GPU with 40 GB of memory")
    channels, last = 768, 64
    rows = 2**31 // channels + last
    rng = np.random.default_rng(12)
    few = to_device(rng.standard_normal((last, channels)).astype("float32"), gpu)
    few = few.astype(as_dtype("bfloat16"))
    vectors = [Parameter(to_device(rng.standard_normal(channels).astype("float32"), gpu))
               for _ in range(3)]  # fmt: skip

    def run(values):
        x = Tensor(values, requires_grad=True)
        for p in vectors:
            p.grad = None
        gelu = what == "gelu"
        outputs = (F.gelu(x, "tanh"),) if gelu else fused.add_layer_norm(x, None, *vectors)
        outputs[-1].backward(values)
        found = [v.data[-last:].copy() for v in outputs] + [x.grad[-last:].copy()]
        return found, [float64(p.grad) for p in vectors if p.grad is not None]

    many = cupy.zeros((rows, channels), dtype=few.dtype)
    many[-last:] = few
    (found, sums), (expected, right) = run(many), run(few)
    del many
    cupy.get_default_memory_pool().free_all_blocks()
    for a, b in zip(found, expected, strict=True):
        assert to_numpy(a).tobytes() == to_numpy(b).tobytes() and float(abs(widen(a)).max()) > 1
    for a, b in zip(sums, right, strict=True):  # the other rows add zeros, in another order
        assert np.linalg.norm(a - b) <= math.sqrt(last) * 2.0**-23 * np.linalg.norm(b)
