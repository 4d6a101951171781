"""What people do with a library, right after reading its first page."""

import copy
import pickle
import threading

import numpy as np
import pytest

from minimixer import SGD, AdamW, Function, Linear, Mixer, Module, Tensor
from minimixer import functional as F
from minimixer.checkpoint import save_checkpoint
from minimixer.nn import Dropout

SIZES = {"num_blocks": 2, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 16}
SIZES |= {"image_size": 4, "patch_size": 2, "in_channels": 1, "num_classes": 3}


def test_every_kind_of_sequence_is_an_index():
    for rows in ([0, 0, 1], (0, 0, 1), np.array([0, 0, 1])):
        x = Tensor(np.ones((3, 2)), requires_grad=True)
        x[rows, :].sum().backward()
        np.testing.assert_array_equal(x.grad, [[2, 2], [1, 1], [0, 0]])
    assert x[[]].shape == (0, 2) and x[range(2)].shape == (2, 2)


def test_an_index_array_may_be_reused_before_backward():
    x, rows = Tensor(np.ones(3), requires_grad=True), np.array([0, 1])
    y = x[rows]
    rows[:] = 2
    y.sum().backward()
    np.testing.assert_array_equal(x.grad, [1, 1, 0])


def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path):
    for change in (
        lambda m: setattr(m, "head", Linear(8, 5)),
        lambda m: m.blocks.pop(),
        lambda m: setattr(m, "class_names", [1, 2, 3]),
    ):
        model = Mixer(**SIZES)
        change(model)
        with pytest.raises(ValueError, match=r"replaced|class_names"):
            save_checkpoint(tmp_path / "checkpoint.npz", model)
        assert not list(tmp_path.iterdir())


def test_a_step_that_is_skipped_leaves_no_clipping_behind():
    layer = Linear(2, 1)
    optimizer = SGD(layer.parameters(), lr=1.0)
    layer.weight.grad = np.full((2, 1), np.inf)
    optimizer.clip_grad_norm(1.0)
    optimizer.zero_grad()
    before = layer.weight.data.copy()
    layer.weight.grad = np.ones((2, 1))
    optimizer.step()
    np.testing.assert_allclose(layer.weight.data, before - 1, rtol=1e-6)


def test_predicting_from_several_threads_leaves_the_model_training():
    model, images = Mixer(**SIZES, stochastic_depth=0.5), np.zeros((64, 4, 4, 1), np.uint8)
    threads = [threading.Thread(target=model.predict, args=(images, 1)) for _ in range(4)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        assert model.training and all(module.training for _, module in model.named_modules())
    assert model.blocks[1].drop1.active


def test_modules_are_found_wherever_they_are_kept():
    class Net(Module):
        def __init__(self):
            self.by_name = {"a": Linear(2, 3), "b": [Linear(3, 1), [Dropout(0.5)]]}
            self.owner = self

    names = [name for name, _ in Net().named_parameters()]
    assert names == [f"by_name.{p}.{w}" for p in ("a", "b.0") for w in ("weight", "bias")]
    assert len(Net().parameters()) == 4


def test_a_model_that_lost_a_part_still_moves():
    model = Mixer(**SIZES)
    model.blocks.pop()
    assert model.to("float64").head.weight.dtype == np.float64


def test_a_parameter_is_not_lost_by_assignment():
    layer = Linear(2, 2)
    with pytest.raises(TypeError, match=r"weight\.data"):
        layer.weight = layer.weight - 0.1
    with pytest.raises(ValueError, match="gradient"):
        layer.weight.grad = np.ones(2)


def test_the_learning_rate_can_be_set():
    layer = Linear(1, 1)
    optimizer = SGD(layer.parameters(), lr=1.0)
    optimizer.lr = 0.5
    before = layer.weight.data.copy()
    layer.weight.grad = np.ones((1, 1))
    optimizer.step()
    np.testing.assert_allclose(layer.weight.data, before - 0.5)
    with pytest.raises(ValueError):
        optimizer.lr = -1


def test_copies():
    model = pickle.loads(pickle.dumps(Mixer(**SIZES)))
    twin = copy.deepcopy(model)
    AdamW(twin.parameters())
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(AdamW(model.parameters()))
    with pytest.raises(TypeError, match="detach"):
        copy.deepcopy(model.head.weight * 2)


def test_tensors_and_numbers():
    x = Tensor([2.0], requires_grad=True)
    assert float(x) == 2 and np.asarray(x).dtype == np.float32
    (x * x).backward(3.0)
    np.testing.assert_array_equal(x.grad, [12])
    with pytest.raises(TypeError, match="stack"):
        Tensor([x, "x"])


def test_unknown_names_are_not_ignored():
    with pytest.raises(TypeError, match="hiden_dim"):
        Mixer.summary_of("mixer_s32", hiden_dim=5)


def test_gelu_of_huge_numbers():
    x = Tensor(np.array([-1e30, 1e30, 1e38], np.float32), requires_grad=True)
    with np.errstate(over="ignore"):
        F.gelu(x, "tanh").sum().backward()
    np.testing.assert_array_equal(x.grad, [0, 1, 1])


def test_what_a_wrong_function_returns_is_said():
    class Wrong(Function):
        def forward(self, x):
            return x * 1

        def backward(self, dy):
            return self.wrong(dy)

    x = Tensor([1.0], requires_grad=True)
    for wrong, message in ((lambda dy: 1.0, "must be an array"), (np.float64, "float64")):
        Wrong.wrong = staticmethod(wrong)
        with pytest.raises((TypeError, ValueError), match=message):
            Wrong.apply(x).backward()
