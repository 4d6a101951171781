"""The baselines of examples/: their operations held to the bar of the package's own, whole models
against finite differences and against PyTorch's numbers, and what is known of ViT and ResNet."""

import copy
import doctest
import inspect
import json
import math
from pathlib import Path

import numpy as np
import pytest
import test_operations as bar
from baseline_operations import OPERATIONS
from files_help import assert_refused
from help import by_kernels_and_plainly, draw, each_dtype, functions, leaf, put, same_state
from hypothesis import given
from hypothesis import strategies as st
from operations import in_backward, plants
from strategies import seeds
from test_oracles import assert_close, redraw, results_of

from baselines import gpu
from baselines import layers as baseline_layers
from baselines import models as baselines
from baselines import operations as baseline_ops
from minimixer import AdamW, Function, Mixer, Tensor, gradcheck, kernels, no_grad
from minimixer import functional as F
from minimixer.backend import to_numpy
from minimixer.engine import forms, products
from minimixer.engine import ops as engine_ops
from minimixer.kernels import unchanged
from minimixer.nn import loss, more_loss
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint

each_operation = pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
FIXED = [
    pytest.param(operation, fixed, id=f"{name}: {kind}")
    for name, operation in OPERATIONS.items()
    for kind, fixed in operation.fixed.items()
]
each_fixed = pytest.mark.parametrize("operation, fixed", FIXED)

# ---- the operations: the package's own tests ----------------------------------------------------


def of(*tests):
    return pytest.mark.parametrize("test", tests, ids=lambda test: test.__name__)


@each_operation
@of(bar.test_values_agree_with_numpy_within_rounding,
    bar.test_gradients_keep_dtype_and_share_no_memory,
    bar.test_memory_layout_does_not_matter, bar.test_gradients_agree_with_finite_differences,
    bar.test_hand_derived_gradients_agree_with_composed_primitives,
    bar.test_gradients_in_float32_agree_with_float64)  # fmt: skip
def test_operations(test, operation, device):
    test(operation, device)


@each_fixed
@of(bar.test_every_subset_of_inputs_that_need_gradients, bar.test_what_forward_saved_dies,
    bar.test_right_gradients_are_accepted,
    bar.test_the_bound_on_rounding_would_notice_lower_precision)  # fmt: skip
def test_fixed_inputs(test, operation, fixed, device, monkeypatch):
    given = {"operation": operation, "fixed": fixed, "device": device, "monkeypatch": monkeypatch}
    test(**{name: given[name] for name in inspect.signature(test).parameters})


PLANTS = [
    pytest.param(*p.values, plant, id=f"{p.id}: {plant.name}")
    for p in FIXED
    for plant in plants(p.values[1])
]


@pytest.mark.parametrize("operation, fixed, plant", PLANTS)
def test_planted_errors_are_rejected(operation, fixed, plant, monkeypatch):
    bar.test_planted_errors_are_rejected(operation, fixed, plant, monkeypatch, None)


def test_the_planting_itself_changes_nothing(monkeypatch):
    nothing = in_backward("nothing", lambda inputs, options, dys, dxs: dxs)
    for p in FIXED:
        operation, fixed = p.values
        with monkeypatch.context() as patch:
            nothing.install(operation.function, patch)
            bar.check_gradients(operation, fixed.case, "cpu", directions=2)


def test_nothing_is_left_out():
    functions = {cls for _, cls in inspect.getmembers(baseline_ops, inspect.isclass)}
    own = {cls for cls in functions if cls.__module__ == "baselines.operations"}
    listed = {operation.function for operation in OPERATIONS.values()}
    assert {cls for cls in own if issubclass(cls, Function)} == listed
    for operation in OPERATIONS.values():
        bar.test_every_operation_has_planted_errors_on_24_elements(operation)


def test_fast_forms_are_of_the_code_that_they_were_compared_with():
    for module in (baseline_layers, baseline_ops):
        source = Path(module.__file__).read_text(encoding="utf-8")
        assert unchanged.digest(source) == gpu.COMPARED[module.__name__]
    for plain in (baseline_layers.attention, baseline_ops.GroupNorm, baseline_ops.Conv2d,
                  baseline_ops.WeightStandardize):  # fmt: skip
        assert forms.table[plain]["cupy"] in vars(gpu).values() and forms.unchanged(plain)


@pytest.mark.parametrize("owner, name", [
    (baseline_layers, "split_heads"), (baseline_ops, "split_heads"), (baseline_ops, "softmax"),
    (more_loss.Softmax, "forward"), (loss.CrossEntropy, "backward"), (engine_ops.Add, "forward"),
    (products, "matmul"),
])  # fmt: skip
def test_fast_attention_steps_back_for_a_patch_of_what_it_stands_for(monkeypatch, owner, name):
    """In its own modules and in those of the package that it needs; what is undone counts not."""
    before = getattr(owner, name)
    monkeypatch.setattr(owner, name, lambda *inputs: before(*inputs))
    assert not forms.unchanged(baseline_layers.attention)
    monkeypatch.undo()
    assert forms.unchanged(baseline_layers.attention)


@pytest.mark.parametrize("compared, parts", [
    ({"baselines.layers": "0" * 32}, ()), ({"baselines": "0" * 32}, ()),  # edited
    ({"sys": "0" * 32}, ()), ({"baselines.layers": gpu.COMPARED["baselines.layers"]}, ("no",)),
])  # fmt: skip
def test_no_form_stands_for_what_it_was_not_compared_with(compared, parts):
    """sys has no source; the package has no module `no`."""

    def double(x):
        return x + x

    kernels.register(double, compared, *parts, cupy=None)
    assert double not in forms.table


@pytest.mark.parametrize("module", [baseline_ops, baseline_layers, baselines])
def test_worked_examples(module):
    result = doctest.testmod(module)
    assert result.attempted >= 2 and not result.failed


# ---- what is known of them ----------------------------------------------------------------------


def test_of_equal_pixels_the_first_wins(device):
    x = leaf(device, np.ones((1, 3, 3, 1)))
    baseline_ops.max_pool(x, kernel=2).sum().backward()
    assert to_numpy(x.grad)[0, :, :, 0].tolist() == [[1, 1, 0], [1, 1, 0], [0, 0, 0]]


@given(seeds, st.integers(1, 3), st.integers(1, 3), st.integers(1, 2))
def test_windows_move_with_the_image(seed, kernel, stride, steps):
    """Convolution and pooling of a shifted image are the shifted result, away from the border."""
    random = np.random.default_rng(seed)
    x, weight = random.standard_normal((2, 11, 10, 2)), random.standard_normal((kernel**2 * 2, 3))
    moved = Tensor(x[:, steps * stride :, steps * stride :])
    for function in (
        lambda x: baseline_ops.conv2d(x, weight, kernel, stride),
        lambda x: baseline_ops.max_pool(x, kernel, stride),
    ):
        still = function(Tensor(x)).data[:, steps:, steps:]
        np.testing.assert_allclose(function(moved).data, still, atol=1e-12)


@given(seeds, st.integers(0, 2), st.integers(0, 2))
def test_convolution_is_correlation_and_linear(seed, row, column):
    """A single pixel of 1 comes out as the kernel, turned by half a turn around its place."""
    weight = np.random.default_rng(seed).standard_normal((9, 2))
    x = np.zeros((1, 5, 5, 1))
    x[0, 1 + row, 1 + column] = 1
    y = baseline_ops.conv2d(Tensor(x), Tensor(weight), kernel=3, padding=1).data[0]
    kernel = weight.reshape(3, 3, 2)[::-1, ::-1]
    np.testing.assert_array_equal(y[row : row + 3, column : column + 3], kernel)
    assert np.count_nonzero(y) == weight.size


def test_attention_of_one_head_by_hand(device):
    qkv = np.random.default_rng(1).standard_normal((4, 3, 6))
    y = baseline_layers.attention(Tensor(qkv, device=device), heads=1).numpy()
    for image in range(3):
        q, k, v = np.split(qkv[:, image], 3, axis=1)
        weights = np.exp(q @ k.T / np.sqrt(2))
        weights /= weights.sum(axis=1, keepdims=True)
        np.testing.assert_allclose(y[:, image], weights @ v, rtol=1e-12)


def test_softmax_of_large_numbers_stays_finite(device):
    z = leaf(device, [[1e4, 0.0, -1e4]])
    p = baseline_ops.softmax(z)
    p.backward(put(device, [[1, 2, 3]]))
    assert p.numpy().tolist() == [[1, 0, 0]] and np.isfinite(to_numpy(z.grad)).all()


# Sizes that kernels on a GPU treat differently: tiles, packs, rows of threads, the plain code's.
LARGER = [
    *[("attention", [(tokens, 2, 3 * heads * width)], {"heads": heads})
      for tokens, heads, width in ((1, 1, 1), (16, 2, 3), (17, 1, 16), (65, 3, 64), (128, 1, 128),
                                   (129, 1, 8), (5, 1, 129))],
    *[("group_norm", [(3, side, side, channels), (channels,), (channels,)],
       {"groups": groups, "relu": relu})
      for side, channels, groups, relu in ((1, 512, 4, True), (9, 30, 3, False), (32, 128, 8, True),
                                           (2, 2048, 1, True), (2, 4100, 2, False))],
    *[("weight_standardize", [shape], {}) for shape in ((288, 64), (1, 5), (1000, 33))],
    *[("conv2d", [(4, side, side + 1, channels), (kernel**2 * channels, out)],
       {"kernel": kernel, "stride": stride, "padding": kernel // 2})
      for side, channels, out, kernel, stride in ((17, 32, 20, 3, 1), (16, 8, 12, 3, 2),
                                                  (9, 3, 8, 7, 2), (8, 64, 16, 1, 1))],
    *[("softmax", [shape], {"axis": axis})
      for shape, axis in (((7, 65), -1), ((3, 1), 1), ((2, 1024), -1), ((2, 1025), -1),
                          ((5, 33, 4), 1))],
]  # fmt: skip


@each_dtype
@pytest.mark.parametrize("name, shapes, options", LARGER, ids=lambda value: str(value))
def test_larger_sizes_agree_with_the_plain_code_in_float64(name, shapes, options, dtype, device):
    """Bounds: sums of at most 4,096 numbers of one size, in the dtype's roundings."""
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    module = baseline_layers if name == "attention" else baseline_ops

    def results(dtype, device):
        inputs = [leaf(device, array, dtype) for array in arrays]
        y = getattr(module, name)(*inputs, **options)
        dy = np.random.default_rng(1).standard_normal(y.shape)
        y.backward(put(device, dy, dtype))
        return {"y": to_numpy(y.data)} | {str(i): to_numpy(x.grad) for i, x in enumerate(inputs)}

    found = results(dtype, device)
    kernels.use("reference")
    try:
        expected = results("float64", "cpu")
    finally:
        kernels.use("auto")
    for key, value in expected.items():
        assert_close(key, found[key], value, 64 * np.finfo(dtype).eps)


@by_kernels_and_plainly
@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_a_gradient_that_is_no_number_gets_through_group_norm(wrong, kind, device):
    """Also where ReLU is off: 0 times it is NaN. It goes no further than it has to."""
    x, gamma, beta = (
        leaf(device, draw(shape, i)) for i, shape in enumerate([(2, 3, 2, 6), (6,), (6,)])
    )
    dy = np.ones(x.shape, "float32")
    with functions(kind), np.errstate(invalid="ignore"):
        y = baseline_ops.group_norm(x, gamma, beta, 3, relu=True)
        image, row, column, channel = np.argwhere(y.numpy() == 0)[0]
        dy[image, row, column, channel] = wrong
        y.backward(put(device, dy))
    spoilt = np.zeros((2, 3, 2, 3, 2), bool)  # the group, in its image
    spoilt[image, :, :, channel // 2] = True
    assert (np.isnan(to_numpy(x.grad)) == spoilt.reshape(x.shape)).all()
    for grad in (gamma.grad, beta.grad):
        assert (np.isnan(to_numpy(grad)) == (np.arange(6) == channel)).all()


BAD_SHAPES = [
    ("conv2d", [(1, 4, 4, 2), (9, 3), 3], r"\(1, 4, 4, 2\).*18 rows"),
    ("conv2d", [(4, 4, 2), (18, 3), 3], r"\(4, 4, 2\).*B, H, W"),
    ("conv2d", [(1, 2, 4, 2), (18, 3), 3], "2 x 4.*no 3 x 3"),
    ("max_pool", [(1, 4, 4, 2), 3, 1, 2], "padding 2"),
    ("max_pool", [(1, 4, 4, 2), 3, 0], "stride 0"),
    ("group_norm", [(1, 2, 2, 6), (6,), (6,), 4], r"\(1, 2, 2, 6\).*multiple of 4"),
    ("group_norm", [(1, 2, 2, 6), (6,), (5,), 3], r"\(5,\).*\(6,\)"),
    ("split_heads", [(4, 2, 6), 4], r"\(4, 2, 6\).*4 heads"),
    ("weight_standardize", [(6,)], r"\(6,\).*\(in, out\)"),
    ("softmax", [(2, 0)], r"\(2, 0\).*one element"),
]


@pytest.mark.parametrize("function, arguments, message", BAD_SHAPES)
def test_bad_shapes_are_named(function, arguments, message):
    given = [np.ones(a) if isinstance(a, tuple) else a for a in arguments]
    with pytest.raises(ValueError, match=message):
        getattr(baseline_ops, function)(*given)


# ---- PyTorch's numbers --------------------------------------------------------------------------

with np.load(Path(__file__).with_name("baselines_reference.npz")) as file:
    STORED = {name: file[name] for name in file.files}
ABOUT = json.loads(STORED["about"].tobytes())
CASES = [name for name in ABOUT if not name.startswith("model/")]
MODELS = [name.removeprefix("model/") for name in ABOUT if name.startswith("model/")]


@pytest.mark.parametrize("name", CASES)
def test_operations_agree_with_pytorch(name, device):
    function = name.partition("/")[0]
    module = baseline_layers if function == "attention" else baseline_ops
    count = sum(key.startswith(f"{name}/in") for key in STORED)
    inputs = [leaf(device, STORED[f"{name}/in{i}"], "float64") for i in range(count)]
    y = getattr(module, function)(*inputs, **ABOUT[name])
    y.backward(put(device, STORED[f"{name}/grad_out"], "float64"))
    assert_close(name, y.data, STORED[f"{name}/out"], 1e-12)
    for i, x in enumerate(inputs):
        assert_close(f"{name}, input {i}", x.grad, STORED[f"{name}/grad_in{i}"], 1e-10)


def stored_model(name):
    """(the model with the stored parameters, in float64; images, labels; what PyTorch says)"""
    config = dict(ABOUT[f"model/{name}"])
    shapes, kind = config.pop("shapes"), getattr(baselines, config.pop("class"))
    images, labels, params, grads, logits, loss, grad_images = (
        STORED[f"model/{name}/{key}"] for key in
        ("images", "labels", "params", "grads", "logits", "loss", "grad_images")
    )  # fmt: skip
    borders = np.cumsum([math.prod(shape) for shape in shapes.values()])[:-1]
    values, gradients = (
        {name: part.reshape(shapes[name])
         for name, part in zip(shapes, np.split(flat, borders), strict=True)}
        for flat in (params, grads)
    )  # fmt: skip
    model = kind(**config, dtype="float64")
    model.load_state_dict(values)
    says = {"logits": logits, "loss": loss, "images": grad_images}
    return model, images.astype("f8"), labels, says | gradients


@pytest.mark.parametrize("dtype, tolerance", [("float64", 1e-10), ("float32", 2e-4)])
@pytest.mark.parametrize("name", MODELS)
def test_models_agree_with_pytorch(name, dtype, tolerance, device):
    model, images, labels, says = stored_model(name)
    found = results_of(model.to(dtype, device), images, labels)
    assert found.keys() == says.keys()
    assert abs(says["logits"]).min() > 1e-3
    for key, value in says.items():
        assert abs(value).max() > 1e-6, f"{key}: the reference is zero"
        assert_close(key, found[key], value, tolerance)


# ---- whole models -------------------------------------------------------------------------------

VIT = {"image_size": (4, 6), "patch_size": 2, "in_channels": 2, "num_classes": 3, "num_blocks": 2,
       "hidden_dim": 6, "mlp_dim": 5, "num_heads": 2}  # fmt: skip
RESNET = {"image_size": (6, 5), "in_channels": 2, "num_classes": 3, "block_counts": (1, 1),
          "width": 4, "stem": "small"}  # fmt: skip
HYBRID = {"image_size": (8, 6), "in_channels": 1, "num_classes": 3, "num_blocks": 1,
          "hidden_dim": 6, "mlp_dim": 5, "num_heads": 3, "block_counts": (1, 1), "width": 4,
          "stem": "small"}  # fmt: skip
LARGE = RESNET | {"image_size": (11, 9), "block_counts": (2,), "stem": "imagenet"}
SMALL = {
    "ViT": lambda **o: baselines.ViT(**VIT | o),
    "ViT, mean": lambda **o: baselines.ViT(**VIT | {"pool": "mean", "approximate": "none"} | o),
    "ResNet": lambda **o: baselines.ResNet(**RESNET | o),
    "ResNet, large images": lambda **o: baselines.ResNet(**LARGE | o),
    "Hybrid": lambda **o: baselines.Hybrid(**HYBRID | o),
}
each_model = pytest.mark.parametrize("make", SMALL.values(), ids=SMALL)


def some_images(model, batch=3, seed=4):
    shape = (batch, model.height, model.width, model.in_channels)
    return np.random.default_rng(seed).standard_normal(shape)


@each_model
def test_gradients_of_whole_models(make, device):
    """Against finite differences, every parameter redrawn at random and the head not zero."""
    model = redraw(make(dtype="float64").to(device), seed=3)
    x = Tensor(some_images(model), requires_grad=True, device=device)
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradcheck(lambda *_: model(x), [x, *parameters], directions=2)
    for name, parameter in zip(names, parameters, strict=True):
        assert abs(parameter.grad).max() > 1e-6, name


def count_products(monkeypatch, run):
    """Multiply-accumulates of the plain functions' matrix products while `run()` runs. A product
    with a row of ones is a sum, and does not count."""
    counted = []

    def counting(a, b, *rest, **options):
        sizes = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
        if a.shape[-2] > 1 or not (a == 1).all():
            counted.append(math.prod(sizes) * a.shape[-2] * a.shape[-1] * b.shape[-1])
        return products.matmul(a, b, *rest, **options)

    for module, name in ((F, "matmul"), (engine_ops, "matrix_product"), (baseline_ops, "matmul")):
        monkeypatch.setattr(module, name, counting)
    with no_grad():
        run()
    return sum(counted)


@each_model
def test_multiplications_are_those_performed(make, monkeypatch, reference):
    model = make()
    images = some_images(model, batch=2)
    assert count_products(monkeypatch, lambda: model(images)) == 2 * model.macs()


def test_sizes_of_the_published_models():
    """Parameters as the authors' models have them, with 1000 classes; nothing is drawn."""
    vit = baselines.ViT(224, 16, 3, 1000, 12, 768, 3072, 12, seed=None)
    assert vit.num_parameters() == 86_567_656 and vit.macs() == 17_563_828_224
    del vit
    resnet = baselines.ResNet(224, 3, 1000, seed=None)
    assert resnet.num_parameters() == 25_549_352 and resnet.macs() == 4_089_184_256


@each_model
def test_a_model_starts_as_mixer_does(make, device):
    """At zero scores, with weights that are a function of the seed alone."""
    model, same, other = (make(seed=seed).to(device) for seed in (1, 1, 2))
    assert not model.head.weight.data.any() and not model(some_images(model)).data.any()
    state, differ = model.state_dict(), other.state_dict()
    same_state(same, state)
    for name, value in state.items():
        if value.ndim == 2 and name != "head.weight":
            assert (value != differ[name]).any(axis=0).all(), name
            expected = 1 / 50 if name == "positions" else len(value) ** -0.5
            assert 0.3 < value.std() / expected < 2  # and so finite
    model.initialize(2)
    same_state(model, differ)


@each_model
@each_dtype
def test_images_of_both_kinds(make, dtype, device):
    model = redraw(make(mean=0.3, std=0.2, dtype=dtype).to(device), seed=3)
    images = np.random.default_rng(1).integers(0, 256, some_images(model).shape, dtype="uint8")
    logits = model(images)
    assert (logits.dtype, logits.device) == (dtype, model.device) and logits.shape == (3, 3)
    same = model(((images / 255 - 0.3) / 0.2).astype(dtype))
    tolerance = 1e-3 if dtype == "float32" else 1e-9
    np.testing.assert_allclose(logits.numpy(), same.numpy(), atol=tolerance)
    np.testing.assert_allclose(model.predict_logits(images, 2), logits.numpy(), atol=tolerance)
    p = model.predict_proba(images, batch_size=2)
    np.testing.assert_allclose(p.sum(axis=1), 1, rtol=1e-5)
    np.testing.assert_array_equal(model.predict(images), logits.numpy().argmax(axis=1))


@each_model
def test_a_model_is_made_again_from_its_config(make):
    model = redraw(make(), seed=3)
    again = type(model)(**json.loads(json.dumps(model.config)))
    again.load_state_dict(model.state_dict())
    assert again.config == model.config
    images = some_images(model)
    np.testing.assert_array_equal(again(images).data, model(images).data)
    np.testing.assert_array_equal(copy.deepcopy(model)(images).data, model(images).data)
    assert make(num_classes=0)(images).shape == (3, model.head.weight.shape[0])


def train(model, optimizer, images, labels, steps):
    losses = []
    for _ in range(steps):
        optimizer.zero_grad()
        losses.append(F.cross_entropy(model(images), labels))
        losses[-1].backward()
        optimizer.step()
    return [loss.item() for loss in losses]


@each_model
def test_a_few_steps_teach_it(make, device):
    model = make(num_classes=2).to(device)
    images = some_images(model, batch=16).astype("f4")
    labels = (images.mean(axis=(1, 2, 3)) > 0).astype(np.int64)
    losses = train(model, AdamW(model.parameters(), lr=0.01), images, labels, 25)
    assert losses[0] == pytest.approx(math.log(2), rel=1e-5) and losses[-1] < 0.5 * losses[0]


@each_model
def test_bad_images_are_named(make):
    model = make()
    right, name = some_images(model), type(model).__name__
    for images, error, message in (
        (right[0], ValueError, rf"{name}: images must be .*{right.shape[2]}"),
        (right[:, :-1], ValueError, rf"{name}: images must be .*{right.shape[1] - 1}, "),
        (right[:0], ValueError, rf"{name}: the batch is empty"),
        (right * np.nan, ValueError, rf"{name}: the images, as float32, contain NaN"),
        (right.astype(np.int32), TypeError, rf"{name}: .*int32"),
    ):
        with pytest.raises(error, match=message):
            model(images)


@pytest.mark.parametrize(
    "make, changes, message", [
        ("ViT", {"patch_size": 4}, "4 x 6 image can't be cut into 4 x 4"),
        ("ViT", {"num_heads": 4}, "6 is not a multiple of 4 heads"),
        ("ViT", {"pool": "max"}, "'max'"),
        ("ViT", {"num_blocks": 0}, "num_blocks"),
        ("ViT", {"image_size": (4, 4, 4)}, "image_height"),
        ("ResNet", {"block_counts": ()}, "stages"),
        ("ResNet", {"block_counts": (1, 0)}, r"block_counts\[1\]"),
        ("ResNet", {"stem": "tall"}, "'tall'"),
        ("Hybrid", {"patch_size": 5}, "4 x 3 feature map can't be cut into 5 x 5"),
    ],
)  # fmt: skip
def test_bad_sizes_are_named(make, changes, message):
    with pytest.raises(ValueError, match=message):
        SMALL[make](**changes)


# ---- what the architectures promise -------------------------------------------------------------


@given(seeds, st.permutations(range(6)))
def test_without_positions_a_vit_sees_a_set_of_patches(seed, order):
    for make in (SMALL["ViT"], SMALL["ViT, mean"]):
        model = redraw(make(dtype="float64"), seed)
        images = some_images(model, seed=seed)
        patches = images.reshape(3, 2, 2, 3, 2, 2).transpose(0, 1, 3, 2, 4, 5).reshape(3, 6, -1)
        permuted = patches[:, order].reshape(3, 2, 3, 2, 2, 2).transpose(0, 1, 3, 2, 4, 5)
        permuted = permuted.reshape(images.shape)
        if list(order) != sorted(order):
            assert abs(model(permuted).data - model(images).data).max() > 1e-9
        model.positions.data = np.zeros(model.positions.shape)
        np.testing.assert_allclose(model(permuted).data, model(images).data, atol=1e-10)


def test_a_key_s_bias_gets_no_gradient():
    """It adds the same to a query's score with every key, which softmax does not see."""
    model = redraw(SMALL["ViT"](dtype="float64"), seed=3)
    (model(some_images(model)) * np.arange(1.0, 4.0)).sum().backward()
    for block in model.blocks:
        queries, keys, values = np.split(block.attention.qkv.bias.grad, 3)
        assert abs(keys).max() < 1e-13 and min(abs(queries).max(), abs(values).max()) > 1e-3


@given(seeds)
def test_standardised_weights_have_no_scale_and_no_mean(seed):
    model = redraw(SMALL["ResNet"](dtype="float64"), seed)
    images, random = some_images(model, seed=seed), np.random.default_rng(seed)
    before = model(images).data
    for _, module in model.named_modules():
        if isinstance(module, baseline_layers.Conv):
            columns = module.weight.shape[1]
            shift, scale = random.standard_normal(columns), random.uniform(0.5, 2, columns)
            module.weight.data = module.weight.data * scale + shift
    np.testing.assert_allclose(model(images).data, before, atol=1e-6)


def test_groups_leave_two_channels_where_they_can():
    for width, groups, found in ((64, 32, 32), (16, 32, 8), (48, 32, 16), (9, 3, 3), (1, 32, 1)):
        body = baseline_layers.Body((4, 4), 1, (1,), width, "small", groups)
        assert body.norm.groups == found


# ---- checkpoints ---------------------------------------------------------------------------------


@each_model
def test_shapes_from_the_sizes_alone_are_those_of_the_model(make):
    for changes in ({}, {"num_classes": 0}, {"in_channels": 1}):
        model = make(**changes)
        expected = dict(type(model).expected_shapes(json.loads(json.dumps(model.config))))
        assert expected == {name: value.shape for name, value in model.state_dict().items()}


@each_model
def test_a_checkpoint_is_all_that_it_takes(make, tmp_path, device):
    path = tmp_path / "checkpoint.npz"
    sizes = {"num_classes": np.int64(3), "mean": 0.25}  # as labels.max() + 1 would be
    model, other = make(seed=1, **sizes).to(device), make(seed=2, **sizes).to(device)
    images, labels = some_images(model).astype("f4"), np.array([0, 1, 2])
    optimizer, its = AdamW(model.parameters(), lr=0.01), AdamW(other.parameters(), lr=0.01)

    train(model, optimizer, images, labels, 3)
    save_checkpoint(path, model, optimizer, {"step": 3})
    kind = type(model)
    loaded = kind.load(path)
    assert type(loaded) is kind and loaded.config == model.config and not loaded.training
    assert loaded.mean.tolist() == model.mean.tolist() and loaded.mean[0] == 0.25
    same_state(loaded, model.state_dict())
    assert load_checkpoint(path, other, its) == {"step": 3}
    for each in ((model, optimizer), (other, its)):
        train(*each, images, labels, 3)
    same_state(other, model.state_dict())
    for wrong in (Mixer, *{baselines.ViT, baselines.ResNet, baselines.Hybrid} - {kind}):
        with pytest.raises(ValueError, match=f"as a {wrong.__name__}: it holds a {kind.__name__}"):
            wrong.load(path)


OF_VIT = ("patch_size", "in_channels", "num_blocks", "hidden_dim", "mlp_dim", "num_heads")
OF_RESNET = ("in_channels", "block_counts", "width")
SIZES = {baselines.ViT: OF_VIT, baselines.ResNet: OF_RESNET, baselines.Hybrid: OF_VIT + OF_RESNET}
NO_SIZES = (10**12, 10**30, 0, -1, 2.5, "8", None, [], {}, True, float("nan"))


@each_model
def test_files_that_claim_other_sizes_are_refused(make, tmp_path):
    """Before anything of these sizes is made."""
    path, model = tmp_path / "checkpoint.npz", make()
    model.save(path)
    content = dict(np.load(path))
    meta = json.loads(content["meta"].tobytes())

    def put(config):
        text = json.dumps(meta | {"config": config}).encode()
        np.savez(path, **content | {"meta": np.frombuffer(text, np.uint8)})

    def refused(config):
        put(config)
        assert_refused(path, type(model).load)

    for name in ("num_classes", *SIZES[type(model)]):
        refused({key: value for key, value in meta["config"].items() if key != name})
        for value in NO_SIZES:
            refused(meta["config"] | {name: value})
    if "block_counts" in meta["config"]:
        for counts in ([10**12], [1] * 10_000, [1, 10**9], [[1], 1], "12", [0, 1]):
            refused(meta["config"] | {"block_counts": counts})
        put(meta["config"] | {"groups": 10**12})  # no weight tells, and nothing is made for each
        assert type(model).load(path).config["groups"] == 10**12
    for more in ({"more": 1}, {"seed": 1}, {"stem": [1]}, {"pool": 5}, {"approximate": "sine"}):
        refused(meta["config"] | more)
