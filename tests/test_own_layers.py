"""Norms and operations of one's own in a Mixer: they are what runs, and all else goes on."""

import copy
import pickle

import numpy as np
import pytest
from test_mixer import bits, check_gradients, random_images, small
from test_oracles import SMALL, Case, redraw, results_of

from minimixer import AdamW, Function, Mixer, Module, Parameter, Tensor, backend, gradcheck, nn
from minimixer import functional as F
from minimixer.kernels import fused
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint


class RMSNorm(Module):
    """Each row divided by its root mean square (Zhang and Sennrich 2019), as in README."""

    def __init__(self, channels: int):
        self.weight = Parameter(np.ones(channels, "float32"))

    def forward(self, x: Tensor) -> Tensor:
        scale = ((x * x).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5
        return x * scale.to(x.dtype) * self.weight


class OwnLayerNorm(nn.LayerNorm):
    """The package's by another name, in primitives: what is computed must be the same."""

    def forward(self, x: Tensor) -> Tensor:
        x = x - x.mean(axis=-1, keepdims=True).to(x.dtype)
        variance = (x * x).mean(axis=-1, keepdims=True).to(x.dtype)
        return x * (variance + self.epsilon) ** -0.5 * self.weight + self.bias


@pytest.mark.parametrize("checkpoint_blocks", [False, True])
@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_norm_of_ones_own_is_the_one_that_runs(device, checkpoint_blocks, rate):
    case = Case(SMALL | {"stochastic_depth": rate}, batch=4, seed=2)
    model = case.model(device)
    changes = {"norm": OwnLayerNorm, "checkpoint_blocks": checkpoint_blocks}
    other = Mixer(**case.config | changes, dtype="float64").to(device)
    other.load_state_dict(model.state_dict())
    images, labels = case.images(), case.labels()
    expected, found = results_of(model, images, labels), results_of(other, images, labels)
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-9, atol=1e-11, err_msg=name)
    other.norm.epsilon = 1.0
    other.blocks[0].norm2.epsilon = 1.0
    assert not np.allclose(results_of(other, images, labels)["logits"], expected["logits"])


def test_gradients_with_a_norm_of_ones_own(device):
    check_gradients(small(device, norm=RMSNorm), random_images(), directions=2)


def test_a_norm_of_ones_own_leaves_the_mlps_fast(monkeypatch):
    calls = []
    mlp, forward = fused.mlp, RMSNorm.forward
    monkeypatch.setattr(RMSNorm, "forward", lambda *a: calls.append("norm") or forward(*a))
    monkeypatch.setattr(fused, "mlp", lambda *a: calls.append("mlp") or mlp(*a))
    model = small("cpu", "float32", norm=RMSNorm, num_blocks=2)
    model(random_images().astype("f4"))
    fast = backend.form_of(F.LayerNorm, model.stem.weight.data) is not None
    assert calls == ["norm", *(["mlp"] if fast else [])] * 4 + ["norm"]


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_a_norm_of_ones_own_in_two_bytes(device, precision, reference):
    model = small(device, "float32", norm=RMSNorm)
    images, labels = random_images().astype("f4"), np.array([0, 1, 2])
    wide = results_of(model, images, labels)
    low = results_of(model.set_precision(precision), images, labels)
    for name, value in wide.items():
        if name != "images":
            error = abs(low[name] - value).max() / abs(value).max()
            assert error < (0.02 if precision == "float16" else 0.1), name
    assert low["logits"].tobytes() != wide["logits"].tobytes()


def test_what_can_be_done_with_a_norm_of_ones_own():
    plain, model = Mixer(**SMALL), redraw(Mixer(**SMALL, norm=RMSNorm), seed=1)
    norms = [p for name, p in plain.named_parameters() if "norm" in name]
    assert plain.num_parameters() - model.num_parameters() == sum(p.size for p in norms) / 2
    assert model.summary().parameters == model.num_parameters()
    assert [type(m) for _, m in model.named_modules()].count(RMSNorm) == 5
    images = random_images().astype("f4")
    for other in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert bits(other(images)) == bits(model(images))
    height, width = model.config["image_size"]
    larger = model.resize((2 * height, 2 * width))
    assert isinstance(larger.blocks[1].norm1, RMSNorm)
    tiled = np.tile(images, (1, 2, 2, 1))
    np.testing.assert_allclose(larger(tiled).data, model(images).data, rtol=1e-3, atol=1e-5)
    named = Mixer.from_name("mixer_s32", num_blocks=1, num_classes=3, norm=RMSNorm, seed=None)
    assert isinstance(named.norm, RMSNorm)
    by_hand = Mixer.summary_of("mixer_s32", num_blocks=1, num_classes=3).parameters - 3 * 512
    assert named.num_parameters() == named.summary().parameters == by_hand


def test_what_is_no_norm():
    for norm in ("RMSNorm", None, 3, int, RMSNorm(3), lambda channels: RMSNorm(channels)):
        message = "only a name" if norm == "RMSNorm" else "class of Modules"
        with pytest.raises(TypeError, match=message):
            Mixer(**SMALL, norm=norm)


class Normalize(Function):
    """x / sqrt(mean x^2 + e) along the last axis: an operation of one's own."""

    def forward(self, x):
        self.scale = ((x * x).mean(-1, keepdims=True) + 1e-6) ** -0.5
        self.y = x * self.scale
        return self.y

    def backward(self, dy):
        return self.scale * (dy - self.y * (dy * self.y).mean(-1, keepdims=True))


class Normed(RMSNorm):
    def forward(self, x: Tensor) -> Tensor:
        return Normalize.apply(x) * self.weight


@pytest.mark.parametrize("precision", ["float32", "float16", "bfloat16"])
def test_an_operation_of_ones_own_in_a_mixer(tmp_path, device, precision):
    """Checked, used in a layer, trained with, and gone on with from a checkpoint, bit by bit."""
    x = Tensor(np.random.default_rng(0).standard_normal((3, 4)), device=device, requires_grad=True)
    assert gradcheck(Normalize.apply, [x])
    images, labels = random_images().astype("f4"), np.array([0, 1, 2])

    def train(model, optimizer, steps):
        for _ in range(steps):
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        return loss.item()

    def make(seed):
        model = Mixer(**SMALL, norm=Normed, seed=seed, precision=precision).to(device)
        return model, AdamW(model.parameters(), lr=0.01)

    model, optimizer = make(0)
    start = F.cross_entropy(model(images), labels).item()
    train(model, optimizer, 10)
    save_checkpoint(tmp_path / "c.npz", model, optimizer)
    assert train(model, optimizer, 10) < 0.5 * start
    again, its = make(1)
    load_checkpoint(tmp_path / "c.npz", again, its)
    train(again, its, 10)
    for name, value in model.state_dict().items():
        assert again.state_dict()[name].tobytes() == value.tobytes(), name
    loaded = Mixer.load(tmp_path / "c.npz", norm=Normed).set_precision(precision)
    assert isinstance(loaded.norm, Normed) and np.isfinite(loaded.predict_proba(images)).all()
