"""model.inspect: what a forward pass computes, by name; the model's own modules compute it."""

import gc
import weakref

import numpy as np
import pytest
from help import by_kernels_and_plainly, functions
from test_mixer import bits, random_images, small
from test_own_layers import RMSNorm

from minimixer import Mixer, Module, Tensor, gradcheck, no_grad
from minimixer import functional as F
from minimixer.backend import to_numpy
from minimixer.model.block import MixerBlock, MixerMLP

PARTS = [
    "norm1", "token_mixing.hidden", "token_mixing",
    "norm2", "channel_mixing.hidden", "channel_mixing",
]  # fmt: skip
NAMES = ["patches", "tokens", *[f"blocks.1.{part}" for part in PARTS], "blocks.0", "norm", "pooled"]


def arrays(model: Mixer, images) -> dict[str, np.ndarray]:
    return {name: to_numpy(x.data) for name, x in model.inspect(images).items()}


@by_kernels_and_plainly
@pytest.mark.parametrize("changes", [{}, {"checkpoint_blocks": True}, {"norm": RMSNorm}])
def test_all_entries_belong_together(device, kind, changes):
    """Each is what the next is made of, in a model in training that skips at random too."""
    with functions(kind):
        model = small(device, stochastic_depth=0.6, **changes).train()
        model.random.set(5)
        images = random_images(6)
        seen, logits = arrays(model, images), to_numpy(model(images).data)
    names = [f"blocks.{i}{part and '.' + part}" for i in range(len(model.blocks))
             for part in (*PARTS, "")]  # fmt: skip
    assert [*seen] == ["patches", "tokens", *names, "norm", "pooled", "logits"]
    assert abs(logits).max() > 0.1
    np.testing.assert_allclose(seen["logits"], logits, rtol=1e-9, atol=1e-12)

    def close(name, expected):
        np.testing.assert_allclose(seen[name], expected, rtol=1e-9, atol=1e-12, err_msg=name)

    state = model.state_dict()
    close("tokens", seen["patches"] @ state["stem.weight"] + state["stem.bias"])
    before, skipped = seen["tokens"], 0
    for i, block in enumerate(model.blocks):
        name = f"blocks.{i}"
        added = {}
        for mixing, drop in ("token_mixing", block.drop1), ("channel_mixing", block.drop2):
            first = mixing == "token_mixing"
            w1, b1, w2, b2 = (state[f"{name}.{mixing}.{p}"] for p in ("w1", "b1", "w2", "b2"))
            h = seen[f"{name}.norm{1 if first else 2}"]
            u = w1.T @ h + b1[:, None] if first else h @ w1 + b1
            close(f"{name}.{mixing}.hidden", F.gelu(Tensor(u), block.token_mixing.approximate).data)
            g = seen[f"{name}.{mixing}.hidden"]
            y = w2 @ g + b2[:, None] if first else g @ w2 + b2  # (B, S, C)
            factors = to_numpy(drop(Tensor(np.ones((1, 6, 1)), device=device)).data)[0][:, None]
            skipped += (factors == 0).sum()
            close(f"{name}.{mixing}", y * factors)
            added[mixing] = seen[f"{name}.{mixing}"]
        close(name, before + added["token_mixing"] + added["channel_mixing"])
        before = seen[name]
    assert 0 < skipped < 12 * len(model.blocks)
    close("pooled", seen["norm"].mean(axis=1))
    close("logits", seen["pooled"] @ state["head.weight"] + state["head.bias"])


@pytest.mark.parametrize("name", NAMES)
def test_gradients_lead_from_each_entry_to_the_images(device, name):
    model = small(device)
    images = Tensor(random_images(2), requires_grad=True, device=device)
    assert gradcheck(lambda x: model.inspect(x)[name], [images], directions=2)
    weights = model.inspect(images)[name]
    (weights * weights).sum().backward()
    assert abs(to_numpy(images.grad)).max() > 0
    with no_grad():
        assert not model.inspect(images)[name].requires_grad


def test_gradients_in_float16_are_not_scaled(device):
    """As of features: where gradients enter the float16 part, they are; where they leave, not."""
    found = []
    for precision in ("float32", "float16"):
        model = small(device, "float32").set_precision(precision)
        images = Tensor(random_images().astype("f4"), requires_grad=True, device=device)
        seen = model.inspect(images)
        total = sum(seen[name].to("float32").mean() for name in ("blocks.0.norm1", "pooled"))
        total.backward()
        found.append(to_numpy(images.grad))
    np.testing.assert_allclose(found[1], found[0], rtol=0.05, atol=0.02 * abs(found[0]).max())


class Half(Module):
    """A block of one's own, with layers within."""

    def __init__(self, block):
        self.block = block

    def forward(self, x):
        return self.block(x) * 0.5


def test_a_block_or_an_mlp_of_ones_own_is_one_entry(device):
    model = small(device, num_blocks=3)
    model.blocks[1] = Half(model.blocks[1])
    model.blocks[2].token_mixing = Half(model.blocks[2].token_mixing)
    seen = arrays(model, images := random_images())
    assert [name for name in seen if name.startswith("blocks.1")] == ["blocks.1"]
    own = [name.removeprefix("blocks.2.") for name in seen if name.startswith("blocks.2.")]
    assert own == [part for part in PARTS if part != "token_mixing.hidden"]
    np.testing.assert_allclose(seen["logits"], to_numpy(model(images).data), rtol=1e-9)


@by_kernels_and_plainly
def test_what_is_patched_is_what_is_heard(device, kind, monkeypatch):
    """A method of one module, of all, or a block that stands at two places."""
    with functions(kind):
        model, images = small(device), random_images()
        mlp, block = model.blocks[0].channel_mixing, model.blocks[0]
        plain, hidden = arrays(model, images), mlp.hidden
        mlp.hidden = lambda x: hidden(x) * 2
        seen = arrays(model, images)
        name = "blocks.0.channel_mixing.hidden"
        np.testing.assert_allclose(seen[name], 2 * plain[name], rtol=1e-9)
        np.testing.assert_allclose(seen["logits"], to_numpy(model(images).data), rtol=1e-9)
        assert not np.allclose(seen["logits"], plain["logits"])
        del mlp.hidden
        forward = MixerBlock.forward
        monkeypatch.setattr(MixerBlock, "forward", lambda self, x: forward(self, x) * 2)
        model.blocks = [block, block]
        seen = arrays(model, images)
        np.testing.assert_allclose(seen["logits"], to_numpy(model(images).data), rtol=1e-9)
        parts = [seen[f"blocks.{i}.{mixing}"] for i in (0, 1) for mixing in PARTS[2::3]]
        added = seen["blocks.0"] + parts[2] + parts[3]
        np.testing.assert_allclose(seen["blocks.1"], 2 * added, rtol=1e-9, atol=1e-12)


def test_the_model_is_left_as_it_was(device):
    model = small(device)
    before = [(module, dict(vars(module))) for _, module in model.named_modules()]
    model.inspect(random_images())
    for module, attributes in before:
        assert vars(module) == attributes
    assert {type(m) for m, _ in before} >= {MixerMLP, MixerBlock}
    with pytest.raises(ValueError, match="images must be"):
        model.inspect(random_images()[:, 1:])


def test_a_model_without_a_head_has_no_logits(device):
    model = small(device, num_classes=0)
    seen = arrays(model, images := random_images())
    assert "logits" not in seen
    np.testing.assert_allclose(seen["pooled"], to_numpy(model(images).data), rtol=1e-9)


@pytest.mark.parametrize("ask", ["inspect", "features"])
def test_what_is_dropped_is_freed_at_once(device, ask):
    """No circle of references is left, also of a model whose forward failed."""
    model, images = small(device), random_images()
    wrong = small(device)
    wrong.blocks[-1].norm2 = RMSNorm(3).to(device)

    def result(model):
        return (
            model.inspect(images)["tokens"] if ask == "inspect" else model.features(images, [0])[0]
        )

    def recorded():
        return {id(o) for o in gc.get_objects() if type(o) is Tensor and o.node is not None}

    gc.collect()
    gc.disable()
    before = recorded()  # of other tests
    try:
        seen = result(model)
        kept = weakref.ref(seen), weakref.ref(seen.node)
        del seen
        assert [ref() for ref in kept] == [None, None]
        images = Tensor(images, requires_grad=True, device=device)
        with pytest.raises(ValueError):
            result(wrong)
        assert recorded() <= before
    finally:
        gc.enable()


def test_features_keep_as_little_as_the_model_with_checkpoint_blocks(device):
    def nodes(x):
        todo, found = [x.node], set()
        while todo:
            node = todo.pop()
            found.add(node)
            todo += [p[0] for p in node.parents if p and p[1] is not None and p[0] not in found]
        return sorted(type(node).__name__ for node in found)

    results = []
    for again in (False, True):
        model = small(device, checkpoint_blocks=again)
        images = Tensor(random_images(), requires_grad=True, device=device)
        first, last = model.features(images, [0, -1])
        if again:
            assert nodes(last).count("_Recompute") == len(model.blocks)
        (first * last).sum().backward()
        results.append(
            [bits(images.grad), *[bits(p.grad) for p in model.parameters() if p.has_grad]]
        )
    assert results[0] == results[1]


class Slotted(Module):
    __slots__ = ("factor",)

    def __init__(self, channels):
        self.factor = 0.5

    def forward(self, x):
        return x * self.factor


@by_kernels_and_plainly
def test_all_that_a_forward_accepts_is_heard(device, kind):
    """Functions in place of layers, layers with slots, methods bound to the model anew."""
    with functions(kind):
        model, images = small(device, num_blocks=4), random_images()
        model.blocks[0].norm1 = Slotted(1)
        model.blocks[0].drop1 = model.blocks[1].token_mixing = lambda x: x * 2
        model.blocks[2] = F.gelu
        mixed = type(model.blocks[3]).forward
        model.blocks[3].forward = (lambda self, x: mixed(self, x) * 3).__get__(model.blocks[3])
        model.norm = lambda x: x
        seen = arrays(model, images)
        np.testing.assert_allclose(seen["logits"], to_numpy(model(images).data), rtol=1e-9)
        np.testing.assert_allclose(seen["blocks.0.norm1"], 0.5 * seen["tokens"], rtol=1e-12)
        np.testing.assert_allclose(seen["norm"], seen["blocks.3"], rtol=1e-12)
        assert {"blocks.1.token_mixing", "blocks.2", "blocks.3.norm2"} <= set(seen)
        assert not np.allclose(seen["blocks.3"], seen["blocks.2"])
        first, third = model.features(images, [0, np.int64(2)])
        np.testing.assert_allclose(to_numpy(first.data), seen["blocks.0"], rtol=1e-12)
        np.testing.assert_allclose(to_numpy(third.data), seen["blocks.2"], rtol=1e-12)


def test_features_that_can_not_be_heard(device):
    model, images = small(device), random_images()
    pooled = model.pooled
    model.pooled = lambda images: pooled(images)
    with pytest.raises(ValueError, match=r"features: blocks.0, blocks.1 can't be listened to"):
        model.features(images, [0, 1])
    for number in (0.0, np.float64(0), Tensor([0]), "0", None):
        with pytest.raises(IndexError, match="there is no block"):
            model.features(images, [number])
