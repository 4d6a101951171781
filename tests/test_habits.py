"""What people do with a library, right after reading its first page."""

import copy
import math
import subprocess
import sys
import threading

import numpy as np
import pytest
from help import close, put, same, small_mixer

import minimixer
from minimixer import SGD, AdamW, Linear, Mixer, Module, Parameter, Tensor, no_grad, ops, rearrange
from minimixer import functional as F
from minimixer.backend import to_numpy
from minimixer.engine import habits
from minimixer.nn import Dropout


def test_every_kind_of_sequence_is_an_index():
    """Which may be written over before backward."""
    for rows in ([0, 0, 1], (0, 0, 1), np.array([0, 0, 1])):
        x = Tensor(np.ones((3, 2)), requires_grad=True)
        y = x[rows, :]
        if isinstance(rows, np.ndarray):
            rows[:] = 2
        y.sum().backward()
        same(x.grad, [[2, 2], [1, 1], [0, 0]])
    assert x[[]].shape == (0, 2) and x[range(2)].shape == (2, 2)


def test_a_step_that_is_skipped_leaves_no_clipping_behind():
    layer = Linear(2, 1)
    optimizer = SGD(layer.parameters(), lr=1.0)
    layer.weight.grad = np.full((2, 1), np.inf)
    optimizer.clip_grad_norm(1.0)
    for lr in (1.0, 0.5):
        optimizer.zero_grad()
        optimizer.lr = lr
        before = layer.weight.data.copy()
        layer.weight.grad = np.ones((2, 1))
        optimizer.step()
        close(layer.weight.data, before - lr, rtol=1e-6)


def test_predicting_from_several_threads_leaves_the_model_training():
    model, images = small_mixer(stochastic_depth=0.5), np.zeros((64, 8, 8, 1), np.uint8)
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


def test_a_parameter_is_not_lost_by_assignment():
    layer = Linear(2, 2)
    with pytest.raises(TypeError, match=r"weight\.data"):
        layer.weight = layer.weight - 0.1
    for values in (np.ones((2, 2), "float32"), [[1.0, 2.0], [3.0, 4.0]], 0.5):
        with pytest.raises(TypeError, match=r"weight\.data"):
            layer.weight = values
    layer.bias = None
    layer.bias, layer.weight = Parameter(np.ones(2, "float32")), Linear(2, 2)
    layer = Linear(2, 2)
    with pytest.raises(ValueError, match="gradient"):
        layer.weight.grad = np.ones(2)


def test_what_is_not_copied():
    layer = Linear(2, 2)
    with pytest.raises(TypeError, match="state_dict"):
        copy.deepcopy(AdamW(layer.parameters()))
    with pytest.raises(TypeError, match="detach"):
        copy.deepcopy(layer.weight * 2)


def test_tensors_and_numbers():
    x = Tensor([2.0], requires_grad=True)
    (x * x).backward(3.0)
    same(x.grad, [12])
    with pytest.raises(TypeError, match="stack"):
        Tensor([x, "x"])


# ---- NumPy's protocols ---------------------------------------------------------------------------


def test_a_snapshot_does_not_follow_the_training(device):
    layer = Linear(2, 1).to(device)
    t = Tensor(layer.weight.data)
    for value in (t, layer.weight):
        for snapshot in (np.array(value), np.copy(value), np.array(value, dtype="float64")):
            before = snapshot.copy()
            value.data[...] = value.data + 1
            same(snapshot, before)
            snapshot[...] = 99
            assert not (value.numpy() == 99).any()
    state = layer.state_dict()
    layer.weight.data[...] = 7
    assert not (state["weight"] == 7).any()


def test_numpys_rules_for_copy_and_dtype(device):
    t = Tensor([1.0, 2.0], device=device)
    on_cpu = device == "cpu"
    for view in (np.asarray(t), np.array(t, copy=None), np.asarray(t, dtype="float32")):
        assert np.shares_memory(view, t.numpy()) is on_cpu
    assert np.asarray(t, dtype="float64").dtype == "float64"
    assert not np.shares_memory(np.array(t), t.numpy())
    for dtype in ("float64", None, "float32"):
        if on_cpu and dtype != "float64":
            assert np.shares_memory(np.array(t, copy=False, dtype=dtype), t.data)
        else:
            with pytest.raises(ValueError, match="copy"):
                np.array(t, copy=False, dtype=dtype)


def test_numpys_functions_keep_the_gradient_or_say_that_they_cannot(device):
    def gradient(function):
        x = Tensor([[0.5, 1.5], [2.5, 3.5]], requires_grad=True, device=device)
        y = function(x)
        assert isinstance(y, Tensor) and y.device == x.device
        y.sum().backward()
        return y.numpy(), to_numpy(x.grad)

    for theirs, ours in (
        (np.exp, lambda x: x.exp()), (np.tanh, lambda x: x.tanh()), (np.abs, abs),
        (lambda x: np.add(x, 2.0), lambda x: x + 2), (lambda x: np.power(x, 3), lambda x: x**3),
        (np.sum, lambda x: x.sum()), (lambda x: np.mean(x, axis=0), lambda x: x.mean(axis=0)),
        (lambda x: np.max(x, axis=1, keepdims=True), lambda x: x.max(axis=1)), (np.min, Tensor.min),
        (lambda x: np.reshape(x, (4, 1)), lambda x: x.reshape(4, 1)), (np.transpose, lambda x: x.T),
        (lambda x: np.concatenate([x, x]), lambda x: rearrange.concatenate([x, x])),
        (lambda x: np.stack([x, x], axis=1), lambda x: rearrange.stack([x, x], 1)),
        (lambda x: np.where((x > 1).data, x, 0.0), lambda x: ops.where(x > 1, x, 0)),
        (lambda x: np.clip(x, 1, 3), lambda x: x.clip(1, 3)),
    ):  # fmt: skip
        for found, right in zip(gradient(theirs), gradient(ours), strict=True):
            same(found.ravel(), right.ravel())
    x = Tensor([1.0, 2.0], requires_grad=True, device=device)
    for function in (  # also floats inside of tuples and lists, and complex numbers
        np.sin, lambda x: np.dot(x, x), np.prod, np.linalg.norm, np.cumsum, np.var, np.add.reduce,
        lambda x: np.split(x, 2), lambda x: np.meshgrid(x, x), np.gradient, np.fft.fft,
        lambda x: np.linalg.svd(x[None]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"np\.\w+ of a Tensor .* gradient.*x\.numpy\(\)"):
            function(x)
    assert np.zeros_like(x).tolist() == [0, 0] and np.full_like(x, 2).tolist() == [2, 2]
    assert np.histogram(x, bins=2)[0].tolist() == [1, 1]
    assert np.allclose(x, [1, 2]) and np.shape(x) == (2,) and np.argsort(x).tolist() == [0, 1]
    assert np.linalg.norm(x.detach()) == np.linalg.norm(x.numpy())
    with no_grad():
        assert np.prod(x) == 2
    a = put(device, [1.0, 2.0])
    for y in (a + x, a - x, a * x, a / x, a**x, a @ x):
        assert isinstance(y, Tensor) and y.requires_grad
    for y in (a == x, a <= x, a >= x, x == a, ~(a != x), ~(a < x), ~(a > x), (a == a) & (x == x)):
        assert isinstance(y, Tensor) and y.dtype == bool and y.numpy().all()
    assert ((a + 5) // x.detach()).tolist() == [6, 3] and (a + 1 > x).tolist() == [True, True]


# ---- single numbers, whole numbers ---------------------------------------------------------------


def test_a_tensor_of_one_number_is_a_number(device):
    for shape in ((), (1,), (1, 1)):
        x = Tensor(np.full(shape, 2.71828, "float32"), requires_grad=True, device=device)
        assert f"{x:.4f}" == "2.7183" and f"{x:10.1e}" == "   2.7e+00" and f"{x}" == repr(x)
        assert round(x, 2) == round(x.item(), 2) and round(x) == 3 and int(x) == 2
        assert math.floor(x) == 2 and math.ceil(x) == 3 and float(x) == x.item() == complex(x)
        assert +x is x and bool(x) and x.tolist() == x.numpy().tolist()
        y = +(x ** np.array(2))
        assert y.dtype == "float32" and y.item() == pytest.approx(2.71828**2)
    index = Tensor(np.array([1, 3, 2]), device=device).argmax()
    assert (
        "abc"[index] == "b" and range(9)[index] == 1 and int(index) == 1 and f"{index:03d}" == "001"
    )
    x = Tensor([[1.0, 2.0], [3.0, 4.0]], device=device)
    assert 4 in x and 5 not in x and [row.tolist() for row in reversed(x)] == [[3, 4], [1, 2]]
    for wrong, words in (
        (lambda: float(x), "float()"), (lambda: int(x), "int()"), (lambda: round(x, 2), "round()"),
        (lambda: f"{x:.2f}", "'.2f'"),
    ):  # fmt: skip
        with pytest.raises(TypeError, match=r"one element.*\(2, 2\).*\.mean\(\)") as caught:
            wrong()
        assert words in str(caught.value)
    with pytest.raises(TypeError, match=r"whole number, got float32 .*argmax"):
        "abc"[x[0, 0]]


def test_the_accuracy(device):
    logits = Tensor([[0.1, 0.9], [0.8, 0.2], [0.3, 0.7], [0.6, 0.4]], device=device)
    labels = put(device, [1, 0, 0, 0], "int64")
    right = logits.argmax(axis=1) == labels
    assert right.mean().item() == 0.75 and right.mean().dtype == "float32"
    assert right.sum().item() == 3 and right.sum().dtype == np.int64
    assert (~right).sum().item() == 1 and right.any().item() and not right.all().item()
    both = right & (Tensor(labels) == 0)
    assert both.tolist() == [False, True, False, True]
    assert (right.sum() / len(labels)).item() == 0.75 and f"{right.mean():.0%}" == "75%"
    with pytest.raises(TypeError, match=r"& does not work on float32 and float32.*x > 0"):
        logits & logits
    assert (Tensor(labels) // 2).tolist() == [0, 0, 0, 0] and (logits % 1).dtype == "float32"
    with pytest.raises(TypeError, match=r"// has no gradient.*detach"):
        Tensor([1.0], requires_grad=True, device=device) // 2


def test_numbers_alone_are_read_as_float32():
    for y, wanted in (
        (ops.clip(1.5, 0, 1), 1), (ops.exp(0.0), 1), (ops.add(1, 2), 3), (rearrange.sum(2.5), 2.5),
        (rearrange.reshape(2, (1, 1)), [[2]]), (ops.where(np.array(True), 1, 2), 1),
        (ops.relu(-1), 0),
    ):  # fmt: skip
        assert y.dtype == "float32" and y.tolist() == wanted


# ---- names ---------------------------------------------------------------------------------------


def test_pytorchs_short_names(device):
    x = Tensor(np.arange(24.0).reshape(2, 3, 4) - 5, requires_grad=True, device=device)
    a = x.numpy()
    for y, wanted in (
        (x.flatten(), a.ravel()), (x.flatten(1), a.reshape(2, 12)),
        (x.flatten(0, 1), a.reshape(6, 4)), (x.relu(), a * (a > 0)),
        (x.transpose((1, 0, 2)), a.transpose(1, 0, 2)), (x.view(6, -1), a.reshape(6, 4)),
        (x.permute(2, 0, 1), a.transpose(2, 0, 1)),
        (x.swapaxes(0, -1), a.swapaxes(0, 2)), (x.unsqueeze(1), a[:, None]),
        (x.unsqueeze(-1), a[..., None]), (x[:1].squeeze(), a[0]), (x[:1].squeeze(0), a[0]),
        (x.squeeze(0), a), (x.min(axis=1), a.min(axis=1)), (x.cpu(), a), (x.float(), a),
        (x.var(axis=1), a.var(axis=1, ddof=1)), (x.std(correction=0), a.std()), (x.double(), a),
        (x.to(dtype="float32", device="cpu"), a), (x.to(device=device), a), (x.half(), a),
    ):  # fmt: skip
        assert y.requires_grad and y.shape == wanted.shape
        close(y.numpy(), wanted, rtol=1e-6)
    assert x.detach().long().dtype == np.int64 and x.numel() == 24 and x.dim() == 3
    assert x.argmin().item() == 0 and x.argmax(axis=2, keepdims=True).shape == (2, 3, 1)
    assert Tensor(2.0).flatten().shape == (1,)
    for wrong in (lambda: x.flatten(2, 1), lambda: x.unsqueeze(5), lambda: x.squeeze(3),
                  lambda: x.swapaxes(0, 3), lambda: x.flatten(0, 3)):  # fmt: skip
        with pytest.raises(ValueError, match=r"out of range for \d dimensions|start_dim"):
            wrong()


@pytest.mark.parametrize(
    "where, name", [(where, name) for where, names in habits.INSTEAD.items() for name in names]
)
def test_other_names_say_what_to_write(where, name):
    layer = Linear(1, 1)
    owners = {
        "Tensor": Tensor([1.0]), "Module": layer, "Optimizer": SGD(layer, lr=1),
        "functional": F, "nn": minimixer.nn, "minimixer": minimixer,
    }  # fmt: skip
    with pytest.raises(AttributeError, match=f" has no {name} here: write "):
        getattr(owners[where], name)
    assert not hasattr(owners[where], name)


def test_other_keywords_say_what_to_write():
    x = Tensor([[1.0, 2.0]])
    for name in ("sum", "mean", "max", "min", "var", "std", "argmax", "argmin", "any", "all"):
        with pytest.raises(TypeError, match="no dim= here: write axis="):
            getattr(x, name)(dim=1)
        with pytest.raises(TypeError, match="no keepdim= here: write keepdims="):
            getattr(x, name)(1, keepdim=True)
        with pytest.raises(TypeError, match="no out= here"):
            getattr(x, name)(out=None)
        for axis in (1.0, "0", (0, 1.5)):
            with pytest.raises(TypeError, match=r"an axis .*must be a whole number, got ['01(]"):
                getattr(x, name)(axis=axis)
    for function, joined in (
        (F.softmax, x), (F.log_softmax, x), (rearrange.concatenate, [x, x]),
        (rearrange.stack, [x, x]),
    ):  # fmt: skip
        with pytest.raises(TypeError, match="no dim= here: write axis="):
            function(joined, dim=1)
    for name in ("argmax", "argmin"):
        with pytest.raises(TypeError, match=rf"{name}: goes along one axis, .* got \(0, 1\)"):
            getattr(x, name)(axis=(0, 1))
    for wrong, error, message in (
        (lambda: rearrange.concatenate([x, x], 1.0), TypeError, r"whole number, got 1\.0"),
        (lambda: rearrange.stack([x, x], 1.0), TypeError, r"whole number, got 1\.0"),
        (lambda: x.reshape(2.0, 1), TypeError, "a length in a shape must be a whole number, got 2"),
        (lambda: x.to(x), TypeError, "to: expected a device .* or a dtype, got Tensor"),
        (lambda: x.reshape(1, 2, 1).transpose(0, 1), ValueError, "of the 3 axes once; swapaxes"),
        (lambda: x.transpose(1.0, 0), TypeError, "an axis must be a whole number, got 1.0"),
        (lambda: x.__setitem__(0, 1), TypeError, r"can't be assigned.*where\(mask, new, x\)"),
        (lambda: Linear(2, 2).to("cpu", device="cpu"), TypeError, "one device and one dtype"),
        (lambda: Mixer.summary_of("mixer_s32", hiden_dim=5), TypeError, "hiden_dim"),
    ):
        with pytest.raises(error, match=message):
            wrong()
    assert Linear(2, 2).to(device="cpu", dtype="float64").weight.dtype == np.float64


def test_what_a_tensor_looks_like(device):
    where_to = "" if device == "cpu" else ", device='cuda:0'"
    for value, text in (
        ([1.0, 2.5], "Tensor([1. , 2.5], dtype=float32"), (3, "Tensor(3, dtype=int64"),
        ([[True], [False]], "Tensor([[ True],\n        [False]], dtype=bool"),
    ):  # fmt: skip
        assert repr(Tensor(value, device=device)) == f"{text}{where_to})"
    x = Tensor([1.0], requires_grad=True, device=device)
    assert repr(x) == f"Tensor([1.], dtype=float32{where_to}, requires_grad=True)"


def test_the_variance_of_equal_numbers_is_0(device):
    for value in (12345.678, 100.3, 12.7, -7e6):
        x = Tensor(np.full((3, 96), value, "float32"), device=device)
        assert x.var().item() == x.std(axis=1).max().item() == 0


def test_modules_are_attributes_and_imported_when_asked_for():
    """As README writes them: minimixer.weights.freeze.freeze(model, "stem.*")."""
    code = """if True:
        import sys
        import minimixer
        late = ["PIL", "safetensors", "mpi4py", "matplotlib", "minimixer.weights",
                "minimixer.pictures", "minimixer.parallel"]
        assert not set(late) & set(sys.modules)
        assert callable(minimixer.transfer.freeze.freeze)
        assert callable(minimixer.transfer.folders.decode) and "PIL" not in sys.modules
        assert callable(minimixer.parallel.start) and callable(minimixer.kernels.use)
        assert minimixer.checkpoint.load_model is minimixer.training.checkpoint.load_model
        from minimixer import transfer, weights
        assert transfer.freeze is weights.freeze
        assert {"weights", "parallel", "kernels", "Mixer"} <= set(dir(minimixer))
        assert {"freeze", "layouts"} <= set(dir(weights))
        assert set(minimixer.__all__) <= set(dir(minimixer))
        for module in (minimixer, transfer, weights):
            assert not hasattr(module, "nothing") and not hasattr(module, "__wrapped__")
    """
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)
