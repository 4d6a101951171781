"""Every operation, on every device: values, gradients, and what else a gradient may get wrong.

The operations and their planted errors are listed in operations.py; no test here names one, but
for the last part, which is about single numbers: kinks, ties, constants of the wrong type.
"""

import gc
import itertools
import math
import weakref
from operator import methodcaller

import numpy as np
import operations
import pytest
from help import DTYPES, each_dtype, leaf, passing, put
from hypothesis import given, note, settings
from hypothesis import strategies as st
from operations import OPERATIONS, Case, Operation, expected, outputs_of, run_backward, tensors
from rounding import within_rounding
from strategies import HALVES, LAYOUTS, same_memory, with_layout

from minimixer import Function, GradientError, Tensor, gradcheck, no_grad, ops
from minimixer import functional as F
from minimixer.backend import device_of, is_array, namespace, to_device, to_numpy
from minimixer.engine import backward as walk
from minimixer.engine.backward import backward
from minimixer.engine.precision import as_dtype
from minimixer.kernels import fused
from minimixer.nn import loss_scale

each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
FIXED = [
    pytest.param(operation, fixed, id=f"{name}: {kind}")
    for name, operation in OPERATIONS.items()
    for kind, fixed in operation.fixed.items()
]
each_fixed = pytest.mark.parametrize("operation, fixed", FIXED)
WIDE_RESULTS = {"Mean"}  # of two-byte numbers, in float32
ELEMENT_BY_ELEMENT = 40  # inputs larger than this in all are checked along random directions


def for_each(device, *strategies):
    """Run the decorated body on drawn examples: a fifth of them where launches are dear."""
    count = settings.default.max_examples
    limit = settings(max_examples=count if device == "cpu" else max(5, count // 5))
    return lambda body: limit(given(*strategies)(body))()


def in_each(dtypes):
    """The body with one case in each dtype: to draw a case takes longer than most bodies do."""

    def with_dtypes(body):
        def each(case):
            for dtype in dtypes:
                note(f"in {dtype}")
                body(case, dtype)

        return each

    return with_dtypes


def cases_and_needs(operation: Operation) -> st.SearchStrategy[tuple[Case, set[int]]]:
    def some(case):
        return st.tuples(st.just(case), st.sets(st.sampled_from(case.arrays), min_size=1))

    return operation.draw.flatmap(some)


def check_gradients(operation, case, device, needs=None, directions=None):
    """gradcheck over the arrays among the inputs; numbers and None stay as they are."""
    inputs = tensors(case, device, needs=needs)

    def function(*arrays):
        for position, array in zip(case.arrays, arrays, strict=True):
            inputs[position] = array
        return operation.call(*inputs, **case.options)

    function.__qualname__ = operation.function.__name__
    gradcheck(function, [inputs[i] for i in case.arrays], directions=directions)


# ---- nothing is left out ------------------------------------------------------------------------


def test_every_function_of_the_package_is_listed():
    listed = {operation.function for operation in OPERATIONS.values()}
    assert {cls.__qualname__ for cls in operations.package_functions() - listed} == set()


@each_operation
def test_every_operation_has_planted_errors_on_24_elements(operation):
    assert operation.fixed
    assert any(fixed.terms for fixed in operation.fixed.values()), "no error of its own"
    for fixed in operation.fixed.values():
        assert sum(fixed.case.inputs[i].size for i in fixed.case.arrays) >= 24
        assert len(list(operations.plants(fixed))) >= 4


# ---- values -------------------------------------------------------------------------------------


@each_operation
def test_values_agree_with_numpy_within_rounding(operation, device):
    @for_each(device, operation.draw)
    @in_each(DTYPES)
    def check(case, dtype):
        inputs = tensors(case, device, dtype)
        copies = [v.data.copy() if isinstance(v, Tensor) else v for v in inputs]
        outputs = outputs_of(operation, case, inputs)
        right = expected(operation, case, dtype)
        assert len(outputs) == len(right)
        for y, wanted in zip(outputs, right, strict=True):
            assert is_array(y.data) and y.dtype == dtype and y.shape == wanted.shape
            assert y.device == case.options.get("device") or y.device == inputs_device(inputs)
            assert y.requires_grad
            assert within_rounding(y.numpy(), wanted)
        given = [v for v in case.options.values() if is_array(v)]
        for v in filter(is_array, vars(outputs[0].node).values()):
            own = not any(v.shape == a.shape and (to_numpy(v) == to_numpy(a)).all() for a in given)
            assert not own or v.dtype == dtype or v.dtype.kind in "biu", "kept for backward"
        for before, after in zip(copies, inputs, strict=True):
            if isinstance(after, Tensor):
                np.testing.assert_array_equal(to_numpy(before), after.numpy())
        with no_grad():
            again = outputs_of(operation, case, inputs)
        for y, once_more in zip(outputs, again, strict=True):
            np.testing.assert_array_equal(y.numpy(), once_more.numpy())
            assert not once_more.requires_grad and once_more.node is None


def inputs_device(inputs):
    return next(v.device for v in inputs if isinstance(v, Tensor))


@each_fixed
def test_the_bound_on_rounding_would_notice_lower_precision(operation, fixed):
    """A result that went through float16 is far outside: the bound is no mere formality."""
    inputs = tensors(fixed.case, "cpu", "float32")
    right = expected(operation, fixed.case, "float32")
    for y, wanted in zip(outputs_of(operation, fixed.case, inputs), right, strict=True):
        assert within_rounding(y.numpy(), wanted)
        coarse = y.numpy().astype("float16").astype("float32")
        assert not within_rounding(coarse, wanted)


@each_operation
def test_memory_layout_does_not_matter(operation, device):
    """Transposed, strided, read-only inputs and so on give what contiguous ones give."""
    layout_of_each = st.lists(st.sampled_from(LAYOUTS), min_size=5, max_size=5)

    @for_each(device, operation.draw, layout_of_each)
    def check(case, layouts):
        plain, other = tensors(case, device), tensors(case, device)
        for position in case.arrays:
            array = with_layout(other[position].data, layouts[position])
            other[position] = Tensor(array, requires_grad=True)
        right = expected(operation, case)
        outputs, outputs_other = (outputs_of(operation, case, t) for t in (plain, other))
        for y, wanted in zip(outputs_other, right, strict=True):
            assert within_rounding(y.numpy(), wanted)
        run_backward(outputs)
        run_backward(outputs_other)
        for position in case.arrays:
            assert_close(other[position].grad, plain[position].grad)


def assert_close(found, right, tolerance=1e-10):
    """Equal but for rounding, relative to the largest element."""
    if right is None:
        assert found is None or not found.any()
        return
    right = to_numpy(right)
    found = np.zeros(right.shape) if found is None else to_numpy(found)
    assert found.shape == right.shape
    limit = tolerance * max(1.0, float(abs(right).max(initial=0)))
    np.testing.assert_allclose(found, right, rtol=0, atol=limit)


# ---- gradients ----------------------------------------------------------------------------------


@each_operation
def test_gradients_agree_with_finite_differences(operation, device):
    @for_each(device, cases_and_needs(operation))
    def check(drawn):
        case, needs = drawn
        size = sum(case.inputs[i].size for i in needs)
        directions = 3 if size > ELEMENT_BY_ELEMENT else None
        check_gradients(operation, case, device, needs, directions)


@each_fixed
def test_every_subset_of_inputs_that_need_gradients(operation, fixed, device, monkeypatch):
    """Each gets the gradient it would get among all; the others get none, and none is computed."""
    returned = []
    right_backward = walk.run_back

    def recording(node, gradients):
        results = right_backward(node, gradients)
        if isinstance(node, operation.function):  # or a fast form of it
            returned.append(results)
        return results

    monkeypatch.setattr(walk, "run_back", recording)
    case = fixed.case
    everything = tensors(case, device)
    run_backward(outputs_of(operation, case, everything))
    for size in range(1, len(case.arrays) + 1):
        for needs in itertools.combinations(case.arrays, size):
            returned.clear()
            inputs = tensors(case, device, needs=needs)
            run_backward(outputs_of(operation, case, inputs))
            for i in case.arrays:
                if i in needs:
                    assert_close(inputs[i].grad, everything[i].grad, 1e-13)
                else:
                    assert inputs[i].grad is None
                    assert operation.free or returned[0][i] is None, f"input {i} not asked for"


@pytest.mark.parametrize("operation", [o for o in OPERATIONS.values() if o.fused],
                         ids=lambda o: o.function.__name__)  # fmt: skip
def test_hand_derived_gradients_agree_with_composed_primitives(operation, device):
    """Rung 1 against rung 2: the same values and gradients from primitives and autograd."""

    @for_each(device, cases_and_needs(operation))
    def check(drawn):
        case, needs = drawn
        fused, parts = (tensors(case, device, needs=needs) for _ in range(2))
        outputs = outputs_of(operation, case, fused)
        outputs_parts = operations.composed(operation, case, parts, device)
        used = [i for i, y in enumerate(outputs_parts) if y.requires_grad]
        assert used or not needs.intersection({0, 1, 2})
        for y, other in zip(outputs, outputs_parts, strict=True):
            assert_close(y.data, other.data)
        if not used:
            return
        run_backward([outputs[i] for i in used])
        run_backward([outputs_parts[i] for i in used])
        for i in needs:
            assert_close(fused[i].grad, parts[i].grad)


@each_operation
def test_gradients_keep_dtype_and_share_no_memory(operation, device):
    @for_each(device, operation.draw)
    @in_each(DTYPES)
    def check(case, dtype):
        inputs = tensors(case, device, dtype)
        outputs = outputs_of(operation, case, inputs)
        seeds = operations.seeds_for(outputs)
        copies = [seed.copy() for seed in seeds]
        leaves = [inputs[i] for i in case.arrays]

        def check_leaves():
            for before, seed in zip(copies, seeds, strict=True):
                np.testing.assert_array_equal(to_numpy(before), to_numpy(seed))
            reached = [x for x in leaves if x.grad is not None]
            foreign = [*seeds, *[v.data for v in [*leaves, *outputs]]]
            for x in reached:
                assert is_array(x.grad) and x.grad.dtype == dtype
                assert x.grad.shape == x.shape and device_of(x.grad) == x.device
                assert not any(same_memory(x.grad, array) for array in foreign)
            for one, other in itertools.combinations(reached, 2):
                assert not same_memory(one.grad, other.grad)

        for y, seed in zip(outputs, seeds, strict=True):  # each alone: the others are unused
            backward(y, seed, retain_graph=True)
            check_leaves()
            for x in leaves:
                x.grad = None
        run_backward(outputs, seeds)
        check_leaves()
        run_backward(outputs_of(operation, case, inputs), seeds)  # added to what is there
        check_leaves()


def as_stored(case: Case, dtype) -> Case:
    """The same with the numbers that `dtype` can hold, in float64."""
    inputs = [v.astype(dtype).astype("f8") if is_array(v) else v for v in case.inputs]
    return Case(tuple(inputs), case.options)


@each_operation
def test_gradients_in_float32_agree_with_float64(operation, device):
    """To the square root of float32's precision: the forms of their formulas, not their bounds."""

    @for_each(device, operation.draw)
    def check(case):
        rounded = as_stored(case, "float32")
        coarse, fine = (tensors(rounded, device, dtype) for dtype in ("float32", "float64"))
        run_backward(outputs_of(operation, rounded, coarse))
        run_backward(outputs_of(operation, rounded, fine))
        for i in case.arrays:
            assert_close(coarse[i].grad, fine[i].grad, 3e-4)


@each_operation
def test_two_bytes_lose_no_more_than_their_rounding(operation, device):
    """Values within the bound that the formula gives for this precision, as stored or, of sums of
    many and of what is moved, in float32; gradients within a few of its roundings of those in
    float64, of the same numbers."""
    wide = operation.function.__name__ in WIDE_RESULTS

    @for_each(device, operation.draw)
    @in_each(HALVES)
    def check(case, dtype):
        dtype = as_dtype(dtype)
        rounding = 2.0 ** -(8 if dtype.name == "bfloat16" else 11)
        stored = as_stored(case, dtype)
        short, fine = (tensors(stored, device, d) for d in (dtype, "float64"))
        outputs, right = outputs_of(operation, stored, short), expected(operation, stored)
        for y, wanted in zip(outputs, right, strict=True):
            assert y.dtype == ("float32" if wide else dtype)
            assert y.device == case.options.get("device") or y.device == inputs_device(short)
            assert within_rounding(y.numpy(), wanted)
        seeds = operations.seeds_for(outputs)
        run_backward(outputs, seeds)
        fine_outputs = outputs_of(operation, stored, fine)
        run_backward(fine_outputs, [seed.astype("float64") for seed in seeds])
        for i in case.arrays:
            assert short[i].grad is None or short[i].grad.dtype == dtype
            found = None if short[i].grad is None else short[i].grad.astype("float64")
            assert_close(found, fine[i].grad, 8 * rounding)


@each_fixed
def test_what_forward_saved_dies(operation, fixed, device):
    """With backward, or with the last name for it. Without the collector: a cycle anywhere would
    keep the arrays alive."""
    gc.disable()
    try:
        for ran_backward in (True, False):
            inputs = tensors(fixed.case, device)
            outputs = outputs_of(operation, fixed.case, inputs)
            arrays = [v.data for v in [*inputs, *outputs] if isinstance(v, Tensor)]
            given = [v for v in fixed.case.options.values() if is_array(v)]
            saved = [
                weakref.ref(v)
                for v in vars(outputs[0].node).values()
                if is_array(v) and not any(v is other for other in [*arrays, *given])
            ]
            watched = [weakref.ref(v) for v in [outputs[0].node, *arrays]]
            del arrays
            if ran_backward:
                run_backward(outputs)
                assert not [r() for r in saved if r() is not None], "kept after backward"
            del outputs, inputs
            left = [r() for r in saved + watched if r() is not None]
            assert not left, "kept although nothing names it"
    finally:
        gc.enable()


# ---- planted errors: does gradcheck notice? -----------------------------------------------------


@each_fixed
def test_right_gradients_are_accepted(operation, fixed, device):
    check_gradients(operation, fixed.case, device, directions=None if device == "cpu" else 3)


PLANTS = [
    pytest.param(*p.values, plant, id=f"{p.id}: {plant.name}")
    for p in FIXED
    for plant in operations.plants(p.values[1])
]


def gradients_or_error(operation, case):
    inputs = tensors(case, "cpu")
    try:
        run_backward(outputs_of(operation, case, inputs))
    except ValueError as error:
        return str(error)
    gradients = [inputs[i].grad for i in case.arrays]
    return [None if g is None else g.tolist() for g in gradients]


@pytest.mark.parametrize("operation, fixed, plant", PLANTS)
def test_planted_errors_are_rejected(operation, fixed, plant, monkeypatch, reference):
    right = gradients_or_error(operation, fixed.case)
    plant.install(operation.function, monkeypatch)
    assert gradients_or_error(operation, fixed.case) != right, "it is planted where nothing grows"
    with pytest.raises((GradientError, ValueError)) as caught:
        check_gradients(operation, fixed.case, "cpu")
    if isinstance(caught.value, GradientError):
        assert "argument" in str(caught.value) and "finite differences" in str(caught.value)
    else:
        assert "shape" in str(caught.value)


def test_the_planting_itself_changes_nothing(monkeypatch, reference):
    """A plant that returns the right gradients is accepted: no error comes from the planting."""
    for operation in OPERATIONS.values():
        for fixed in operation.fixed.values():
            with monkeypatch.context() as patch:
                nothing = operations.in_backward("nothing", lambda *given: given[-1])
                nothing.install(operation.function, patch)
                check_gradients(operation, fixed.case, "cpu", directions=2)


# ---- edges --------------------------------------------------------------------------------------


@pytest.mark.parametrize("function, inputs, slopes", [
    (abs, [[-1, 0, 2]], [[-1, 0, 1]]),
    (lambda x: x.clip(-1, 1), [[-2, -1, 1, 2]], [[0, 1, 1, 0]]),
    (ops.maximum, [[1, 2, 3], [3, 2, 1]], [[0, 0.5, 1], [1, 0.5, 0]]),
    (lambda x: x.max(axis=1), [[[1, 3, 3], [5, 4, 5]]], [[[0, 0.5, 0.5], [0.5, 0, 0.5]]]),
    (lambda x: x.max(), [[2, 2, 2, 2]], [[0.25] * 4]),
    (lambda x: x**0, [[0, 0, 0]], [[0, 0, 0]]),
    (lambda x: x**1, [[0, 0, 0]], [[1, 1, 1]]),
    (ops.power, [[0, 0, 0], [0, 1, 2]], [[0, 1, 0], [0, 0, 0]]),
])  # fmt: skip
def test_conventions_at_kinks_ties_and_zero(device, function, inputs, slopes):
    inputs = [leaf(device, x, "float64") for x in inputs]
    function(*inputs).sum().backward()
    assert [to_numpy(x.grad).tolist() for x in inputs] == slopes


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_infinities_and_nan_are_pytorchs_and_no_warning(dtype, device):
    """Values and slopes that PyTorch 2.13 gives for these; pytest makes every warning an error."""
    inf, nan = np.inf, np.nan
    tiny = float(np.finfo(dtype).smallest_subnormal)
    for function, x, y, slope in (
        (lambda x: 0.0**x, [-1, 0, 2, nan], [inf, 1, 0, nan], [-inf, 0, 0, nan]),
        (lambda x: (-2.0) ** x, [2, -1], [4, -0.5], [nan, nan]),
        (lambda x: x**0, [0, inf, nan], [1, 1, 1], [0, 0, 0]),
        (lambda x: x**-1, [0, 2, -inf], [inf, 0.5, 0], [-inf, -0.25, 0]),
        (lambda x: x**0.5, [-1, 0, 4], [nan, 0, 2], [nan, inf, 0.25]),
        (lambda x: x**2, [inf, nan], [inf, nan], [inf, nan]),
        (lambda x: 1 / x, [0, inf, nan], [inf, 0, nan], [-inf, 0, nan]),
        (lambda x: x / 0, [0, 1, -1], [nan, inf, -inf], [inf, inf, inf]),
        (ops.exp, [-inf, inf, nan, 1e4], [0, inf, nan, inf], [0, inf, nan, inf]),
        (ops.log, [0, inf, -1, nan], [-inf, inf, nan, nan], [inf, 0, -1, nan]),
        (ops.sqrt, [0, inf, -1, nan], [0, inf, nan, nan], [inf, 0, nan, nan]),
        (ops.tanh, [-inf, inf, nan], [-1, 1, nan], [0, 0, nan]),
        (ops.erf, [-inf, 6e4, nan], [-1, 1, nan], [0, 0, nan]),
        (ops.relu, [-inf, inf, nan, 0], [0, inf, nan, 0], [0, 1, 1, 0]),
        (abs, [-inf, inf, nan], [inf, inf, nan], [-1, 1, nan]),
        (lambda x: x[:0].var(), [2], nan, [0]),
        (lambda x: x.clip(-1, 1), [-inf, inf, nan, 1], [-1, 1, nan, 1], [0, 0, 0, 1]),
        (lambda x: ops.maximum(x, 1.0), [nan, inf, 0], [nan, inf, 1], [1, 1, 0]),
        (lambda x: ops.maximum(nan, x), [nan, inf, 0], [nan, nan, nan], [1, 1, 1]),
        (lambda x: x.max(), [1, nan, 3, nan], nan, [0, 0.5, 0, 0.5]),
        (lambda x: x.min(), [1, nan, 3], nan, [0, 1, 0]),
        (lambda x: x.max(), [inf, 1, inf], inf, [0.5, 0, 0.5]),
        (lambda x: x.var(), [2], nan, [nan]),
        (lambda x: x.std(), [2, 2, 2], 0, [0, 0, 0]),
        (lambda x: x[:0].mean(), [2], nan, [0]),
        (lambda x: (x * x).sum().sqrt(), [0, 0], 0, [nan, nan]),
    ):
        x = leaf(device, x, dtype)
        found = function(x)
        found.backward(namespace(found.data).ones_like(found.data))
        np.testing.assert_allclose(found.numpy(), y, rtol=1e-3)
        np.testing.assert_allclose(to_numpy(x.grad), slope, rtol=1e-3)
    if device != "cpu" and dtype == "float32":  # where CuPy takes subnormal numbers for 0
        tiny = float(np.finfo(dtype).smallest_normal)
    a, b = leaf(device, [0, 0, 1], dtype), leaf(device, [tiny, -tiny, inf], dtype)
    y = a / b
    y.backward(namespace(y.data).ones_like(y.data))
    np.testing.assert_array_equal(y.numpy(), [0, 0, 0])
    np.testing.assert_array_equal(to_numpy(b.grad), [0, 0, 0])
    a, b = leaf(device, [0, 0, -1, 0], dtype), leaf(device, [-1, 0, 2, nan], dtype)
    y = a**b
    y.backward(namespace(y.data).ones_like(y.data))
    np.testing.assert_array_equal(y.numpy(), [inf, 1, 1, nan])
    np.testing.assert_array_equal(to_numpy(a.grad), [-inf, 0, -2, nan])
    np.testing.assert_array_equal(to_numpy(b.grad), [-inf, 0, nan, nan])


NUMBERS = [2, 0.3, np.float64(0.3), np.float32(0.3), np.int64(2), True, np.array(2), np.array(2.0),
           np.array(True)]  # fmt: skip


@each_dtype
@pytest.mark.parametrize("number", NUMBERS, ids=lambda n: f"{type(n).__name__} {n}")
def test_numbers_never_promote_on_either_side(dtype, number, device):
    x = leaf(device, [[0.5, 1.5]], dtype)
    for function in (ops.add, ops.subtract, ops.multiply, ops.divide, ops.power, ops.maximum):
        for inputs in ((x, number), (number, x)):
            x.grad = None
            y = function(*inputs)
            y.sum().backward()
            assert y.dtype == dtype and x.grad.dtype == dtype and y.device == x.device, function
    condition = put(device, [True, False], bool)
    for y in (ops.where(condition, x, number), ops.where(condition, number, x)):
        assert y.dtype == dtype
    if not isinstance(number, (bool, np.ndarray)):
        assert ops.clip(x, -number, number).dtype == dtype


@each_dtype
def test_options_never_promote(dtype, device):
    """Numbers of NumPy's own types, as they come out of a sum or a settings file."""
    x, gamma = leaf(device, [[0.5, 1.5], [2.0, 1.0]], dtype), leaf(device, [1.0, 2.0], dtype)
    small = np.float64(0.1)
    for y in (
        F.layer_norm(x, gamma, gamma, epsilon=small),
        fused.add_layer_norm(x, x, None, gamma, gamma, epsilon=small)[0],
        F.cross_entropy(x, [0, 1], label_smoothing=small),
        F.cross_entropy(x, [0, 1], label_smoothing=small, reduction="none"),
    ):
        x.grad = None
        y.sum().backward()
        assert y.dtype == x.grad.dtype == dtype


ON_A_NUMBER = {
    name: methodcaller(name)
    for name in ("exp", "log", "sqrt", "tanh", "erf", "relu", "sum", "mean", "max", "min")
} | {
    "add": lambda x: x + 2.0,
    "subtract": lambda x: 2.0 - x,
    "multiply": lambda x: x * x,
    "divide": lambda x: 1 / x,
    "power": lambda x: x**x,
    "negative": lambda x: -x,
    "absolute": abs,
    "clip": lambda x: x.clip(0, 1),
    "maximum": lambda x: ops.maximum(x, 0.2),
    "var": lambda x: x.var(correction=0) + x,
    "reshape": lambda x: x.reshape(1).reshape(()),
    "transpose": lambda x: x.T,
    "index": lambda x: x[...],
    "GELU": lambda x: F.gelu(x, "tanh") + F.gelu(x),
}


@pytest.mark.parametrize("function", ON_A_NUMBER.values(), ids=ON_A_NUMBER)
def test_zero_dimensions(function, device):
    """A single number is a Tensor like any other: 0-d arrays go in, 0-d arrays come out."""
    x = leaf(device, 0.7, "float64")
    gradcheck(function, [x])
    y = function(x)
    assert is_array(y.data) and y.shape == ()
    y.backward()  # a second gradient, added to that of gradcheck
    assert is_array(x.grad) and x.grad.shape == () and x.grad.dtype == "float64"
    with no_grad():
        assert function(Tensor(x.data)).shape == ()


@pytest.mark.parametrize(
    "shape, axis", [((0, 3), 1), ((3, 0), 0), ((2, 0, 3), (0, -1)), ((0, 2), -1)]
)
def test_reductions_that_leave_an_empty_array(shape, axis, device):
    for name in ("mean", "max", "min", "sum", "var", "std"):
        x = leaf(device, np.zeros(shape), "float64")
        y = getattr(x, name)(axis=axis)
        assert y.size == 0 and y.shape == np.zeros(shape).sum(axis=axis).shape
        y.sum().backward()
        assert x.grad.shape == shape


@pytest.mark.parametrize("there, back", [("float64", "float32"), ("float32", "float64")])
def test_to_converts_and_is_differentiable(there, back, device):
    """To float64 too, which NumPy takes for equal to None."""
    x, seen = leaf(device, [1.0, 1 / 3], back), []
    y = passing(lambda dy: seen.append(dy.dtype) or dy)(x).to(there)
    assert y.dtype == there and y.device == x.device and y.requires_grad
    np.testing.assert_array_equal(y.numpy(), x.numpy().astype(there))
    (y * y).sum().backward()
    assert x.grad.dtype == back and seen == [back]  # again of the dtype that came in
    np.testing.assert_allclose(to_numpy(x.grad), 2 * x.numpy(), rtol=1e-7)
    assert x.to(back) is x and y.to(there, device) is y
    assert Tensor(to_device(np.arange(3), device)).to(there).dtype == there


def test_scale_gradient_scales_nothing_else(device):
    for dtype in ("float32", "float64"):
        x, dy = leaf(device, [[1.0, -2.0], [3.0, 1e-9]], dtype), np.array([[1, 2], [-3, 4e-9]])
        dy = to_device(dy.astype(dtype), device)
        for scale in (1.0, 2.0**16, 0.25):
            x.grad = None
            y = loss_scale.scale_gradient(x, to_device(np.array([scale]), device))
            np.testing.assert_array_equal(y.numpy(), x.numpy())
            y.backward(dy)
            assert x.grad.dtype == dtype
            np.testing.assert_array_equal(to_numpy(x.grad), scale * to_numpy(dy))


def test_the_two_forms_of_gelu_differ_as_documented(device):
    x = leaf(device, np.linspace(-6, 6, 10_001), "float64")
    difference = abs(F.gelu(x).numpy() - F.gelu(x, "tanh").numpy()).max()
    assert 4.6e-4 < difference <= 4.74e-4
    one = F.gelu(leaf(device, [1.0], "float64"))
    assert math.isclose(one.item(), 0.8413447460685429, rel_tol=1e-15)


def test_an_abstract_function_says_so(device):
    class Nothing(Function):
        pass

    with pytest.raises(TypeError, match="Nothing has no forward"):
        Nothing.apply(leaf(device, [1.0], "float64"))
