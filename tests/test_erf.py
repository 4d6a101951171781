"""erf against math.erf: every interval, every border, every kind of float, on every device."""

import importlib
import math
import types

import numpy as np
import pytest
from help import each_dtype
from hypothesis import given, settings
from hypothesis import strategies as st

from minimixer.backend import blocks, to_device, to_numpy
from minimixer.engine.erf import BORDER, ONE_FROM, erf

erf_module = importlib.import_module("minimixer.engine.erf")  # erf is a function too

MAX_ULP = 4  # promised; 2 are measured on the CPU
# Our two borders, where erf first rounds to 1 in each dtype, where exp(-a^2) would underflow,
# and the borders of fdlibm and of Cody.
BORDERS = (BORDER, ONE_FROM, 3.92, 5.93, 9.3, 26.6, 1.25, 1 / 0.35, 0.46875, 0.5, 1.0, 2.0, 4.0)


def neighbours(values, dtype, steps=50):
    """Every value with the `steps` floats below it and above it."""
    bits = np.array(values, dtype=dtype).view(dtype.replace("float", "int"))
    return (bits[:, None] + np.arange(-steps, steps + 1, dtype=bits.dtype)).view(dtype).ravel()


def grid(dtype):
    """Dense over (-7, 7), over all magnitudes, and at every border; then random bits."""
    info = np.finfo(dtype)
    positive = np.concatenate([
        np.linspace(0, 7, 60_001), np.geomspace(1e-10, 7, 20_001),
        2.0 ** np.arange(np.log2(info.smallest_subnormal), info.maxexp), neighbours(BORDERS, dtype),
        neighbours([info.smallest_normal], dtype), [0, info.smallest_subnormal, info.max, np.inf],
        [np.nan],
    ]).astype(dtype)  # fmt: skip
    random_bits = np.random.default_rng(0).bytes(20_000 * info.dtype.itemsize)
    return np.concatenate([positive, -positive, np.frombuffer(random_bits, dtype=dtype)])


def assert_is_erf(result, x, device="cpu"):
    """Same sign (of zero too), NaN where x is, else at most MAX_ULP floats from math.erf.

    On a GPU a subnormal may become zero: CuPy compiles its kernels to flush them.
    """
    assert result.dtype == x.dtype and result.shape == x.shape
    nan = np.isnan(x)
    assert np.array_equal(np.isnan(result), nan)
    x, result = x[~nan], result[~nan]
    expected = np.array([math.erf(v) for v in x.tolist()], dtype=x.dtype)
    assert np.array_equal(np.signbit(result), np.signbit(x))
    integer = f"int{8 * x.itemsize}"
    distance = np.abs(result.view(integer) - expected.view(integer))  # in ulp: the signs agree
    if device != "cpu":
        distance[(result == 0) & (abs(x) < np.finfo(x.dtype).tiny)] = 0
    if distance.size:
        worst = distance.argmax()
        assert distance[worst] <= MAX_ULP, f"erf({x[worst]!r}) is off by {distance[worst]} ulp"


def erf_on(device, x):
    return to_numpy(erf(to_device(x, device)))


@each_dtype
def test_within_ulps_of_math_erf_everywhere_without_a_warning(dtype, device):
    x = grid(dtype)
    with np.errstate(all="raise"):
        result = erf_on(device, x)
    assert_is_erf(result, x, device)


@each_dtype
def test_any_bits_alone(dtype, device):
    """One value at a time: a block in which every element lies in the same interval."""
    integers = st.integers(0, 2 ** (8 * np.dtype(dtype).itemsize) - 1)

    @settings(deadline=None, database=None)
    @given(integers | st.floats(-7, 7, width=32))
    def check(value):
        kind = dtype.replace("float", "uint") if isinstance(value, int) else dtype
        x = np.array([value], dtype=kind).view(dtype)
        with np.errstate(all="raise"):
            result = erf_on(device, x)
        assert_is_erf(result, x, device)

    check()


@each_dtype
def test_odd_to_the_bit_and_rising_but_for_rounding(dtype, device):
    x = grid(dtype)
    np.testing.assert_array_equal(erf_on(device, -x), -erf_on(device, x))
    x = np.sort(np.concatenate([np.linspace(0, 7, 60_001), neighbours(BORDERS, "float64")]))
    result = erf_on(device, np.unique(x.astype(dtype)))
    assert (np.diff(result) >= -3 * np.spacing(result[:-1])).all()
    assert result[0] == 0 and result.max() == 1


@each_dtype
def test_an_element_does_not_depend_on_its_neighbours(dtype, device):
    # Blocks with one interval skip the other; mixed blocks compute both and select.
    rng = np.random.default_rng(1)
    small = rng.uniform(-BORDER, BORDER, 2 * block_of(dtype))
    large = np.copysign(rng.uniform(BORDER, 7, small.size), small)
    separate = np.concatenate([small, large]).astype(dtype)
    order = rng.permutation(separate.size)
    np.testing.assert_array_equal(erf_on(device, separate)[order], erf_on(device, separate[order]))


def block_of(dtype):
    """The length of the blocks in which a large array is worked through."""
    return blocks(np.empty(1 << 20, dtype))[0].stop


@each_dtype
@pytest.mark.parametrize("offset", [-1, 0, 1, 12345])
def test_around_the_block_size(dtype, offset, device):
    x = np.random.default_rng(2).standard_normal(block_of(dtype) + offset).astype(dtype)
    assert_is_erf(erf_on(device, x), x, device)


@each_dtype
@pytest.mark.parametrize("view", [
    lambda a: a.T, lambda a: a[::-2, 1::3], lambda a: a[:, None, 2], lambda a: a[0, :0],
    lambda a: a[1, 1, ...], lambda a: a[:1, :] + 0 * a[:, :1], lambda a: a.reshape(2, 2, 2, 9),
], ids=["transposed", "strided", "column", "empty", "0-d", "broadcast", "4-d"])  # fmt: skip
def test_views_are_read_and_not_changed(dtype, view, device):
    base = np.random.default_rng(4).standard_normal((8, 9)).astype(dtype)
    on_device = to_device(base.copy(), device)
    if device == "cpu":
        on_device.flags.writeable = False
    result = erf(view(on_device))
    assert_is_erf(to_numpy(result), view(base))
    result[...] = 5  # a new array: writing to it changes nothing else
    np.testing.assert_array_equal(to_numpy(on_device), base)


@pytest.mark.parametrize("dtype", ["int64", "float16", "complex128", "bool"])
def test_other_dtypes_are_refused_by_name(dtype, device):
    with pytest.raises(TypeError, match=rf"erf.*{dtype}.*\(2, 3\)"):
        erf(to_device(np.ones((2, 3), dtype=dtype), device))


@each_dtype
def test_the_way_of_the_gpu_on_the_cpu(dtype, monkeypatch):
    """Which erf takes with any other library, such as NumPy under another name."""
    xp = types.SimpleNamespace(**vars(np))
    monkeypatch.setattr(erf_module, "namespace", lambda array: xp)
    for x in (grid(dtype), np.full(3, 0.25, dtype), np.full(3, 2.5, dtype), np.ones((0, 2), dtype)):
        with np.errstate(all="raise"):
            result = erf(x)
        assert_is_erf(result, x)


@pytest.mark.parametrize("table", ["SMALL_P", "SMALL_Q", "LARGE_P", "LARGE_Q"])
def test_the_bound_notices_a_wrong_tenth_digit(table, monkeypatch):
    # Without the first coefficients of each table, which count least; see each for itself.
    coefficients = getattr(erf_module, table)
    first = {"SMALL_P": 1, "SMALL_Q": 2, "LARGE_P": 1, "LARGE_Q": 0}[table]
    x = grid("float64")
    for i in range(first, len(coefficients)):
        wrong = list(coefficients)
        wrong[i] *= 1 + 1e-10
        monkeypatch.setattr(erf_module, table, tuple(wrong))
        with pytest.raises(AssertionError, match="is off by"):
            assert_is_erf(erf(x), x)
