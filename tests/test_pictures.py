"""Pictures: two PNGs of a known size, whatever was learned."""

import sys

import numpy as np
import pytest
from processes import quick

from minimixer.training.report import save_pictures

SIZES = {"curves.png": (1170, 468), "mistakes.png": (1560, 975)}  # inches times 130


def make(n=60, shape=(28, 28, 1), classes=10, mistakes=40, epochs=3, seed=0):
    """(history, images, labels, probabilities) with so many wrong predictions."""
    rng = np.random.default_rng(seed)
    history = [
        {"epoch": e, "train_loss": 1 / e, "test_loss": 1.5 / e, "train_accuracy": 1 - 1 / (e + 1),
         "test_accuracy": 1 - 1.5 / (e + 2)} for e in range(1, epochs + 1)
    ]  # fmt: skip
    images = rng.integers(0, 256, (n, *shape), dtype=np.uint8)
    labels = rng.integers(0, classes, n)
    predicted = np.where(np.arange(n) < mistakes, (labels + 1) % classes, labels)
    probabilities = rng.random((n, classes)) * 0.3
    probabilities[np.arange(n), predicted] = 0.5 + 0.5 * rng.random(n)
    return history, images, labels, (probabilities / probabilities.sum(axis=1, keepdims=True))


CASES = {
    "RGB": {"shape": (32, 32, 3), "mistakes": 24},
    "one row of pixels": {"shape": (1, 8, 1), "mistakes": 1},
    "one column of pixels": {"shape": (8, 1, 1), "mistakes": 23},
    "no mistakes, one epoch": {"mistakes": 0, "epochs": 1},
    "all wrong, many epochs": {"n": 5, "mistakes": 5, "epochs": 120, "classes": 2},
    "one image": {"n": 1, "mistakes": 0, "shape": (12, 8, 1), "epochs": 20},
}


@pytest.mark.parametrize("case", quick(CASES, *{*CASES} - {"one column of pixels", "one image"}))
def test_two_pictures_of_the_right_size(tmp_path, case):
    """Made without pyplot, which would want a window and keep figures alive."""
    image = pytest.importorskip("matplotlib.image")
    settings = dict(sys.modules["matplotlib"].rcParams)
    arguments = make(**CASES[case])
    before = [np.copy(array) for array in arguments[1:]]
    for name in SIZES:
        (tmp_path / name).write_bytes(b"old")
    paths = save_pictures(tmp_path, *arguments)
    assert [path.name for path in paths] == list(SIZES)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(SIZES)
    for path in paths:
        pixels = image.imread(path)
        assert path.parent == tmp_path and pixels.shape[1::-1] == SIZES[path.name]
        if path.name == "curves.png" or CASES[case].get("mistakes", 1):
            assert len(np.unique(pixels)) > 20  # not a blank sheet
    for array, was in zip(arguments[1:], before, strict=True):
        np.testing.assert_array_equal(array, was)
    pyplot = sys.modules.get("matplotlib.pyplot")
    assert dict(sys.modules["matplotlib"].rcParams) == settings
    assert pyplot is None or not pyplot.get_fignums()


@pytest.fixture
def figures(monkeypatch):
    """Those that are saved, which are not drawn."""
    figure, saved = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: saved.append(self))
    return saved


def test_the_most_confident_mistakes_and_their_titles(tmp_path, figures):
    """What is drawn: 24 at most, the most confident first, true class and prediction in words."""
    history, images, labels, probabilities = make(n=80, mistakes=30)
    save_pictures(tmp_path, history, images, labels, probabilities)
    curves, mistakes = figures
    assert len(mistakes.axes) == 24
    predicted = probabilities.argmax(axis=1)
    wrong = [i for i in range(80) if predicted[i] != labels[i]]
    wrong.sort(key=lambda i: -probabilities[i, predicted[i]])
    shown = [axes for axes in mistakes.axes if axes.images]
    assert len(wrong) == 30 and len(shown) == 24
    for axes, i in zip(shown, wrong, strict=False):
        np.testing.assert_array_equal(axes.images[0].get_array(), images[i, :, :, 0])
        assert axes.get_title().startswith(f"true: {labels[i]}\nsaid: {predicted[i]} (")
        assert f"{probabilities[i, predicted[i]]:.0%}" in axes.get_title()
    assert not any(axes.axison for axes in mistakes.axes)
    for axes, name in zip(curves.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_ylabel() == name
        for line, part in zip(axes.lines, ("train", "test"), strict=True):
            assert line.get_label().startswith(part) and list(line.get_xdata()) == [1, 2, 3]
            assert list(line.get_ydata()) == [row[f"{part}_{name}"] for row in history]


def test_steps_names_and_pictures_taken_one_by_one(tmp_path, figures):
    """As finetune.py asks for them: by step, on val/, with names of classes."""
    history, images, labels, probabilities = make(n=20, mistakes=5, classes=3)
    history = [
        {"step": 50 * row["epoch"], **{k.replace("test", "val"): v for k, v in row.items()}}
        for row in history
    ]

    class OneByOne:
        def __getitem__(self, number):
            assert number < 5  # only those that are drawn
            return images[number]

    names = np.array(["hay", "ivy", "a jar of very much ivy"])
    save_pictures(tmp_path, history, OneByOne(), labels, probabilities, list(names))
    curves, mistakes = figures
    assert [axes.get_xlabel() for axes in curves.axes] == ["step", "step"]
    assert list(curves.axes[0].lines[1].get_xdata()) == [50, 100, 150]
    assert list(curves.axes[0].lines[1].get_ydata()) == [row["val_loss"] for row in history]
    predicted = probabilities.argmax(axis=1)
    sizes = {
        a.get_title().partition(" (")[0]: a.title.get_size() for a in mistakes.axes if a.images
    }
    assert set(sizes) == {
        f"true: {names[labels[i]]}\nsaid: {names[predicted[i]]}" for i in range(5)
    }
    assert {size == 10 for title, size in sizes.items() if "jar" not in title} == {True}
    assert {size < 10 for title, size in sizes.items() if "jar" in title} == {True}  # to fit


def test_none_without_matplotlib(tmp_path, monkeypatch):
    for name in ("matplotlib", "matplotlib.figure"):
        monkeypatch.setitem(sys.modules, name, None)
    assert save_pictures(tmp_path, *make()) == [] and not list(tmp_path.iterdir())
