"""The ridge probe: against least squares, in both of its forms, and what does not change it."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_oracles import examples

from minimixer import Mixer, data
from minimixer.weights.probe import choose_shots, pooled_features, ridge


def problem(n, c, k, seed):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, c)) * rng.uniform(0.1, 5, c) + 3, rng.integers(0, k, n)


@examples("cpu", cpu=60)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(2, 5), st.integers(0, 99))
def test_it_solves_the_problem_that_it_states(n, c, k, seed):
    """As least squares with `strength` written out as more rows, whichever of n and C is larger."""
    x, labels = problem(n, c, k, seed)
    weight, bias = ridge(x, labels, k, strength=3.0)
    std = x.std(axis=0)
    centred = np.where(std > 1e-6, (x - x.mean(axis=0)) / np.maximum(std, 1e-6), 0)
    rows = np.append(centred, np.ones((n, 1)), axis=1)
    y = np.where(labels[:, None] == np.arange(k), 1.0, -1.0)
    more = np.append(rows, np.sqrt(3.0) * np.eye(c + 1), axis=0)
    solved = np.linalg.lstsq(more, np.append(y, np.zeros((c + 1, k)), axis=0), rcond=None)[0]
    np.testing.assert_allclose(x @ weight + bias, rows @ solved, rtol=1e-7, atol=1e-8)


@examples("cpu", cpu=30)
@given(st.integers(0, 99))
def test_scale_and_shift_of_the_features_do_not_matter(seed):
    x, labels = problem(20, 6, 3, seed)
    rng = np.random.default_rng(seed)
    other = x * rng.uniform(0.1, 10, 6) + rng.standard_normal(6)
    first, second = ((f @ w + b) for f in (x, other) for w, b in [ridge(f, labels, 3)])
    np.testing.assert_allclose(first, second, rtol=1e-8, atol=1e-9)


def test_features_that_never_change_are_left_out():
    x, labels = problem(20, 4, 3, 0)
    same = np.append(x, np.full((20, 1), 1e6), axis=1)
    weight, bias = ridge(same, labels, 3)
    assert (weight[-1] == 0).all()
    np.testing.assert_allclose(bias, ridge(x, labels, 3)[1])


def test_shots():
    labels = np.random.default_rng(0).integers(0, 7, 300)
    for seed in (0, 1):
        chosen = choose_shots(labels, 5, seed)
        assert len(set(chosen)) == 35 and (np.bincount(labels[chosen]) == 5).all()
        np.testing.assert_array_equal(chosen, choose_shots(labels, 5, seed))
    assert set(choose_shots(labels, 5, 0)) != set(choose_shots(labels, 5, 1))
    with pytest.raises(ValueError, match=r"class \d has \d+ examples, fewer than 200"):
        choose_shots(labels, 200, 0)


def test_bad_input():
    x, labels = problem(10, 3, 2, 0)
    for features, targets in (
        (x[:5], labels), (x, labels + 1), (x, labels * 0.5), (x[:0], labels[:0]),
        (x * np.nan, labels), (x, labels - 1),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="ridge"):
            ridge(features, targets, 2)
    with pytest.raises(ValueError, match="num_classes=0"):
        pooled_features(Mixer(4, 2, 1, 8, 3, 16, num_classes=2), np.zeros((1, 4, 4, 3), "uint8"))


def test_it_can_be_a_models_head(device):
    """Digits from the features of a random Mixer: far above chance, and the same as a head."""
    images, labels, *_ = data.load_mnist()
    sizes = {"image_size": 28, "patch_size": 7, "in_channels": 1, "num_blocks": 2,
             "hidden_dim": 64, "tokens_mlp_dim": 16, "channels_mlp_dim": 64}  # fmt: skip
    headless = Mixer(**sizes, num_classes=0).to(device)
    chosen = choose_shots(labels[:5000], 25, seed=0)
    features = pooled_features(headless, images[chosen])
    weight, bias = ridge(features, labels[chosen], 10, strength=1.0)
    model = Mixer(**sizes, num_classes=10).to(device)
    model.load_state_dict(headless.state_dict() | {"head.weight": weight, "head.bias": bias})
    predicted = model.predict(images[5000:7000])
    assert (predicted == labels[5000:7000]).mean() > 0.6
    direct = pooled_features(headless, images[5000:7000]) @ weight + bias
    assert (direct.argmax(axis=1) == predicted).mean() > 0.999
