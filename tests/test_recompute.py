"""Blocks that keep their input alone: the same bits, less memory."""

import functools
import sys
import tracemalloc

import numpy as np
import pytest
from strategies import each_half
from test_oracles import Case

from minimixer import Dropout, Linear, Mixer, Module, Tensor, gradcheck, no_grad
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.nn.recompute import recompute

CASE = Case(
    {
        "image_size": (16, 16), "patch_size": 4, "in_channels": 3, "num_classes": 7,
        "num_blocks": 3, "hidden_dim": 32, "tokens_mlp_dim": 24, "channels_mlp_dim": 48,
    },
    batch=6, seed=1,
)  # fmt: skip


def gradients(model: Mixer, device: str) -> tuple[bytes, bytes]:
    model.random.set(3, 2)
    model.zero_grad()
    images = CASE.images().astype(model.dtype)
    loss = F.cross_entropy(model(images), to_device(CASE.labels(), device))
    model.random.set(9, 4)  # backward draws what forward drew all the same
    loss.backward()
    assert to_numpy(model.random.counters).tolist() == [9, 4]
    assert abs(to_numpy(model.buffer.gradients)).max() > 1e-3
    return to_numpy(loss.data).tobytes(), to_numpy(model.buffer.gradients).tobytes()


@pytest.mark.parametrize("stochastic_depth", [0.0, 0.5])
@pytest.mark.parametrize("dtype", ["float64", "float32", *each_half.args[1]])
def test_the_same_bits(device, dtype, stochastic_depth):
    kind = {} if dtype == "float64" else {"precision": dtype}
    parameters = dtype if dtype == "float64" else "float32"
    model = CASE.model(device, parameters, stochastic_depth=stochastic_depth, **kind)
    plain = gradients(model, device)
    model.checkpoint_blocks = True
    assert gradients(model, device) == plain
    model.stem.weight.requires_grad = model.stem.bias.requires_grad = False
    model.blocks[0].norm1.weight.requires_grad = False
    frozen = gradients(model, device)[1]
    model.checkpoint_blocks = False
    assert gradients(model, device)[1] == frozen


def test_less_is_kept(device):
    def kept(**changes) -> int:
        """Bytes alive between forward and backward, beyond the model."""
        model = Mixer(16, 2, 6, 32, 64, 128, in_channels=1, num_classes=3, **changes).to(device)
        images = np.ones((32, 16, 16, 1), dtype="float32")
        model(images)  # whatever the first time makes
        used = lambda: tracemalloc.get_traced_memory()[0]  # noqa: E731
        if device != "cpu":
            used = sys.modules["cupy"].get_default_memory_pool().used_bytes
        tracemalloc.start()
        try:
            before, scores = used(), model(images)
            return used() - before + 0 * scores.size
        finally:
            tracemalloc.stop()

    assert kept(checkpoint_blocks=True) < 0.35 * kept()


class Pair(Module):
    """Two outputs, dropout, and something handed on."""

    def __init__(self):
        self.first, self.second, self.dropout = Linear(3, 4, seed=1), Linear(3, 2), Dropout(0.5)
        self.parameters()

    def forward(self, x, y, passed):
        return self.first(self.dropout(x)) * y.sum(), passed, self.second(y)


def test_several_inputs_and_outputs(device):
    layer = Pair().to("float64", device)
    x, y = (Tensor(np.random.default_rng(i).standard_normal((5, 3)), device=device) for i in (0, 1))
    plain, again = layer(x, y, None), recompute(layer, x, y, None)
    assert plain[1] is again[1] is None
    for a, b in ((plain[0], again[0]), (plain[2], again[2])):
        assert (to_numpy(a.data) == to_numpy(b.data)).all()

    def both(x, y):
        a, _, b = recompute(layer, x, y, None)
        return (a * a).sum() + (b * b * b).sum()

    gradcheck(both, [x, y])
    x.requires_grad = y.requires_grad = True
    for only in (0, 2):  # one output is used, twice in backward
        found = []
        for run in (layer, functools.partial(recompute, layer)):
            layer.zero_grad()
            x.grad = y.grad = None
            total = run(x, y, None)[only].sum()
            total.backward(retain_graph=True)
            total.backward()
            grads = [p.grad for p in (x, y, *layer.parameters())]
            found.append([None if g is None else to_numpy(g).tobytes() for g in grads])
        assert found[0] == found[1] and any(found[0])


def test_what_it_is_not_for(device):
    layer = Pair().to("float64", device)
    x = Tensor(np.ones((5, 3)), device=device)
    with no_grad():
        assert not recompute(layer, x, x, None)[0].requires_grad
    for change, message in (
        (layer.eval, "was changed between forward"),
        (lambda: setattr(layer.dropout, "p", 0.9), "probability or seed of a random layer"),
        (lambda: setattr(layer.dropout.random, "seed", 9), "probability or seed of a random layer"),
        (lambda: setattr(layer.first.weight, "data", np.zeros((3, 4))), "changed after forward"),
    ):
        outputs = recompute(layer.train(), x, x, None)
        change()
        with pytest.raises(ValueError, match=message):
            outputs[0].sum().backward()
