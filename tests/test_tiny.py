"""The engine and the Mixer of examples/tiny.py, against the package's and by themselves."""

import ast
import doctest
import re
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from test_oracles import Case, assert_close, assert_same_results, results_of

import tiny
from minimixer import AdamW, Mixer
from minimixer import functional as F

PAGE = Path(tiny.__file__)
CASE = Case(
    {
        "image_size": (12, 20), "patch_size": 4, "in_channels": 3, "num_classes": 5,
        "num_blocks": 3, "hidden_dim": 10, "tokens_mlp_dim": 7, "channels_mlp_dim": 13,
    }, batch=6, seed=8,
)  # fmt: skip


def copied(model: Mixer) -> tuple[dict, dict]:
    """The model's weights as tiny's layers, and the same Tensors by the package's names."""
    parameters = {name: tiny.Tensor(w.copy()) for name, w in model.state_dict().items()}
    layers: dict = {}
    for name, parameter in parameters.items():
        layers.setdefault(name.rpartition(".")[0], []).append(parameter)
    return layers, parameters


def their_step(model, optimizer, images, labels):
    F.cross_entropy(model(images), labels).backward()
    optimizer.step()
    optimizer.zero_grad()


def our_step(layers, optimizer, images, labels, patch, lr):
    tiny.cross_entropy(tiny.mixer(layers, images, patch), labels).backward()
    optimizer.step(lr)


# ---- against the package ------------------------------------------------------------------------


def test_loss_and_every_gradient_are_the_packages():
    """assert_same_results looks first that what is expected is not zero."""
    model = CASE.model("cpu")
    layers, parameters = copied(model)
    images = tiny.Tensor(CASE.images())
    expected = results_of(model, images.data, CASE.labels())
    expected.pop("images")
    logits = tiny.mixer(layers, images.data, 4)
    loss = tiny.cross_entropy(logits, CASE.labels())
    found = {"logits": logits.data, "loss": np.asarray(loss.data)}
    loss.backward()
    found |= {name: parameter.grad for name, parameter in parameters.items()}
    assert_same_results(found, expected, 1e-10)


def test_weights_after_some_steps_are_the_packages():
    model = CASE.model("cpu")
    layers, parameters = copied(model)
    theirs = AdamW(model.parameters(), lr=1e-2, weight_decay=0.3)
    ours = tiny.AdamW(parameters.values(), weight_decay=0.3)
    before = {name: w.copy() for name, w in model.state_dict().items()}
    for _ in range(5):
        their_step(model, theirs, CASE.images(), CASE.labels())
        our_step(layers, ours, CASE.images(), CASE.labels(), 4, 1e-2)
    for name, expected in model.state_dict().items():
        if name.endswith("token_mixing.b2"):  # a gradient of rounding alone, of any sign
            continue
        assert abs(expected - before[name]).max() > 1e-2
        assert_close(name, parameters[name].data, expected, 1e-9)


def test_layers_are_named_ordered_and_drawn_as_the_packages():
    model = Mixer(28, 7, 2, 64, 32, 128, in_channels=3, num_classes=10)
    layers = tiny.initial_layers(np.random.default_rng(0), 7, 3, 16, 64, 32, 128, 2, 10)
    expected, _ = copied(model)
    assert list(layers) == list(expected)
    for name, layer in layers.items():
        for ours, theirs in zip(layer, expected[name], strict=True):
            assert ours.data.dtype == np.float32 and ours.data.shape == theirs.data.shape
            assert ours.data.mean() == pytest.approx(theirs.data.mean(), abs=0.1), name
            assert ours.data.std() == pytest.approx(theirs.data.std(), rel=0.1), name


@pytest.mark.slow
@pytest.mark.usefixtures("reference")
def test_a_step_takes_at_most_twice_the_time_of_the_packages_plain_one():
    model = Mixer(28, 7, 2, 64, 32, 128, in_channels=1, num_classes=10)
    layers, parameters = copied(model)
    theirs = AdamW(model.parameters(), lr=1e-3, weight_decay=0.05)
    ours = tiny.AdamW(parameters.values(), weight_decay=0.05)
    rng = np.random.default_rng(0)
    images = rng.standard_normal((128, 28, 28, 1), np.float32)
    labels = rng.integers(10, size=128)
    clock = []
    for _ in range(16):
        clock.append(time.perf_counter())
        their_step(model, theirs, images, labels)
        clock.append(time.perf_counter())
        our_step(layers, ours, images, labels, 7, 1e-3)
    took = np.diff(clock)  # theirs, ours, theirs ...
    assert np.median(took[1::2] / took[:-1:2]) < 2  # measured: 1.2


# ---- the engine ---------------------------------------------------------------------------------


def test_chains_are_long_and_doublings_many():
    x = y = tiny.Tensor(np.array(1.0))
    for _ in range(20_000):
        y = y + x
    y.backward()
    assert x.grad == 20_001
    x = y = tiny.Tensor(np.array(1.0))
    for _ in range(60):
        y = y + y
    y.backward()
    assert x.grad == 2**60


def test_gradients_add_up_and_never_in_somebody_elses_array():
    a, b = (tiny.Tensor(np.array([1.0, 2.0])) for _ in range(2))
    (a + b + a).backward()  # both names may hold the one array that `add` handed on
    assert a.grad.tolist() == [2, 2] and b.grad.tolist() == [1, 1]
    (a + b).backward()
    assert a.grad.tolist() == [3, 3] and b.grad.tolist() == [2, 2]


def test_the_loss_of_huge_scores_twice():
    z = tiny.Tensor(np.array([[1000.0, 0.0], [0.0, 1000.0]]))
    loss = tiny.cross_entropy(z, np.array([0, 0]))
    (loss + loss).backward()
    assert loss.data == 500 and z.grad.tolist() == [[0, 0], [-1, 1]]


def test_a_result_forgets_how_it_came_to_be():
    x = tiny.Tensor(np.ones(2))
    y = x + x
    z = y + x
    z.backward()
    assert y.grad is None and y.inputs == z.inputs == () and y.chain_rule is None
    assert x.grad.tolist() == [3, 3]


# ---- the page -----------------------------------------------------------------------------------


def test_the_example_runs():
    assert doctest.testmod(tiny) == (0, 4)


def test_the_script_trains():
    command = [sys.executable, str(PAGE), "--steps"]
    done = subprocess.run([*command, "40"], check=True, capture_output=True, encoding="utf-8")
    loss, accuracy = re.search(r"^step 40: loss (\S+), .* (\S+)%$", done.stdout).groups()
    assert float(loss) < 2.2 and float(accuracy) > 20
    done = subprocess.run([*command, "0"], capture_output=True, encoding="utf-8")
    assert done.returncode == 2 and "--steps must be at least 1, got 0" in done.stderr


def test_the_page_is_one_page_and_stands_alone():
    source = PAGE.read_text(encoding="utf-8")
    assert len(source.splitlines()) <= 260 and "fmt: off" not in source
    assert re.findall(r"^# ---- (\d): ", source, re.MULTILINE) == list("12345")
    imports = [node for node in ast.parse(source).body if isinstance(node, ast.Import)]
    assert {name.name for node in imports for name in node.names} == {
        "argparse", "itertools", "math", "numpy",
    }  # fmt: skip
    root = PAGE.parents[1]
    for name in re.findall(r"[\w/]+/\w+\.py", tiny.__doc__):
        assert any((root / folder / name).exists() for folder in ("", "minimixer")), name
