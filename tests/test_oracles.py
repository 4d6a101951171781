"""The whole model against two others: the Mixer by hand (NumPy, no engine) and PyTorch's numbers.

The helpers above the tests are used by test_mixer.py too. Every parameter is redrawn at random
before models are compared, the head included, and the reference must not be zero anywhere.
"""

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import mixer_by_hand as by_hand
from minimixer import SGD, Adam, AdamW, Mixer, Tensor
from minimixer import functional as F
from minimixer.backend import blocks, to_device, to_numpy

HERE = Path(__file__).parent
FORMS = ("tanh", "none")


# ---- models drawn at random ----------------------------------------------------------------------


class Case(NamedTuple):
    """A model's arguments, and what to call it with."""

    config: dict[str, Any]
    batch: int
    seed: int

    def model(self, device: str, dtype: str = "float64", **changes: Any) -> Mixer:
        return redraw(Mixer(**self.config | changes, dtype=dtype).to(device), self.seed)

    def images(self) -> np.ndarray:
        height, width = self.config["image_size"]
        shape = (self.batch, height, width, self.config["in_channels"])
        return np.random.default_rng(self.seed + 1).standard_normal(shape)

    def labels(self) -> np.ndarray:
        return np.random.default_rng(self.seed + 2).integers(
            self.config["num_classes"], size=self.batch
        )


@st.composite
def cases(draw, tiny: bool = False) -> Case:
    """Whole Mixers. C from 4 on: LayerNorm of very few channels is nearly constant."""

    def size(low: int, high: int) -> int:
        return draw(st.integers(low, min(high, low + 2) if tiny else high))

    patch = size(1, 4)
    config = {
        "image_size": (patch * size(1, 4), patch * size(1, 3)),
        "patch_size": patch,
        "in_channels": size(1, 3),
        "num_classes": size(2, 6),
        "num_blocks": draw(st.integers(1, 2 if tiny else 4)),
        "hidden_dim": size(4, 12),
        "tokens_mlp_dim": size(1, 9),
        "channels_mlp_dim": size(1, 11),
        "approximate": draw(st.sampled_from(FORMS)),
    }
    return Case(config, size(1, 5), draw(st.integers(0, 2**32)))


def examples(device: str, cpu: int, cuda: int = 3) -> settings:
    """So many examples, and as many times more as the profile draws more than usual."""
    usual, count = 16, cpu if device == "cpu" else cuda
    return settings(max_examples=max(1, count * settings.default.max_examples // usual))


def redraw(model: Mixer, seed: int) -> Mixer:
    """Every parameter at random, of the size that keeps activations near 1."""
    rng = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        value = rng.standard_normal(parameter.shape)
        if parameter.ndim == 2:
            value /= np.sqrt(parameter.shape[name.endswith("token_mixing.w2")])
        else:
            value = 0.3 * value + ("norm" in name and name.endswith("weight"))
        parameter.data = value
    return model


# ---- what a model says, and whether two agree ----------------------------------------------------

Results = dict[str, np.ndarray]  # "logits", "loss", "images" and the parameters: their gradients


def results_of(model: Mixer, images: np.ndarray, labels: np.ndarray) -> Results:
    """The package's logits, loss and gradients."""
    device, dtype = model.device, model.dtype
    x = Tensor(images.astype(dtype), requires_grad=True, device=device)
    model.zero_grad()
    logits = model(x)
    loss = F.cross_entropy(logits, to_device(labels, device))
    loss.backward()
    found = {"logits": logits.data, "loss": loss.data, "images": x.grad}
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, f"{name} got no gradient"
        found[name] = parameter.grad
    assert {(value.dtype, Tensor(value).device) for value in found.values()} == {
        (dtype, x.device)
    }, "a result of another dtype, or on another device"
    return {name: to_numpy(value) for name, value in found.items()}


def has_no_gradient(name: str) -> bool:
    """The one gradient that is zero up to rounding: see PAPER.md's consequence of LayerNorm."""
    return name.endswith("token_mixing.b2")


def gradient_size(results: Results) -> float:
    return max(abs(v).max() for name, v in results.items() if name not in ("logits", "loss"))


def assert_not_zero(expected: Results) -> None:
    """A comparison with zeros, or with noise, would prove nothing."""
    assert abs(expected["logits"]).max() > 1e-3 and expected["loss"] > 0
    largest = gradient_size(expected)
    assert largest > 1e-6
    for name, value in expected.items():
        if has_no_gradient(name):
            assert abs(value).max() < 1e-12 * largest, name
        else:
            assert abs(value).max() > 1e-9 * largest, f"{name}: the reference is zero"


def assert_close(
    name: str, found: Any, expected: np.ndarray, tolerance: float = 1e-10, size: float | None = None
) -> None:
    """The largest difference, relative to the largest expected value (or to `size`)."""
    found = to_numpy(found)
    assert found.shape == expected.shape, f"{name}: shape {found.shape}, not {expected.shape}"
    size = abs(expected).max() if size is None else size
    error = abs(found - expected).max()
    assert error <= tolerance * size, f"{name}: differs by {error:.3g}, largest value {size:.3g}"


def assert_same_results(found: Results, expected: Results, tolerance: float = 1e-10) -> None:
    assert_not_zero(expected)
    assert found.keys() == expected.keys()
    largest = gradient_size(expected)
    for name, value in expected.items():
        size = largest if has_no_gradient(name) else None
        assert_close(name, found[name], value, tolerance, size)


def check_shapes_by_hand(model: Mixer) -> None:
    """Names and shapes of all Parameters, and their count, as the Mixer by hand has them."""
    keys = "image_size patch_size in_channels num_classes num_blocks hidden_dim"
    sizes = [model.config[key] for key in (*keys.split(), "tokens_mlp_dim", "channels_mlp_dim")]
    expected = by_hand.init(np.random.default_rng(0), *sizes, np.float32)
    found = {name: value.shape for name, value in model.state_dict().items()}
    assert found == {name: value.shape for name, value in expected.items()}
    assert model.num_parameters() == sum(value.size for value in expected.values())


def check_by_hand(model: Mixer, images: np.ndarray, labels: np.ndarray) -> None:
    """Logits, loss and every gradient of a float64 model, as the Mixer by hand has them."""
    state, approximate = model.state_dict(), model.config["approximate"]
    logits, cache = by_hand.forward(state, images, model.patch_size, approximate)
    loss, d_logits = by_hand.cross_entropy(logits, labels)
    gradients, d_images = by_hand.backward(state, cache, d_logits)
    expected = {"logits": logits, "loss": np.asarray(loss), "images": d_images, **gradients}
    assert_same_results(results_of(model, images, labels), expected)


# ---- against the Mixer by hand -------------------------------------------------------------------


def test_any_mixer_agrees_with_the_mixer_by_hand(device):
    @examples(device, cpu=50, cuda=8)
    @given(cases())
    def check(case):
        model = case.model(device)
        check_shapes_by_hand(model)
        check_by_hand(model, case.images(), case.labels())

    check()


@pytest.mark.parametrize("approximate", FORMS)
def test_a_mixer_larger_than_a_block_agrees_with_the_mixer_by_hand(device, approximate):
    """On the CPU some functions go through their arrays in pieces: see backend.blocks."""
    config = {
        "image_size": (20, 28), "patch_size": 4, "in_channels": 3, "num_classes": 5,
        "num_blocks": 2, "hidden_dim": 201, "tokens_mlp_dim": 45, "channels_mlp_dim": 310,
        "approximate": approximate,
    }  # fmt: skip
    case = Case(config, batch=7, seed=4)
    for size in (35 * 7 * 201, 45 * 7 * 201, 35 * 7 * 310):  # one LayerNorm, two hidden layers
        parts = [part.stop - part.start for part in blocks(np.empty(size))]
        assert len(parts) > 2 and parts[-1] < parts[0]
    check_by_hand(case.model(device), case.images(), case.labels())


SMALL = {
    "image_size": (12, 20), "patch_size": 4, "in_channels": 3, "num_classes": 5, "num_blocks": 2,
    "hidden_dim": 10, "tokens_mlp_dim": 7, "channels_mlp_dim": 13,
}  # fmt: skip


# ---- float32 -------------------------------------------------------------------------------------


# Each rounding adds a relative error of at most eps / 2. Along a path from the images to the loss
# there are, in a block, two LayerNorms (mean, difference, variance, root, quotient, product,
# sum: 7 each), two sums of the residual (4) and two MLPs (product, bias, 8 in GELU, product: 11
# each); the way back is as long. The sums inside a product add up, in float32, errors of random
# sign: as if it were one rounding. If all of them conspired, the result would be off by
BLOCK_ROUNDINGS = 2 * (2 * 7 + 4 + 2 * 11)
OTHER_ROUNDINGS = 2 * (2 + 7 + 3 + 4)  # stem, last LayerNorm, mean and head, loss


@pytest.mark.parametrize("approximate", FORMS)
@pytest.mark.parametrize("num_blocks", [1, 4, 12])
def test_float32_agrees_with_float64_to_rounding(device, num_blocks, approximate):
    config = {
        "image_size": (16, 24), "patch_size": 4, "in_channels": 3, "num_classes": 7,
        "num_blocks": num_blocks, "hidden_dim": 32, "tokens_mlp_dim": 20, "channels_mlp_dim": 48,
        "approximate": approximate,
    }  # fmt: skip
    case = Case(config, batch=6, seed=num_blocks)
    single = case.model(device, "float32")
    double = Mixer(**config, dtype="float64").to(device)
    double.load_state_dict(single.state_dict())  # float64 copies of float32 numbers
    images = case.images().astype("float32").astype("float64")
    expected = results_of(double, images, case.labels())
    check_by_hand(double, images, case.labels())
    found = results_of(single, images, case.labels())
    eps = np.finfo("float32").eps
    bound = eps / 2 * (OTHER_ROUNDINGS + num_blocks * BLOCK_ROUNDINGS)
    assert_same_results(found, expected, bound)
    assert max(abs(found[n] - expected[n]).max() for n in found) > 1e-8, "was it float32 at all?"


# ---- against PyTorch -----------------------------------------------------------------------------

TORCH = dict(np.load(HERE / "torch_reference.npz"))


def torch_part(prefix: str) -> Results:
    return {k.removeprefix(prefix): v for k, v in TORCH.items() if k.startswith(prefix)}


def torch_model(device: str, approximate: str = "tanh") -> Mixer:
    """The model of make_torch_reference.py, with its parameters."""
    sizes = {name: int(value) for name, value in torch_part("config/").items()}
    image_size = sizes.pop("image_height"), sizes.pop("image_width")
    sizes = {key: value for key, value in sizes.items() if key in SMALL}
    options = {"approximate": approximate, "dtype": "float64"}
    model = Mixer(image_size=image_size, **sizes, **options).to(device)
    model.load_state_dict(torch_part("param/"))
    return model


def check_torch(model: Mixer) -> None:
    """Logits, loss and every gradient, as PyTorch has them."""
    stored = torch_part(model.config["approximate"] + "/")
    expected = {"logits": stored["logits"], "loss": stored["loss"], "images": stored["grad_images"]}
    expected |= {k.removeprefix("grad/"): v for k, v in stored.items() if k.startswith("grad/")}
    assert_same_results(results_of(model, TORCH["images"], TORCH["labels"]), expected)


@pytest.mark.parametrize("approximate", FORMS)
def test_model_agrees_with_pytorch(device, approximate):
    model = torch_model(device, approximate)
    check_shapes_by_hand(model)
    check_torch(model)
    difference = abs(TORCH["tanh/logits"] - TORCH["none/logits"]).max()
    assert 1e-6 < difference < 1e-2  # the two forms of GELU do differ in the reference


@pytest.mark.parametrize("kind", ["adamw", "adam", "sgd"])
def test_optimizer_steps_agree_with_pytorch(device, kind):
    model, stored = torch_model(device), torch_part(kind + "/")
    options = {"lr": float(stored["lr"]), "weight_decay": float(stored["weight_decay"])}
    if kind == "sgd":
        options |= {"momentum": float(stored["momentum"]), "nesterov": bool(stored["nesterov"])}
    else:
        options |= {"betas": tuple(stored["betas"].tolist()), "eps": float(stored["eps"])}
    optimizer = {"adamw": AdamW, "adam": Adam, "sgd": SGD}[kind](model.parameters(), **options)
    images, labels = (to_device(TORCH[name], device) for name in ("images", "labels"))
    norms, losses = [], []
    for _ in range(int(stored["steps"])):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(images), labels)
        loss.backward()
        norms.append(float(optimizer.clip_grad_norm(float(stored["max_norm"]))))
        losses.append(float(loss.data))
        optimizer.step()
    clipped = stored["norms"] > stored["max_norm"]
    assert clipped.any() and not clipped.all()
    assert_close("norms", np.array(norms), stored["norms"])
    assert_close("losses", np.array(losses), stored["losses"])
    assert_close("logits", model(images).data, stored["logits"])
    for name, value in model.state_dict().items():
        expected, start = stored["param/" + name], TORCH["param/" + name]
        if has_no_gradient(name):  # Adam divides rounding noise by its own size
            assert_close(name, value, expected, 1e-12 if kind == "sgd" else 1e-9, size=1)
        else:
            assert_close(name, value - start, expected - start)
            assert abs(expected - start).max() > 1e-3


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("case", ["labels", "labels_smooth", "targets", "targets_smooth"])
def test_cross_entropy_agrees_with_pytorch(device, case, reduction):
    stored = torch_part("ce/")
    logits = Tensor(stored["logits"], requires_grad=True, device=device)
    target = to_device(stored[case.removesuffix("_smooth")], device)
    smoothing = float(stored["label_smoothing"]) if case.endswith("_smooth") else 0.0
    loss = F.cross_entropy(logits, target, label_smoothing=smoothing, reduction=reduction)
    loss.backward()
    assert_close("loss", loss.data, stored[f"{case}/{reduction}/loss"], 1e-13)
    assert_close("gradient", logits.grad, stored[f"{case}/{reduction}/grad_logits"], 1e-13)


def test_layer_norm_agrees_with_pytorch(device):
    stored = torch_part("ln/")
    inputs = [Tensor(stored[n], requires_grad=True, device=device) for n in ("x", "weight", "bias")]
    h = F.layer_norm(*inputs, float(stored["eps"]))
    assert_close("output", h.data, stored["output"], 1e-12)
    h.backward(to_device(stored["grad_output"], device))
    for name, value in zip(("x", "weight", "bias"), inputs, strict=True):
        assert_close(name, value.grad, stored["grad/" + name], 1e-11)


@pytest.mark.parametrize("approximate", FORMS)
def test_gelu_agrees_with_pytorch(device, approximate):
    """Element by element, not relative to the largest."""
    x = Tensor(TORCH["gelu/x"], requires_grad=True, device=device)
    y = F.gelu(x, approximate)
    y.sum().backward()
    for found, name in ((y.data, "value"), (x.grad, "derivative")):
        expected = TORCH[f"gelu/{approximate}/{name}"]
        # for negative x, 1 + tanh and 1 + erf are as exact as 1 is, not as what is left of it
        np.testing.assert_allclose(to_numpy(found), expected, rtol=1e-14, atol=2e-14)
