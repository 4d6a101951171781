"""Models in bfloat16, float16 and tf32, and float16's loss scale."""

import copy
import json
import pickle
import re
import sys
from typing import Any

import numpy as np
import pytest
from conftest import _cuda
from help import small_mixer
from strategies import each_half
from test_oracles import Case, has_no_gradient, redraw

from minimixer import AdamW, Dropout, Linear, Mixer, Parameter, Tensor, data
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.engine.precision import HALF_DTYPES, as_dtype, check_precision, widen
from minimixer.model.mixer import MixerBlock
from minimixer.model.precision import FIRST_SCALE
from minimixer.nn import StochasticDepth, loss_scale
from minimixer.nn.loss_scale import FINITE
from minimixer.training import checkpoint
from minimixer.training.settings import STEP

# Relative error of one rounding; TF32 cuts the factors of products to 11 digits.
UNIT = {"float32": 2.0**-24, "tf32": 2.0**-10, "float16": 2.0**-11, "bfloat16": 2.0**-8}


@pytest.fixture(params=list(UNIT))
def precision(request, device) -> str:
    if request.param == "tf32" and device == "cpu":
        pytest.skip("tf32 is a GPU's")
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return request.param


CASE = Case(
    {
        "image_size": (16, 24), "patch_size": 4, "in_channels": 3, "num_classes": 7,
        "num_blocks": 2, "hidden_dim": 32, "tokens_mlp_dim": 24, "channels_mlp_dim": 48,
    },
    batch=6, seed=1,
)  # fmt: skip


def model_in(precision: str, device: str, **changes: Any) -> Mixer:
    return CASE.model(device, "float32", precision=precision, **changes)


def backward(model: Mixer, factor: float = 1.0) -> dict[str, np.ndarray]:
    """Logits, loss and every gradient, in float64."""
    model.zero_grad()
    logits = model(CASE.images().astype(model.dtype))
    loss = F.cross_entropy(logits, to_device(CASE.labels(), model.device)) * factor
    loss.backward()  # NumPy's warnings are errors in these tests, and an overflow is no cause
    assert logits.dtype == loss.dtype == model.dtype
    found = {"logits": logits.data, "loss": loss.data}
    for name, p in model.named_parameters():
        assert p.dtype == p.grad.dtype == model.dtype
        found[name] = p.grad
    return {name: to_numpy(value).astype("float64") for name, value in found.items()}


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float((a * b).sum() / (np.linalg.norm(a) * np.linalg.norm(b)))


# ---- a model in each precision ------------------------------------------------------------------

# What is rounded to the short dtype on the way to the logits: in a block two LayerNorms (s, h,
# gamma, beta), two MLPs (u, u with its bias, g, y) and their w1, b1, w2, b2; outside, the patches,
# stem's weight, product and bias, and the last LayerNorm. Signs are random: squares add up.
ROUNDINGS = CASE.config["num_blocks"] * 2 * (4 + 4 + 4) + 4 + 4
FLOAT32_STEPS = 200  # roundings of arithmetic in float32, as test_oracles.py counts them


def test_a_model_agrees_with_float64_to_rounding(device, precision):
    model = model_in(precision, device)
    double = CASE.model("cpu", "float64")
    double.load_state_dict(model.state_dict())
    found, expected = backward(model), backward(double)
    allowed = ROUNDINGS**0.5 * UNIT[precision] + FLOAT32_STEPS * 2.0**-24
    for name in ("logits", "loss"):
        error = np.linalg.norm(found[name] - expected[name]) / np.linalg.norm(expected[name])
        assert error <= allowed, name
        if name == "logits" and precision != "tf32":  # which small products may do without
            assert error > UNIT[precision] / 16, "was it computed in this precision?"
    for name, value in expected.items():
        if not has_no_gradient(name):
            assert np.linalg.norm(value) > 1e-3 and cosine(found[name], value) > 0.999, name


def test_gradients_of_features_agree_with_float32(device, precision):
    """Of blocks' outputs as of scores, at the Parameters and at the images."""

    def gradients(model):
        images = Tensor(CASE.images().astype("float32"), requires_grad=True, device=device)
        first, last = model.features(images, [0, -1])
        (first.to("float32").mean() + (last.to("float32") ** 2).mean()).backward()
        used = [p for name, p in model.named_parameters() if name.startswith(("stem", "blocks"))]
        return [to_numpy(v.grad).astype("float64") for v in (images, *used) if v.ndim > 1]

    found = gradients(model_in(precision, device))
    for gradient, right in zip(found, gradients(model_in("float32", device)), strict=True):
        assert cosine(gradient, right) > 0.999
        assert 0.98 < np.linalg.norm(gradient) / np.linalg.norm(right) < 1.02


def test_what_is_stored_in_which_dtype(device, precision, monkeypatch):
    seen, forward = [], MixerBlock.forward

    def spy(self, x):
        seen.append(x.dtype)
        return forward(self, x)

    monkeypatch.setattr(MixerBlock, "forward", spy)
    model = model_in(precision, device)
    backward(model)
    assert len(seen) == 2 and set(seen) == {model.activation_dtype}
    short = as_dtype(precision) if precision in HALF_DTYPES else None
    assert model.activation_dtype == (short or "float32")
    assert model.buffer.values.dtype == model.buffer.gradients.dtype == np.float32
    assert getattr(model.buffer.low, "dtype", None) == short


def train(model: Mixer, steps: int = 30) -> list[float]:
    optimizer, losses = AdamW(model.parameters(), lr=3e-3), []
    for _ in range(steps):
        losses.append(float(backward(model)["loss"]))
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
    return losses


def test_training_follows_float32(device, precision):
    losses, expected = train(model_in(precision, device)), train(model_in("float32", device))
    assert losses[-1] < 0.5 * losses[0]
    assert max(abs(a - b) for a, b in zip(losses, expected, strict=True)) < 0.05 * expected[0]


def test_predict_in_every_precision(device, precision):
    model, images = model_in(precision, device), CASE.images().astype("float32")
    expected = model_in("float32", "cpu").predict_proba(images)
    found = model.predict_proba(images, batch_size=4)
    assert found.dtype == np.float32 and abs(found.sum(axis=1) - 1).max() < 1e-6
    assert abs(found - expected).max() < 2 * ROUNDINGS**0.5 * UNIT[precision] + 1e-4
    assert (model.predict(images) == found.argmax(axis=1)).all()


def test_switching_leaves_no_stale_copies(device):
    """To and fro, with new weights in between: always what a new model says."""
    pytest.importorskip("ml_dtypes")
    model = model_in("float32", device)
    order = ["bfloat16", "float16", "bfloat16", "float32", "float16"]
    order += ["tf32", "bfloat16"] if device != "cpu" else []
    for seed, precision in enumerate(order):
        redraw(model, seed)
        assert model.set_precision(precision) is model
        new = redraw(model_in(precision, device), seed)
        found, expected = backward(model), backward(new)
        assert all(found[n].tobytes() == expected[n].tobytes() for n in expected), precision
        scale = FIRST_SCALE if precision == "float16" else 1
        assert to_numpy(model.buffer.loss_scale).tolist() == [scale, 0]


@each_half
def test_random_layers_draw_the_same_as_in_float32(device, dtype):
    x = Tensor(np.ones((30, 40, 5), "float32"), device=device)
    for layer in (Dropout(0.4), StochasticDepth(0.4)):
        single, short = layer(x), layer(x.to(dtype))
        assert short.dtype == as_dtype(dtype) and single.dtype == np.float32
        rounded = to_numpy(widen(single.data.astype(short.dtype)))
        assert (to_numpy(widen(short.data)) == rounded).all() and 0 < rounded.mean() < 1.6


# ---- float16's loss scale -----------------------------------------------------------------------


def scaled_model(device: str, scale: float) -> tuple[Mixer, AdamW]:
    model = model_in("float16", device)
    model.buffer.loss_scale[0] = scale
    return model, AdamW(model.parameters(), lr=1e-3)


def test_an_overflow_skips_the_step_and_halves_the_scale(device):
    model, optimizer = scaled_model(device, 2.0**40)
    buffer = model.buffer

    def state():
        now = (buffer.values, buffer.read_low(as_dtype("float16")), *optimizer.state.values())
        return [to_numpy(a).tobytes() for a in now]

    before, buffer.loss_scale[1] = state(), 5  # steps that it held
    for skipped in range(40):
        assert state() == before and optimizer.control[STEP] == 0
        assert to_numpy(buffer.loss_scale).tolist() == [2.0 ** (40 - skipped), 0 if skipped else 5]
        backward(model)
        optimizer.clip_grad_norm(1.0)
        optimizer.step()
        assert optimizer.control[FINITE] == 1  # outside of a step
        if optimizer.control[STEP]:
            break
    assert skipped >= 5 and optimizer.control[STEP] == 1
    assert all(a != b for a, b in zip(state(), before, strict=True))
    assert np.isfinite(to_numpy(buffer.values)).all()
    assert to_numpy(buffer.loss_scale).tolist() == [2.0 ** (40 - skipped), 1]


def test_good_steps_double_the_scale(device, monkeypatch):
    monkeypatch.setattr(loss_scale, "SCALE_HOLDS", 3)
    model, optimizer = scaled_model(device, 16.0)
    scales = []
    for _ in range(7):
        backward(model)
        optimizer.step()
        scales.append(float(model.buffer.loss_scale[0]))
    assert scales == [16, 16, 32, 32, 32, 64, 64]


def test_a_gradient_below_float16_survives_thanks_to_the_scale(device):
    tiny = 2.0**-26  # times activations' gradients of at most 2^-4: half of 2^-24 rounds to 0
    expected = backward(model_in("float32", device), tiny)
    assert 0 < abs(expected["stem.weight"]).max() < 1e-5
    without, _ = scaled_model(device, 1.0)
    assert not backward(without, tiny)["stem.weight"].any()
    found = backward(scaled_model(device, 2.0**36)[0], tiny)
    for name, value in expected.items():
        if not has_no_gradient(name) and name != "logits":
            assert value.ndim == 0 or cosine(found[name], value) > 0.999, name
            assert 0.95 < np.linalg.norm(found[name]) / np.linalg.norm(value) < 1.05, name


def test_gradients_do_not_depend_on_the_scale(device):
    """Bit for bit, for powers of two at which nothing is subnormal or overflows."""
    found = [backward(scaled_model(device, 2.0**power)[0]) for power in (20, 22)]
    assert all(found[0][name].tobytes() == found[1][name].tobytes() for name in found[0])


# ---- single operations --------------------------------------------------------------------------


@each_half
def test_to_and_back_is_differentiable(device, dtype):
    x = Tensor(np.float32([1, 1 + 2**-12, -3.14159]), requires_grad=True, device=device)
    short = x.to(dtype)
    back = short.to("float32")
    assert short.dtype == as_dtype(dtype) and back.dtype == np.float32
    assert to_numpy(back.data)[:2].tolist() == [1, 1]
    assert short.to(dtype) is short and short.device == x.device
    back.backward(to_device(np.float32([2, 3, 1 + 2**-12]), device))
    assert x.grad.dtype == np.float32 and to_numpy(x.grad).tolist() == [2, 3, 1]


# ---- bad input ----------------------------------------------------------------------------------


def test_unknown_precisions(device):
    model = model_in("float32", device)
    for wrong in ("fp8", "float64", None):
        with pytest.raises(ValueError, match=f"precision {wrong!r}: use float32, tf32, float16"):
            model.set_precision(wrong)
    assert model.precision == "float32"
    with pytest.raises(ValueError, match="'int8'"):
        Mixer(**CASE.config, precision="int8")


@pytest.mark.parametrize("first", ["cpu", _cuda])
def test_tf32_on_the_cpu_is_an_error_when_used(first):
    model = model_in("tf32", "cpu").to(first)  # it may move to a GPU yet, and back
    if first != "cpu":
        assert model(CASE.images()).dtype == np.float32
    with pytest.raises(ValueError, match="tf32 is a GPU's: on the CPU use float32"):
        model.to("cpu")(CASE.images())
    assert model.set_precision("float32")(CASE.images()).shape == (6, 7)


def test_bfloat16_without_ml_dtypes(device, monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    model = model_in("float32", device)
    with pytest.raises(ValueError, match="bfloat16 needs ml_dtypes: pip install ml_dtypes"):
        model.set_precision("bfloat16")
    assert model.set_precision("float16")(CASE.images()).dtype == np.float32


@each_half
def test_float64_models_stay_float64(device, dtype):
    with pytest.raises(ValueError, match=rf"{dtype} is for float32.*float64"):
        CASE.model(device, "float64", precision=dtype)
    model = CASE.model(device, "float32", precision=dtype).to("float64")
    with pytest.raises(ValueError, match=rf"{dtype} is for float32.*float64.*set_precision"):
        model(CASE.images())
    assert model.set_precision("float32")(CASE.images()).dtype == np.float64


def test_an_optimizer_that_met_an_overflow_goes_on_in_float32(device):
    """Once a model was in float16, its optimizer must forget that after set_precision."""
    model, optimizer = scaled_model(device, 2.0**40)
    backward(model)
    assert optimizer.scaled
    optimizer.step()
    before = to_numpy(model.buffer.values).copy()
    backward(model.set_precision("float32"))
    assert not optimizer.scaled
    optimizer.step()
    assert (to_numpy(model.buffer.values) != before).any()


@each_half
def test_the_gradient_of_the_images_is_not_scaled(device, dtype):
    found = []
    for precision in ("float32", dtype):
        images = Tensor(CASE.images().astype("float32"), device=device, requires_grad=True)
        model = CASE.model(device, "float32", precision=precision)
        F.cross_entropy(model(images), CASE.labels()).backward()
        found.append(to_numpy(images.grad))
    assert 0.9 < np.linalg.norm(found[1]) / np.linalg.norm(found[0]) < 1.1
    layer = Linear(4, 3).to(device)  # nor is that of a Linear outside a Mixer
    layer(Tensor(np.ones((2, 4), "float32"), device=device).to(dtype)).mean().backward()
    assert abs(to_numpy(layer.weight.grad) - 1 / 3).max() < UNIT[dtype]


def test_a_deep_copy_keeps_its_precision_and_can_change_it(device, precision):
    model = model_in(precision, device)
    other = copy.deepcopy(model)
    assert other.precision == precision and other.buffer.precision == model.buffer.precision
    assert (other.buffer.loss_scale == model.buffer.loss_scale).all()
    assert other.buffer.loss_scale is not model.buffer.loss_scale
    model = copy.deepcopy(CASE.model(device, "float32")).set_precision(precision)
    assert all(p.buffer is model.buffer for p in model.parameters())
    assert model.buffer.precision == ("tf32" if precision == "tf32" else None)


def test_a_pickled_model_that_has_run_still_learns(device, precision):
    model = model_in(precision, device)
    backward(model)
    again = pickle.loads(pickle.dumps(model))
    losses = train(again, 10)
    assert losses[-1] < 0.9 * losses[0]
    again.stem.weight.data = np.zeros(again.stem.weight.shape, "float32")
    assert not again.stem.weight.data.any() and (again.buffer.values[:4] == 0).all()
    assert not widen(again.stem.weight.read(again.activation_dtype)).any()


@pytest.mark.parametrize("scale", [[0.0, 0.0], [1e300, 0.0], [1.0], None, [1, 2], [65536.0, -1.0]])
def test_hostile_loss_scales_in_checkpoints(scale, tmp_path):
    model = model_in("float16", "cpu")
    checkpoint.save_checkpoint(tmp_path / "c.npz", model)
    with np.load(tmp_path / "c.npz") as file:
        arrays = dict(file)
    meta = json.loads(arrays.pop("meta").tobytes()) | {"loss_scale": scale}
    meta = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    np.savez(tmp_path / "c.npz", **arrays, meta=meta)
    with pytest.raises(ValueError, match="loss_scale"):
        Mixer.load(tmp_path / "c.npz")


@pytest.mark.parametrize("precision", ["bfloat16", "tf32"])
def test_gpus_that_are_too_old(precision, monkeypatch):
    monkeypatch.setattr("minimixer.engine.precision._compute_capability", lambda device: 75)
    with pytest.raises(ValueError, match=rf"{precision}.*8\.0.*cuda:0 has 7\.5: use float32 or"):
        check_precision(precision, "cuda:0")
    assert check_precision("float16", "cuda:0") == np.float16


# ---- the order of bytes -------------------------------------------------------------------------

Z = np.random.default_rng(3).standard_normal((4, 3))
PIXELS = np.random.default_rng(4).standard_normal((4, 8, 8, 1))


def backward_from(gradient):
    x = Tensor(Z.astype(gradient.dtype.name), requires_grad=True)
    (x * 2).backward(gradient)
    return x.grad


def loaded(weight):
    model = small_mixer()
    model.load_state_dict(model.state_dict() | {"head.weight": weight})
    return model.head.weight


def resumed(moments):
    optimizer = AdamW([Parameter(np.ones((4, 3), "float32"))], lr=0.1)
    optimizer.load_state_dict(optimizer.state_dict() | {"exp_avg": [moments]})
    return optimizer.state_dict()["exp_avg"][0]


# What is done with an array of this dtype: each an array or a Tensor.
IN_EITHER_ORDER = {
    "Tensor f2": ("f2", Z, Tensor),
    "Tensor f4": ("f4", Z, lambda a: Tensor(a, requires_grad=True)),
    "Tensor i8": ("i8", Z, Tensor),
    "dtype": ("f4", Z, lambda a: Tensor(Z, dtype=a.dtype)),
    "Parameter": ("f8", Z, Parameter),
    "operation": ("f4", Z, lambda a: a * Tensor(Z.astype("f4")) + a),
    "linear": ("f4", Z, lambda a: F.linear(a, a.T, a[:, 0])),
    "backward": ("f4", Z, backward_from),
    "images f2": ("f2", PIXELS, lambda a: small_mixer(seed=1).features(a, [0])[0]),
    "images f4": ("f4", PIXELS, lambda a: small_mixer(seed=1).features(a, [0])[0]),
    "images f8": ("f8", PIXELS, lambda a: small_mixer().predict_proba(a)),
    "a Tensor of images": ("f4", PIXELS, lambda a: small_mixer()(Tensor(a))),
    "batches": ("f4", PIXELS, lambda a: data.Batches(a, np.arange(4), 2).batch(0, 0)[0]),
    "labels of batches": ("i4", Z, lambda a: data.Batches(PIXELS, a, 2).batch(0, 0)[1]),
    "logits": ("f4", Z, lambda a: F.cross_entropy(a, [0, 2, 1, 1])),
    "labels": ("i4", np.array([0, 2, 1, 1]), lambda a: F.cross_entropy(Tensor(Z), a)),
    "distributions": ("f4", Z * 0 + 1 / 3, lambda a: F.cross_entropy(Tensor(Z), a)),
    "index": ("i8", np.array([2, 0]), lambda a: Tensor(Z)[a, a]),
    "state": ("f4", np.ones((8, 3)), loaded),
    "moments": ("f4", Z, resumed),
}


@pytest.mark.parametrize("name", IN_EITHER_ORDER)
def test_arrays_from_a_machine_of_the_other_order_of_bytes(name):
    dtype, values, function = IN_EITHER_ORDER[name]
    native = values.astype(dtype)
    swapped = native.astype(native.dtype.newbyteorder("S"))
    results = (function(array) for array in (swapped, native))
    found, right = (y.data if isinstance(y, Tensor) else y for y in results)
    assert found.dtype == right.dtype and found.dtype.isnative
    np.testing.assert_array_equal(found, right)


@pytest.mark.parametrize("dtype", ["longdouble", "complex64", ">c8", "datetime64[s]", "U3", "bool"])
def test_numbers_that_are_none_of_ours(dtype):
    """One sentence, with the dtype."""
    array = np.zeros((4, 3), dtype)
    if array.dtype == np.float64:
        pytest.skip("a long double is a double here")
    name = "|".join(re.escape(str(d)) for d in (array.dtype, array.dtype.newbyteorder("=")))
    for function in (
        lambda: Tensor(array, requires_grad=True), lambda: Parameter(array),
        lambda: array[..., 0] + Tensor(np.ones(4, "f4")), lambda: F.gelu(array),
        lambda: F.cross_entropy(array, [0] * 4),
        lambda: F.cross_entropy(Tensor(Z), array[:, 0]), lambda: F.cross_entropy(Tensor(Z), array),
        lambda: small_mixer()(np.zeros(PIXELS.shape, dtype)),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=name):
            function()
