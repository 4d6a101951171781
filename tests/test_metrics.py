"""Accuracy, top k, the mean loss and the accuracy of each class, by value."""

import numpy as np
import pytest

from minimixer import Mixer, Tensor, parallel
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.training.metrics import Metrics, correct, evaluate, losses, ranks

NAN, INF = np.nan, np.inf


def random_logits(count=40, classes=5, scale=3.0, seed=0):
    rng = np.random.default_rng(seed)
    logits = (scale * rng.standard_normal((count, classes))).astype("f4")
    return logits, rng.integers(0, classes, count)


@pytest.mark.parametrize("scale", [1e-3, 3.0, 1e3, 1e6])
def test_the_loss_is_cross_entropys(device, scale):
    """However far the logits lie apart: a probability would be 0, and its logarithm lost."""
    logits, labels = random_logits(scale=scale)
    expected = F.cross_entropy(Tensor(logits.astype("f8")), labels).item()
    found = Metrics(5).add(to_device(logits, device), to_device(labels, device))
    assert found.loss == pytest.approx(expected, rel=1e-6)
    assert found.loss > 1000 or scale < 1e3


def test_the_figures_by_sorting(device):
    logits, labels = random_logits()
    there = to_device(logits, device), to_device(labels, device)
    found = Metrics(5).add(*there)
    order = np.argsort(-logits, axis=1)
    for k in range(1, 7):
        assert found.top(k) == (order[:, :k] == labels[:, None]).any(axis=1).mean()
    right = logits.argmax(axis=1) == labels
    assert found.accuracy == right.mean() and found.count == 40
    assert int(to_numpy(correct(*there))) == right.sum()
    for label in range(5):
        assert found.per_class[label] == right[labels == label].mean()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_how_many_are_right_is_argmaxs(device, dtype):
    """Of equal scores the first counts, and of those with NaN the first of these."""
    rng = np.random.default_rng(3)
    for rows, classes in ((1, 1), (7, 3), (700, 10), (70, 1000)):
        logits = rng.choice([-np.inf, -1.0, 0.0, 2.0, np.nan], (rows, classes)).astype(dtype)
        labels = rng.integers(classes, size=rows).astype(rng.choice(["int64", "int32", "uint8"]))
        found = correct(to_device(logits, device), to_device(labels, device))
        assert found.shape == () and int(found) == (logits.argmax(axis=1) == labels).sum()


@pytest.mark.parametrize("row, label, rank", [
    ([2.0, 2.0, 1.0], 0, 0), ([2.0, 2.0, 1.0], 1, 1), ([0.0, 0.0, 0.0], 2, 2),
    ([2.0, -INF, 1.0], 2, 1), ([2.0, -INF, 1.0], 0, 0),  # a class that was ruled out
])  # fmt: skip
def test_ranks_of_equal_and_missing_classes(row, label, rank):
    assert ranks(np.array([row]), np.array([label])).tolist() == [rank]
    assert np.isfinite(losses(np.array([row]), np.array([label]))).all()


@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("row", [
    [NAN, 0, 0], [0, NAN, 0], [NAN] * 3, [INF, 0, 0], [INF, INF, 0], [0, INF, 0], [-INF, 0, 0],
    [-INF] * 3, [INF, -INF, 0], [INF, NAN, 0],
], ids=str)  # fmt: skip
def test_what_is_not_finite_is_wrong_and_shows_in_the_loss(row, dtype):
    logits = np.array([row, [1, 0, 0]], dtype)
    found = Metrics(3).add(logits, np.array([0, 0]))
    assert not np.isfinite(found.loss)
    assert found.accuracy == found.top(2) == found.top(3) == 0.5


def test_batches_and_processes_add_up():
    logits, labels = random_logits(count=101)
    whole, parts = Metrics(5).add(logits, labels), Metrics(5)
    for part in (slice(0, 40), slice(40, 40), slice(40, 101)):
        parts.add(logits[part], labels[part])
    assert parts.sums[1:].tolist() == whole.sums[1:].tolist()
    assert parts.loss == pytest.approx(whole.loss, rel=1e-12)
    with parallel.start() as world:  # of one; of several in test_parallel_examples.py
        assert parts.over(world.sum).count == 101
    doubled = parts.over(lambda sums: 2 * sums)
    assert doubled.count == 202 and doubled.loss == pytest.approx(whole.loss, rel=1e-12)
    assert doubled.accuracy == whole.accuracy and doubled.top(2) == whole.top(2)


def test_without_examples_the_means_are_nan(device):
    none = Metrics(3)
    assert none.count == 0 and np.isnan([none.loss, none.accuracy, none.top(2)]).all()
    assert np.isnan(none.per_class).all()
    some = none.add(np.eye(3)[:2], np.array([0, 0]))
    assert some.per_class[0] == 0.5 and np.isnan(some.per_class[1:]).all()
    for made in (list, lambda a: Tensor(a, device=device), np.array):  # all of them are counted
        metrics = Metrics(2).add(made([[2.0, 1.0], [3.0, 1.0]]), made([0, 1]))
        assert metrics.accuracy == 0.5


@pytest.mark.parametrize("logits, labels", [
    (np.zeros((2, 4)), np.zeros(2, int)), (np.zeros((2, 3)), np.zeros(3, int)),
    (np.zeros((2, 1, 3)), np.zeros((2, 1), int)), (np.zeros(3), np.array(0)),
    (np.zeros((2, 3)), np.array([0, 3])), (np.zeros((2, 3)), np.array([0, -1])),
    (np.zeros((2, 3)), np.array([0.0, 1.0])), (np.zeros((2, 3)), np.array([True, False])),
])  # fmt: skip
def test_what_does_not_fit_is_refused(logits, labels):
    metrics = Metrics(3)
    with pytest.raises(ValueError, match="Metrics"):
        metrics.add(logits, labels)
    assert not metrics.sums.any()


def test_evaluate_is_of_the_whole_set(device):
    model = Mixer(image_size=4, patch_size=2, in_channels=1, num_classes=3, num_blocks=1,
                  hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=16, seed=0)  # fmt: skip
    rng = np.random.default_rng(0)
    model.head.weight.data = rng.standard_normal((8, 3)).astype("f4")
    model.to(device)
    images, labels = rng.integers(0, 256, (23, 4, 4, 1), dtype=np.uint8), np.arange(23) % 3
    whole = Metrics(3).add(model.predict_logits(images), labels)
    for batch_size in (5, 23, 100):
        found = evaluate(model, images, labels, batch_size)
        assert found.count == 23 and found.accuracy == whole.accuracy
        assert found.loss == pytest.approx(whole.loss, rel=1e-5)
    assert evaluate(model, images[:0], labels[:0]).count == 0


def test_sizes_that_are_none():
    """A batch size of -1 would silently look at no image."""
    model, headless = (Mixer(8, 4, 1, 16, 8, 32, in_channels=1, num_classes=n) for n in (3, 0))
    images, labels = np.zeros((2, 8, 8, 1), "uint8"), np.array([0, 1])
    for size in (0, -1, 1.5, None):
        for function in (
            lambda n=size: evaluate(model, images, labels, n),
            lambda n=size: Metrics(n),
            lambda n=size: Metrics(3).top(n),
        ):
            with pytest.raises(ValueError, match=rf"whole number of at least 1, got {size}"):
                function()
    with pytest.raises(ValueError, match="no head"):
        evaluate(headless, images, labels)
