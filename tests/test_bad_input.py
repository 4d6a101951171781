"""What cannot work is refused at once: a ValueError or TypeError that says what was met.

Each message is one readable sentence with the numbers that decide it (the shapes, the value, the
limit), so that nobody has to go looking for them with a debugger.
"""

import itertools
import re

import numpy as np
import pytest
from conftest import _no_gpu
from hypothesis import given
from strategies import reference_functions, shapes

import minimixer
from minimixer import SGD, Adam, AdamW, Mixer, Parameter, Tensor, backend, no_grad, ops, schedule
from minimixer import functional as F
from minimixer.backend import to_device
from minimixer.kernels import fused
from minimixer.model.images import cut_patches
from minimixer.nn import GELU, Dropout, LayerNorm, Linear, StochasticDepth
from minimixer.nn.loss import CrossEntropy
from minimixer.ops import maximum, where
from minimixer.rearrange import concatenate, stack


def ones(*shape, device="cpu", dtype="float32", requires_grad=True):
    return Tensor(to_device(np.ones(shape, dtype), device), requires_grad=requires_grad)


def refuses(function, *parts, error=(ValueError, TypeError)):
    """`function` raises one of these, in one sentence that contains every part."""
    with pytest.raises(error) as caught:
        function()
    message = str(caught.value)
    for part in parts:
        assert str(part) in message, f"{part!r} is not in: {message}"
    assert len(message) > 15 and "\n" not in message, message
    pythons_own = r"object has no attribute|not subscriptable|unpack|'NoneType' object|not in tuple"
    assert not re.search(pythons_own, message), f"Python's own words, not ours: {message}"
    return message


# ---- operations ---------------------------------------------------------------------------------


def test_shapes_that_do_not_broadcast(device):
    x, y = ones(2, 3, device=device), ones(4, device=device)
    for function in (ops.add, ops.subtract, ops.multiply, ops.divide, ops.power, maximum):
        parts = function.__self__.__name__, "(2, 3)", "(4,)"
        refuses(lambda f=function: f(x, y), *parts, error=ValueError)
    condition = to_device(np.ones((2, 3), bool), device)
    refuses(lambda: where(condition, y, y), "Where", "(4,)", error=ValueError)


@given(shapes(max_side=5), shapes(max_side=5))
def test_every_pair_of_shapes_broadcasts_as_in_numpy_or_is_refused(a, b):
    try:
        wanted = np.broadcast_shapes(a, b)
    except ValueError:
        refuses(lambda: ones(*a) + ones(*b), a, b, error=ValueError)
    else:
        assert (ones(*a) + ones(*b)).shape == wanted


@pytest.mark.parametrize("a, b, parts", [
    ((2, 3), (4, 5), ["(2, 3)", "(4, 5)", "3", "4"]), ((3,), (4,), ["(3,)", "(4,)"]),
    ((3,), (4, 2), ["(3,)", "(4, 2)"]), ((2, 3), (2,), ["(2, 3)", "(2,)"]),
    ((2, 4, 3), (3, 3, 5), ["(2, 4, 3)", "(3, 3, 5)"]), ((), (3,), ["at least one dimension"]),
    ((3, 3), (), ["at least one dimension"]),
])  # fmt: skip
def test_matrix_products(a, b, parts, device):
    x, y = ones(*a, device=device), ones(*b, device=device)
    refuses(lambda: x @ y, "MatMul", *parts, error=ValueError)
    refuses(lambda: x @ 3.0, "MatMul", "3.0")
    refuses(lambda: ops.matmul(x, None), "MatMul", "None")


def test_shapes_and_axes(device):
    x = ones(2, 3, device=device)
    for shape in ((4,), (-1, 4), (-1, -1), (2, 3, 2), (0,)):
        refuses(lambda shape=shape: x.reshape(shape), "Reshape", "(2, 3)", error=ValueError)
    for axes in ((0, 0), (0,), (0, 2), (0, 1, 2), (1, -1)):
        refuses(lambda axes=axes: x.transpose(*axes), "Transpose", "(2, 3)", axes, error=ValueError)
    for name, axis in itertools.product(
        ("sum", "mean", "max", "min", "var", "std"), (2, -3, (0, 5), (0, 0))
    ):
        refuses(lambda n=name, a=axis: getattr(x, n)(axis=a), name.title(), "(2, 3)")
    refuses(lambda: x.sum(axis=2), "axis 2", "2 dimensions", error=ValueError)
    for axis in (None, 0):
        empty = ones(0, 3, device=device)
        refuses(lambda a=axis, e=empty: e.max(axis=a), "Max", "(0, 3)", error=ValueError)


def test_concatenate_and_stack(device):
    a, b, row = (ones(*s, device=device) for s in ((2, 3), (2, 4), (3,)))
    refuses(lambda: concatenate([a, b]), "Concatenate", "(2, 3)", "(2, 4)", error=ValueError)
    refuses(lambda: stack([a, b]), "Stack", "(2, 3)", "(2, 4)", error=ValueError)
    for axis in (0, 1, -1):
        refuses(lambda axis=axis: concatenate([a, row], axis), "(2, 3)", "(3,)", error=ValueError)
    for axis in (2, -3):
        refuses(lambda n=axis: concatenate([a, a], axis=n), "Concatenate", "(2, 3)", axis)
        refuses(lambda n=axis: stack([a, a], axis=2 * n), "Stack", "(2, 3)")
    refuses(lambda: concatenate([]), "oncatenate")
    refuses(lambda: stack([]), "tack")
    refuses(lambda: concatenate([ones(), ones()]), "Concatenate", "()")
    refuses(lambda: concatenate([ones(2), 1.0]), "Concatenate", "1.0")


def test_index_out_of_range(device):
    x = ones(2, 3, device=device)
    for key in (2, -3, (0, 3), [0, 2], np.array([5]), (0, 0, 0)):
        with pytest.raises(IndexError) as caught:
            x[key]
            if device != "cpu":  # CuPy wraps integer arrays round instead of looking at them
                raise IndexError("index out of range")
        assert len(str(caught.value)) > 15
    refuses(lambda: x[1.0], error=(IndexError, TypeError))
    refuses(lambda: x["a"], error=(IndexError, TypeError, ValueError))


def test_operands_that_are_no_arrays():
    for condition in (True, [True, False], None):
        refuses(lambda c=condition: where(c, ones(2), ones(2)), "condition")
    for other in ([1.0, 2.0], "two", {}, object()):
        refuses(lambda o=other: ones(2) + o, "Add", "expected a Tensor, an array or a number")
    with pytest.raises(TypeError, match="None"):
        ones(2) * None
    assert len(refuses(lambda: ones(2) * 10**400, "Multiply", "(2,)")) < 200  # not written out
    refuses(lambda: Tensor([[1.0, 2.0], [3.0]]), "inhomogeneous", error=ValueError)


def test_backward(device):
    x = ones(2, 3, device=device)
    refuses(lambda: (x * 2).backward(), "(2, 3)", ".sum()", error=ValueError)
    refuses(lambda: ones(requires_grad=False).backward(), "requires_grad", error=ValueError)
    for shape, dtype, parts in (((3, 2), "float32", ("(3, 2)", "(2, 3)")),
                                ((2, 3), "float64", ("float64", "float32"))):  # fmt: skip
        wrong = to_device(np.ones(shape, dtype), device)
        refuses(lambda w=wrong: (x * 2).backward(w), *parts, error=ValueError)


# ---- functions of layers ------------------------------------------------------------------------


@pytest.mark.parametrize("x, weight, bias, parts", [
    ((5, 3), (4, 2), None, ["(5, 3)", "(4, 2)"]), ((), (4, 2), None, ["()", "(4, 2)"]),
    ((5, 4), (4,), None, ["(5, 4)", "(4,)"]), ((5, 4), (4, 2), (4,), ["(2,)", "(4,)"]),
    ((5, 4), (4, 2), (5, 2), ["(2,)", "(5, 2)"]), ((5, 4), (4, 2), (1,), ["(2,)", "(1,)"]),
])  # fmt: skip
def test_linear(x, weight, bias, parts, device):
    bias = None if bias is None else ones(*bias, device=device)
    x, weight = ones(*x, device=device), ones(*weight, device=device)
    refuses(lambda: F.linear(x, weight, bias), "Linear", *parts, error=ValueError)


@pytest.mark.parametrize("axis", [0, -1])
@pytest.mark.parametrize(
    "wrong, shape", [(0, (5, 5)), (1, (5, 6)), (1, (4,)), (2, (5,)), (2, (1, 6)), (3, (7, 7))]
)
def test_mlp(axis, wrong, shape, device):
    right = [(4, 4), (4, 6), (6,), (4, 6) if axis == 0 else (6, 4)]
    inputs = [ones(*s, device=device) for s in right]
    assert fused.mlp(*inputs, axis=axis).shape == (4, 4)
    inputs[wrong] = ones(*shape, device=device)
    refuses(lambda: fused.mlp(*inputs, axis=axis), "MLP", shape, error=ValueError)


def test_other_inputs_of_mlp(device):
    """Both token-mixing weights are (S, D_S); the second of a channel MLP is (D_C, C)."""
    x, w1, b1 = ones(4, 4, device=device), ones(4, 6, device=device), ones(6, device=device)
    refuses(lambda: fused.mlp(x, w1, b1, ones(6, 4, device=device), axis=0), "(4, 6)", "(6, 4)")
    refuses(lambda: fused.mlp(x, w1, b1, w1, axis=-1), "(6, 4)", "(4, 6)")
    row = ones(3), ones(3, 6), ones(6), ones(6, 3)
    message = refuses(lambda: fused.mlp(*row), "MLP", "(3,)", error=ValueError)
    assert re.search(r"two dimensions|2 dimensions|\(\.\.\., in\)|ndim", message), message
    square = ones(4, 4), ones(4, 4), ones(4), ones(4, 4)
    for axis in (1, 2, -2, None, 0.5):
        refuses(lambda axis=axis: fused.mlp(*square, axis=axis), "axis", axis)
    for form in ("Tanh", "sigmoid", "", None, True, ["tanh"], {}):
        refuses(lambda f=form: F.gelu(ones(3), f), "approximate", "'none'", "'tanh'", repr(form))
        refuses(lambda f=form: fused.mlp(*square, approximate=f), repr(form))


@pytest.mark.parametrize("x, gamma, beta", [
    ((2, 3), (2,), (3,)), ((2, 3), (3,), (2,)), ((2, 3), (2, 3), (2, 3)), ((2, 0), (0,), (0,)),
    ((), (), ()), ((2, 3), (1,), (1,)), ((2, 3), (), ()),
])  # fmt: skip
def test_layer_norm(x, gamma, beta, device):
    x, gamma, beta = (ones(*s, device=device) for s in (x, gamma, beta))
    refuses(lambda: F.layer_norm(x, gamma, beta), "LayerNorm", x.shape, gamma.shape, beta.shape)


@pytest.mark.parametrize("y, bias, axis", [
    ((3, 2), None, -1), ((3,), None, -1), ((1, 3), None, -1), ((2, 3), (2,), -1),
    ((2, 3), (3,), 0), ((2, 3), (2, 1), 0), ((2, 3), (2, 3), -1), (None, (2,), -1),
    (None, (3,), 0), (None, (4, 1, 3), -1), ((2, 3), (), 0), (None, (1,), -1), (None, (3,), 1),
])  # fmt: skip
def test_add_layer_norm(y, bias, axis, device):
    """x and y agree; the bias is as long as the axis along which it is added."""
    x, gamma, beta = ones(2, 3, device=device), ones(3, device=device), ones(3, device=device)
    others = [None if shape is None else ones(*shape, device=device) for shape in (y, bias)]
    wrong = bias if bias is not None else y
    refuses(lambda: fused.add_layer_norm(x, *others, gamma, beta, bias_axis=axis), "(2, 3)", wrong)


@pytest.mark.parametrize("missing", [None, 3.0], ids=repr)
def test_something_missing(missing):
    """None or a number where an array belongs is a TypeError or ValueError with a name in it."""
    x, row = ones(4, 4), ones(4)
    for name, function, inputs in (
        ("Linear", F.linear, (x, missing)), ("MLP", fused.mlp, (x, missing, row, x)),
        ("MLP", fused.mlp, (x, x, missing, x)), ("MLP", fused.mlp, (x, x, row, missing)),
        ("LayerNorm", F.layer_norm, (x, missing, row)),
        ("LayerNorm", F.layer_norm, (x, row, missing)),
    ):  # fmt: skip
        refuses(lambda f=function, i=inputs: f(*i), name)


# ---- cross-entropy ------------------------------------------------------------------------------


def half(classes=2, rows=3, dtype="float32"):
    return np.full((rows, classes), 1 / classes, dtype)


NAN_ROW = np.array([[0.5, 0.5], [np.nan, 0.5], [0.5, 0.5]], "float32")
INF_ROW = np.array([[0.5, 0.5], [np.inf, 0.5], [0.5, 0.5]], "float32")
NEGATIVE_ROW = np.array([[0.5, 0.5], [1.25, -0.25], [0.5, 0.5]], "float32")


@pytest.mark.parametrize("target, error, parts", [
    ([0, 1], ValueError, ["(3, 2)", "(2,)"]), ([0, 1, 0, 1], ValueError, ["(3, 2)", "(4,)"]),
    (1, ValueError, ["(3, 2)", "()"]), ([], ValueError, ["(3, 2)", "(0,)"]),
    ([[0], [1], [1]], ValueError, ["(3, 2)", "(3, 1)"]),
    ([0.0, 1.0, 0.0], TypeError, ["float64", "integers"]),
    ([True, False, True], TypeError, ["bool", "integers"]),
    (["0", "1", "0"], TypeError, ["integers"]), (half(3), ValueError, ["(3, 2)", "(3, 3)"]),
    (half(rows=2), ValueError, ["(3, 2)", "(2, 2)"]), (half().T, ValueError, ["(3, 2)", "(2, 3)"]),
    (half()[None], ValueError, ["(3, 2)", "(1, 3, 2)"]),
    (half().astype(int), TypeError, ["int64", "float"]),
    (half().astype("float16"), TypeError, ["float16"]),
], ids=lambda v: None if isinstance(v, np.ndarray) else str(v)[:30])  # fmt: skip
def test_targets(target, error, parts, device):
    logits = ones(3, 2, device=device)
    for wrapped in (target, Tensor(to_device(np.asarray(target), device))
                    if np.asarray(target).dtype.kind != "U" else target):  # fmt: skip
        refuses(lambda t=wrapped: F.cross_entropy(logits, t), "cross_entropy", *parts, error=error)


@pytest.mark.parametrize("target, parts", [
    ([0, 1, 2], ["2", "0..1"]), ([0, -1, 1], ["-1", "0..1"]), (half() * 1.5, ["1.5", "sum to 1"]),
    (half() * 0, ["sum to 1", "0"]), (NEGATIVE_ROW, ["-0.25", ">= 0"]),
    (NAN_ROW, ["nan", "sum to 1"]), (INF_ROW, ["inf", "sum to 1"]),
], ids=lambda v: None if isinstance(v, np.ndarray) else str(v)[:30])  # fmt: skip
def test_values_of_targets(target, parts, device):
    """Refused wherever the model is; not looked at where a look would make the GPU wait."""
    logits, array = ones(3, 2, device=device), np.asarray(target)
    there = Tensor(to_device(array, device))
    parts = ["cross_entropy", *parts]
    for elsewhere in (target, array, Tensor(array)):
        refuses(lambda t=elsewhere: F.cross_entropy(logits, t), *parts, error=ValueError)
    with reference_functions():
        refuses(lambda: F.cross_entropy(logits, there), *parts, error=ValueError)
    if device == "cpu" or backend.form_of(CrossEntropy, there.data) is None:
        refuses(lambda: F.cross_entropy(logits, there), *parts, error=ValueError)
        return
    loss = F.cross_entropy(logits, there)
    loss.backward()
    assert np.isnan(loss.item()) or array.ndim == 2
    assert np.isnan(backend.to_numpy(logits.grad)).any() or array.ndim == 2


def test_other_arguments_of_cross_entropy():
    message = refuses(lambda: F.cross_entropy(ones(3, 5), [7, 1, -4]), error=ValueError)
    assert "-4" in message and "7" in message and "5" in message  # the lowest and the highest

    def loss(logits=None, target=(0, 1, 0), **options):
        return lambda: F.cross_entropy(ones(3, 2) if logits is None else logits, target, **options)

    for value in (-0.1, 1.0, 1.5, float("nan"), float("inf"), 7):
        parts = "label_smoothing", "[0, 1)", value
        refuses(loss(label_smoothing=value), *parts, error=ValueError)
    for value in ("Mean", "avg", "", None, 0):
        parts = "reduction", "mean", "sum", "none", repr(value)
        refuses(loss(reduction=value), *parts, error=ValueError)
    for shape in ((), (3,), (0, 2), (3, 0), (1, 3, 2)):
        refuses(loss(ones(*shape)), "(B, K)", shape, error=ValueError)
    for logits in ([[1.0, 2.0]], None, 3.0, "logits"):
        refuses(lambda z=logits: F.cross_entropy(z, [0]), "ogits")
    refuses(loss(np.ones((1, 2), int), [0]), "int64", error=TypeError)


@pytest.mark.parametrize("function", [F.softmax, F.log_softmax])
def test_axes_of_softmax(function, device):
    x = ones(2, 3, device=device)
    for axis in (2, -3):
        refuses(lambda a=axis: function(x, a), "(2, 3)", f"axis {axis}", error=ValueError)
    for axis in ("1", 1.0, None, (0, 1), True):
        refuses(lambda a=axis: function(x, axis=a), "axis", repr(axis), error=TypeError)
    for empty in (ones(2, 0), ones()):
        refuses(lambda e=empty: function(e), empty.shape, "at least one", error=ValueError)
    for wrong in ([1.0, 2.0], 3.0, None, np.arange(3)):
        refuses(lambda w=wrong: function(w), "oftmax", error=TypeError)


# ---- the model ----------------------------------------------------------------------------------

SMALL = {
    "image_size": 8, "patch_size": 4, "num_blocks": 1, "hidden_dim": 6, "tokens_mlp_dim": 5,
    "channels_mlp_dim": 7, "in_channels": 2, "num_classes": 3,
}  # fmt: skip


@pytest.mark.parametrize("name", [name for name in SMALL if name != "image_size"])
@pytest.mark.parametrize("value", [0, -1, 2.0, 2.5, True, False, "4", None, [4], np.nan], ids=repr)
def test_sizes(name, value):
    if name == "num_classes" and value is not False and value == 0:
        return  # a model without a head
    refuses(lambda: Mixer(**{**SMALL, name: value}), name, repr(value), error=ValueError)
    if name not in ("patch_size", "num_blocks", "hidden_dim"):
        refuses(lambda: Mixer.summary_of("mixer_s32", **{name: value}), name, error=ValueError)


def test_sizes_of_images_and_patches():
    def small(**changes):
        return lambda: Mixer(**SMALL | changes)

    for size in (0, -8, 8.0, True, "8", None, (8,), (8, 8, 8), (8, 0), (8, True), (8, 8.0)):
        refuses(small(image_size=size), "image_", error=ValueError)
    for size, patch in ((10, 4), ((8, 10), 4), ((10, 8), 4), (8, 3), (8, 16)):
        numbers = re.findall(r"\d+", f"{size} {patch}")
        refuses(small(image_size=size, patch_size=patch), *numbers, "patches", error=ValueError)
    x = Tensor(np.zeros((2, 8, 12, 3), "float32"))
    for patch in (3, 8, 0, -4):
        parts = "8 x 12", f"{patch} x {patch}"
        refuses(lambda patch=patch: cut_patches(x, patch), *parts, error=ValueError)
    for make in (Mixer.from_name, Mixer.summary_of):
        parts = "224 x 225", "16"
        refuses(lambda make=make: make("mixer_b16", image_size=(224, 225)), *parts)
        for name in ("mixer_b15", "", "Mixer_B16", None, 16):
            parts = repr(name), "mixer_b16", "mixer_h14"
            refuses(lambda make=make, name=name: make(name), *parts, error=ValueError)


@pytest.mark.parametrize("options, parts", [
    *[({"stochastic_depth": p}, ["[0, 1)", p]) for p in (-0.1, 1.0, float("nan"), 2)],
    ({"approximate": "Tanh"}, ["'Tanh'", "'tanh'", "'none'"]), ({"mean": [0.5] * 3}, ["2"]),
    ({"std": (1, 0)}, ["(1, 0)"]), ({"std": (1, 1, 1)}, []),
    *[({"mean": mean}, []) for mean in ("half", None, 1j, np.inf)],
    *[({"std": std}, [std]) for std in (0.0, -1, np.nan, np.inf)],
    *[({name: value}, [value, "float32"]) for name, values in
      {"mean": (1e300, 1e38, 1e6, -1e39), "std": (1e-320, 1e-40, 1e300, 1e38, 1e-38)}.items()
      for value in values],
    *[({"class_names": names}, ["list", repr(names)]) for names in (5, 0, "abc")],
], ids=str)  # fmt: skip
def test_other_arguments_of_the_model(options, parts):
    refuses(lambda: Mixer(**SMALL, **options), *options, *parts)
    refuses(lambda: GELU("Tanh"), "approximate", "'Tanh'", error=ValueError)
    refuses(lambda: Mixer(**SMALL, class_names=["a", "b"]), "2 class names", "3 classes")
    refuses(lambda: Mixer(**SMALL, dtype="float16"), "float16", "float32", error=TypeError)
    refuses(lambda: Mixer(**SMALL, dtype="int32"), "int32", error=TypeError)
    with pytest.raises(TypeError, match="depth"):
        Mixer(**SMALL, depth=3)


@pytest.fixture
def model(device):
    return Mixer(**SMALL).to(device)


def test_images_that_do_not_fit(model):
    calls = model, model.predict, model.predict_proba
    for shape in ((8, 8, 2), (1, 8, 8, 3), (1, 2, 8, 8), (1, 9, 8, 2), (1, 8, 4, 2), (8,), (),
                  (1, 1, 8, 8, 2)):  # fmt: skip
        zeros = np.zeros(shape, "uint8")
        for images in (zeros, zeros.astype("float32"), Tensor(np.zeros(shape))):
            message = refuses(lambda i=images: model(i), "(B, 8, 8, 2)", shape, error=ValueError)
            assert message.startswith("Mixer")
    for call in calls:
        refuses(lambda call=call: call(np.zeros((0, 8, 8, 2), "uint8")), "empty", error=ValueError)
    for dtype, value in itertools.product(("float32", "float64"), (np.nan, np.inf, -np.inf)):
        images = np.zeros((2, 8, 8, 2), dtype)
        images[1, 3, 4, 1] = value
        for call in calls:
            refuses(lambda c=call, i=images: c(i), "NaN or infinity", error=ValueError)
    for dtype in ("int64", "int8", "uint16", "bool", "complex64"):
        images = np.zeros((2, 8, 8, 2), dtype)
        for call in calls[:2]:
            refuses(lambda c=call, i=images: c(i), dtype, "uint8", error=TypeError)
    for images in (None, 3, "picture.png", [[0.0]], {}):
        parts = "(B, 8, 8, 2)", type(images).__name__
        refuses(lambda i=images: model(i), *parts, error=ValueError)
        with pytest.raises((ValueError, TypeError)):
            model.predict(images)
    images = np.zeros((2, 8, 8, 2), "uint8")
    for size in (0, -1, 2.5, True, None):
        refuses(lambda n=size: model.predict(images, batch_size=n), "batch_size", repr(size))


def test_states_that_do_not_fit():
    """test_nn.py has the names and shapes."""
    for wrong in (None, [1], "weights.npz", 3):
        parts = "dict", repr(wrong)
        refuses(lambda w=wrong: Linear(2, 2).load_state_dict(w), *parts, error=TypeError)
    weight, wrong = Mixer(**SMALL).head.weight, np.ones((3, 6), "float32")
    refuses(lambda: setattr(weight, "data", wrong), "(6, 3)", "(3, 6)", error=ValueError)


def test_arguments_of_layers():
    for size in (0, -3, 1.5, True, None, "3"):
        for make in (lambda n: Linear(n, 2), lambda n: Linear(2, n), LayerNorm):
            parts = repr(size), "at least 1"
            refuses(lambda make=make, n=size: make(n), *parts, error=ValueError)
    for seed in (-1, 1.5, 2**64, "7", float("nan")):
        parts = "seed", repr(seed)
        refuses(lambda s=seed: Linear(2, 2, seed=s), *parts, str(2**64 - 1))
        refuses(lambda s=seed: Linear(2, 2).initialize(s), *parts)
    assert Linear(2, 2, seed=2**64 - 1).weight.data.any()
    x, row = ones(2, 3), ones(3)
    for epsilon in (0, -1, float("nan"), float("inf"), "1e-6", 1e-300, 1.1e38, None, [0.1]):
        parts = "epsilon", repr(epsilon)
        refuses(lambda e=epsilon: LayerNorm(3, e), *parts, error=ValueError)
        refuses(lambda e=epsilon: F.layer_norm(x, row, row, e), *parts, error=ValueError)
    for p in (-0.1, 1, 1.0, 7, float("nan"), True, "0.5"):
        for layer in (Dropout, StochasticDepth):
            refuses(lambda p=p, of=layer: of(p), layer.__name__, "[0, 1)", p, error=ValueError)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e300], ids=repr)
def test_states_that_are_not_finite(value):
    model = Mixer(**SMALL)
    state = {name: array.astype("float64") for name, array in model.state_dict().items()}
    state["norm.bias"][2] = value
    with pytest.raises(ValueError, match=r"norm\.bias: as float32.*NaN or infinity"):
        model.load_state_dict(state | {"head.bias": np.ones(3)})
    assert not model.head.bias.data.any()
    if value == 1e300:
        model.to("float64").load_state_dict(state)


# ---- devices and dtypes -------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["gpu", "cuda:", "cuda:-1", "cuda:x", "CUDA", "", "cuda0", 0])
def test_unknown_devices(name):
    refuses(lambda: Tensor([1.0], device=name), repr(name), "'cpu'", "'cuda'", error=ValueError)
    for wrong in (name, None):
        refuses(lambda n=wrong: backend.check_device(n), repr(wrong), "'cpu'", error=ValueError)


@pytest.mark.skipif(_no_gpu is None, reason="there is a GPU here")
@pytest.mark.parametrize("name", ["cuda", "cuda:0", "cuda:3"])
def test_a_gpu_where_there_is_none(name):
    """One sentence: what is missing and what to do about it. A model stays where it is."""
    model = Mixer(**SMALL)
    before = model.state_dict()
    for function in (
        lambda: Tensor([1.0]).to(name),
        lambda: Tensor([1.0], device=name),
        lambda: model.to(name),
        lambda: model.to(name, "float64"),
        lambda: backend.to_device(np.ones(3), name),
    ):
        message = refuses(function, error=ValueError)
        assert "pip install" in message or "nvidia-smi" in message
        assert message.count(". ") == 0 and len(message) < 300
    assert model.stem.weight.device == "cpu" and model.stem.weight.dtype == "float32"
    np.testing.assert_array_equal(model.state_dict()["stem.weight"], before["stem.weight"])


def test_to_nonsense():
    for target in ("gpu", "float33", "cuda:x", 1.5, None, [], object):
        for thing in (ones(2), Mixer(**SMALL)):
            part = "to" if target != "cuda:x" else "cuda:x"
            refuses(lambda to=thing.to, t=target: to(t), part)
            refuses(lambda to=thing.to, t=target: to("cpu", t))
    refuses(lambda: ones(2).to("float32", "float64"), "float32", "float64")
    refuses(lambda: ones(2).to("int32"), "int32", "detach()", error=TypeError)  # has no gradient
    model = Mixer(**SMALL)
    refuses(lambda: model.head.to("float64"), "larger model", error=ValueError)


def test_what_gets_no_gradient_may_not_want_one(device):
    x, wanting = ones(2, 2, device=device), ones(2, 2, device=device) * 0.5
    with no_grad():
        assert F.cross_entropy(x, wanting).item() > 0
    assert F.cross_entropy(x, wanting.detach()).requires_grad
    refuses(lambda: F.cross_entropy(x, wanting), "target", "detach", error=TypeError)
    one = ones(device=device)
    for limits in ({"low": one}, {"low": 0, "high": one}):
        refuses(lambda n=limits: x.clip(**n), "clip", "limit", "detach", error=TypeError)
    assert x.clip(one.detach() * 2).tolist() == [[2, 2], [2, 2]]
    for list_ in ([one], [[one, one]], ([1.0], (2.0, [one]))):
        refuses(lambda list_=list_: Tensor(list_), "stack", "gradients", error=TypeError)
    for limit in ("a", [0.0], np.zeros(2), (), object):
        refuses(lambda n=limit: x.clip(n, 1), "clip", "numbers", "maximum")
        refuses(lambda n=limit: ops.clip(1.5, high=n), "clip", "numbers", "maximum")


# ---- optimizers ---------------------------------------------------------------------------------

bad_optimizers = pytest.mark.parametrize("make", [SGD, Adam, AdamW], ids=lambda c: c.__name__)
NAN, INF = float("nan"), float("inf")


def weight():
    return Parameter(np.ones((2, 3), "float32"))


@bad_optimizers
def test_rates_and_decay(make):
    optimizer = make([weight()], lr=0.1)
    for lr in (-1e-3, NAN, INF, 1e39, "0.1", None):
        for name in ("lr", "lr_factor"):
            refuses(lambda n=name, v=lr: setattr(optimizer, n, v), name, lr, error=ValueError)
        assert (optimizer.lr, optimizer.lr_factor) == (0.1, 1.0)
        refuses(lambda v=lr: make([weight()], lr=v), "lr", lr, error=ValueError)
        group = {"params": [weight()], "lr": lr}
        refuses(lambda g=group: make([g], lr=0.1), "lr", lr, error=ValueError)
    for decay in (-1e-3, NAN, INF, 1e39):
        parts = "weight_decay", decay
        refuses(lambda v=decay: setattr(optimizer, "weight_decay", v), *parts)
        refuses(lambda v=decay: make([weight()], lr=0.1, weight_decay=v), *parts)


@bad_optimizers
def test_what_is_optimized(make):
    p, frozen = weight(), Parameter(np.ones(3), requires_grad=False)
    for wrong, part in (
        ([], "no parameters"), ([{"params": []}], "no parameters"), ([frozen], "no parameters"),
        ([p, p], "twice"), ([{"params": [p]}, {"params": [p]}], "twice"),
        ([p, weight()], "different models"),
        ([{"params": [p], "weight_decay": -1}], "weight_decay"),
        ([{"params": [p], "learning_rate": 3}], "learning_rate"),
        ([{"lr": 0.1}], "params"), ([{"parameters": [p]}], "params"),
        ([ones(2)], "arameter"), ([np.ones(2)], "arameter"), ([None], "arameter"),
        ([[p]], "arameter"), ([("layer.weight", p)], "arameter"), ([{"params": p}], "aram"),
        ([{"params": [p]}, weight()], "arameter"),
    ):  # fmt: skip
        refuses(lambda w=wrong: make(w, lr=0.1), part)


def test_settings_that_are_no_numbers():
    """Here Python's own words will do: the traceback shows the line that was called."""
    takes = (
        Dropout,
        lambda value: SGD([weight()], lr=value),
        lambda value: SGD([weight()], lr=0.1, momentum=value),
        lambda value: AdamW([weight()], weight_decay=value),
        lambda value: AdamW([weight()], betas=(value, 0.9)),
        lambda value: F.cross_entropy(ones(3, 2), [0, 1, 0], label_smoothing=value),
        lambda value: Mixer(**SMALL, stochastic_depth=value),
    )
    for function, value in itertools.product(takes, ("a tenth", None, [0.1])):
        with pytest.raises((TypeError, ValueError)):
            function(value)


NO_RATES = [1.0, 1.5, 2, -0.1, NAN, "0.9"]


@pytest.mark.parametrize("make", [Adam, AdamW])
@pytest.mark.parametrize("options, wrong", [
    *[({"betas": (beta, 0.9)}, ("betas[0]", beta)) for beta in NO_RATES],
    *[({"betas": (0.9, beta)}, ("betas[1]", beta)) for beta in NO_RATES],
    *[({"betas": betas}, ("betas", "two numbers")) for betas in (0.9, (0.9,), (0.9, 0.9, 0.9))],
    *[({"eps": eps}, ("eps", eps)) for eps in (0.0, 1e-46, NAN, INF, "small")],
], ids=str)  # fmt: skip
def test_betas_and_eps(make, options, wrong):
    refuses(lambda: make([weight()], **options), *wrong, error=ValueError)


def test_settings_of_sgd():
    for momentum, nesterov in ((-0.1, False), (1.0, False), (0.0, True), (1.5, True), (NAN, False)):
        options = {"lr": 0.1, "momentum": momentum, "nesterov": nesterov}
        refuses(lambda o=options: SGD([weight()], **o), "momentum", momentum)
    sgd = SGD([weight()], lr=0.1)
    for norm in (0, -1.0, NAN):
        refuses(lambda n=norm: sgd.clip_grad_norm(n), "max_norm", norm, error=ValueError)


def test_settings_are_checked_when_they_are_changed():
    sgd, nesterov, adam = SGD([weight()], 0.1), SGD([weight()], 0.1, 0.9, True), AdamW([weight()])
    for optimizer, name, value, *parts in (
        (sgd, "momentum", 0.9, "momentum 0.9", "new SGD"),
        (nesterov, "momentum", 0, "momentum, with", "(0, 1)"),
        (adam, "betas", (1.0, 1.0), "betas[0]", "1.0"), (adam, "eps", 0.0, "eps", "0.0"),
    ):  # fmt: skip
        refuses(lambda o=optimizer, n=name, v=value: setattr(o, n, v), *parts, error=ValueError)
    assert (sgd.momentum, nesterov.momentum, adam.betas, adam.eps) == (0, 0.9, (0.9, 0.999), 1e-8)
    nesterov.momentum, adam.betas = 0.5, [0.8, 0.9]
    assert (nesterov.momentum, adam.betas) == (0.5, (0.8, 0.9))


@pytest.mark.parametrize("change, parts", [
    *[({"step": step}, ("step", "whole number")) for step in (1.5, "1")], ({"step": -1}, ("-1",)),
    *[({"exp_avg": wrong}, ("exp_avg", "fit"))
      for wrong in (None, [], np.zeros((2, 3)), [np.zeros((2, 3, 1))])],
    ({"exp_avg": [np.full((2, 3), "a")]}, ("exp_avg", "no numbers")),
    ({"exp_avg": [1j * np.ones((2, 3))]}, ("exp_avg",)),
    ({"exp_avg_sq": [np.full((2, 3), -1e-9)]}, ("exp_avg_sq", "below 0")),
    *[({"exp_avg_sq": [np.full((2, 3), value)]}, ("exp_avg_sq", "NaN"))
      for value in (np.nan, np.inf, -np.inf, 1e300)],
], ids=str)  # fmt: skip
def test_states_of_optimizers(change, parts):
    """Of which nothing is taken over."""
    optimizer = AdamW([weight()])
    before = optimizer.state_dict()
    state = {"exp_avg": [np.ones((2, 3))], "exp_avg_sq": [np.ones((2, 3))]}
    whole = {"step": 7, **state, **change}
    refuses(lambda: optimizer.load_state_dict(whole), "optimizer state", *parts)
    for wrong in (None, {}, {"step": 7}, {"step": 7, "momentum_buffer": state["exp_avg"]}, state):
        refuses(lambda w=wrong: optimizer.load_state_dict(w), "optimizer state", "exp_avg_sq")
    np.testing.assert_equal(optimizer.state_dict(), before)


def test_schedules():
    refuses(lambda: schedule(0, 10, decay="cosin"), "'cosin'", "'cosine'", "'linear'")
    refuses(lambda: schedule(0, 10, warmup_steps=11), "11", "10", error=ValueError)
    refuses(lambda: schedule(0, 0), "0", error=ValueError)
    for wrong in (NAN, INF, -1, "3", None):
        refuses(lambda w=wrong: schedule(w, 10), "step", repr(wrong), error=ValueError)
        refuses(lambda w=wrong: schedule(0, w), "total_steps", repr(wrong), error=ValueError)
        refuses(lambda w=wrong: schedule(0, 9, w), "warmup_steps", repr(wrong), error=ValueError)


def test_every_public_name_is_there():
    assert all(hasattr(minimixer, name) for name in minimixer.__all__)
