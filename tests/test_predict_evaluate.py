"""Predicting, by both of its entries, and evaluate.py, on models with known answers."""

import json
import os
import shutil
import threading
from pathlib import Path

import numpy as np
import pytest
from help import raises, redraw, small_mixer
from processes import read_csv
from scripts import EXAMPLES, Runner

from minimixer import Mixer
from minimixer.training.checkpoint import save_checkpoint
from minimixer.training.idx import write_idx

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")

ROOT = Path(__file__).parents[1]
WHITE, BLACK = (0.1, 0.7, 0.2), (0.62, 0.1, 0.28)  # what the model below says to such pictures
NAMES = ["eel", "cat", "dog"]


def two_faced(white=WHITE, black=BLACK, names=NAMES, size=8, channels=3):
    """A Mixer that answers pictures brighter than grey with the probabilities `white`, darker ones
    with `black`. Its blocks add nothing; a token is (brightness, -brightness), which LayerNorm
    turns into (1, -1) or (-1, 1), and the head adds or subtracts half the logits' difference."""
    model = Mixer(
        image_size=size, patch_size=4, num_blocks=1, hidden_dim=2, tokens_mlp_dim=1,
        channels_mlp_dim=1, in_channels=channels, num_classes=len(white), class_names=names,
    )  # fmt: skip
    for parameter in (model.blocks[0].token_mixing.w2, model.blocks[0].channel_mixing.w2):
        parameter.data = np.zeros(parameter.shape, "float32")
    model.stem.weight.data = np.tile(np.float32([1, -1]), (16 * channels, 1))
    white, black = np.log(np.float32(white)), np.log(np.float32(black))
    model.head.bias.data = (white + black) / 2
    model.head.weight.data = np.stack([(white - black) / 2, np.zeros_like(white)])
    return model


def saved(directory, **changes):
    save_checkpoint(directory / "model.npz", two_faced(**changes))
    return directory / "model.npz"


def picture(path, grey, size=(8, 8)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size, (grey,) * 3).save(path)
    return path


@pytest.fixture
def run(tmp_path):
    def run(script, *arguments, status=0, **more):
        runner = Runner(tmp_path, EXAMPLES / f"{script}.py")
        done = runner(*arguments, status=status, **more)
        if status == 2:
            assert done.stderr.startswith(script) and done.stderr.count("\n") == 1
        return done

    return run


@pytest.fixture(params=["script", "command"])
def predict(request, tmp_path):
    """examples/predict.py, and `python -m minimixer predict`."""
    script = EXAMPLES / "predict.py" if request.param == "script" else "minimixer"

    def predict(*arguments, status=0, **more):
        usual = ["predict"] if request.param == "command" else []
        done = Runner(tmp_path, script, usual)(*arguments, status=status, **more)
        if status == 2:
            assert done.stderr.startswith("predict: ") and done.stderr.count("\n") == 1
        return done

    return predict


def metrics_in(out):
    return json.loads((out / "metrics.json").read_bytes())


# ---- predict ------------------------------------------------------------------------------------


def test_classes_and_probabilities_of_pictures_and_directories(tmp_path, predict):
    weights, folder = saved(tmp_path), tmp_path / "pictures"
    picture(folder / "b" / "deep" / "1.png", 250)
    picture(folder / "a" / "2.png", 5, (30, 20))
    picture(folder / ".hidden" / "3.png", 5)
    (folder / "a" / "bad.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture by name", encoding="utf-8")
    single = picture(tmp_path / "single.png", 250)
    done = predict("--weights", weights, single, folder, "gone.png", "--batch-size=2")
    white = ["   70.00%  cat", "   20.00%  dog", "   10.00%  eel"]
    black = ["   62.00%  eel", "   28.00%  dog", "   10.00%  cat"]
    assert done.stdout.splitlines() == [
        str(single), *white, str(folder / "a" / "2.png"), *black,
        str(folder / "b" / "deep" / "1.png"), *white,
    ]  # fmt: skip
    said, count = done.stderr.splitlines()
    assert said.startswith("predict: skipped 2 files: ")
    assert "bad.jpg: it is none of JPEG" in said and "gone.png: it can't be read" in said
    assert count == "predict: 2 of 5 could not be read"


def test_a_hand_set_bias_always_wins(tmp_path, predict):
    pytest.importorskip("safetensors", reason="needs safetensors: pip install -e '.[weights]'")
    even = (0.5, 0.3, 0.2)
    with pytest.warns(UserWarning, match="GELU"):
        two_faced(even, even).export(tmp_path / "m.safetensors", "timm")
    paths = [picture(tmp_path / f"{grey}.png", grey) for grey in (3, 128, 200)]
    done = predict("--weights", tmp_path / "m.safetensors", "--top=1", *paths)
    assert done.stdout.splitlines()[1::2] == ["   50.00%  eel"] * 3


def test_names_from_a_file(tmp_path, predict):
    weights, image = saved(tmp_path, names=None), picture(tmp_path / "1.png", 250)
    names = tmp_path / "names.txt"
    names.write_text("Aal\nKatze\nHund\n\n", encoding="utf-8")
    done = predict("--weights", weights, "--names", names, "--top=1", image)
    assert done.stdout.splitlines()[1] == "   70.00%  Katze"
    names.write_text("Aal\nKatze\n", encoding="utf-8")
    done = predict("--weights", weights, "--names", names, image, status=2)
    assert "names.txt has 2 names, the model 3 classes" in done.stderr


def test_normalisation_can_be_overridden_and_sizes_need_not_be_square(tmp_path, predict):
    weights, image = saved(tmp_path, size=(4, 12), names=None), picture(tmp_path / "1.png", 100)
    arguments = ["--weights", weights, "--top=1", image]
    assert "62.00%  class 0" in predict(*arguments).stdout  # darker than grey
    arguments += ["--mean=0.1,0.1,0.2", "--std", "0.3", "--approximate=none"]
    assert "70.00%  class 1" in predict(*arguments).stdout
    done = predict("--weights", weights, "--mean=1,2", image, status=2)
    assert "mean and std must be numbers, or 3 of them" in done.stderr


def test_grey_models_see_grey_and_the_whole_picture(tmp_path, predict):
    pixels = np.full((16, 16, 3), (255, 255, 0), "uint8")  # yellow: 226 as grey
    pixels[3:13, 3:13] = (30, 30, 80)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    arguments = ["--weights", saved(tmp_path, channels=1), "--top=1", tmp_path / "1.png"]
    assert "70.00%  cat" in predict(*arguments).stdout
    assert "62.00%  eel" in predict(*arguments, "--crop=0.6").stdout


def test_what_predict_refuses(tmp_path, predict):
    weights, bad = saved(tmp_path), tmp_path / "bad.png"
    bad.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    done = predict("--weights", weights, bad, tmp_path / "empty", status=1)
    assert not done.stdout and "the file is empty" in done.stderr
    assert "it has no pictures" in done.stderr and "2 of 2 could not be read" in done.stderr
    assert "nothing.npz" in predict("--weights=nothing.npz", bad, status=2).stderr
    assert "can't be read" in predict("--weights", bad, bad, status=2).stderr
    assert "--top" in predict("--weights", weights, "--top=0", bad, status=2).stderr
    two = picture(tmp_path / "two.png", 9)
    weights = saved(tmp_path, channels=2)
    assert "1 or 3 channels" in predict("--weights", weights, two, status=2).stderr


def test_a_digit_of_ones_own(tmp_path, predict):
    three = str(ROOT / "tests" / "digits" / "3_003.png")  # a pencil's, on white, off the middle
    done = predict(three, picture(tmp_path / "blank.png", 250), "--top=1")
    name, first = done.stdout.splitlines()
    assert name == three and first.endswith("%  3") and float(first.split("%")[0]) > 90
    note, skipped, count = done.stderr.splitlines()
    assert note == "predict: no --weights, so the pictures are taken for digits"
    assert "blank.png: it shows no ink" in skipped and "1 of 2" in count
    (tmp_path / "digits").write_text("a file of this name is no model", encoding="utf-8")
    assert predict(three, "--top=1").stdout == done.stdout
    (tmp_path / "digits").unlink()
    arguments = ["--weights=digits", three, "--top=1"]
    assert predict(*arguments).stdout == done.stdout
    as_is = predict(*arguments, "--prepare=none")
    assert as_is.stdout != done.stdout and not as_is.stderr
    predict(*arguments, "--prepare=none", "--crop=0.5")
    refused = predict(*arguments, "--crop=0.5", status=2)
    assert "--crop is for pictures taken as they are: add --prepare none" in refused.stderr
    refused = predict("--weights", saved(tmp_path), "--prepare=digit", three, status=2)
    assert "28 x 28 with 1 channel" in refused.stderr
    refused = predict("--weights=digit", three, status=2)
    assert "nor a model that comes with" in refused.stderr


def test_evaluate_sees_digits_as_predict_does(tmp_path, run):
    for path in (ROOT / "tests" / "digits").glob("?_*"):
        (tmp_path / "data" / path.name[0]).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / "data" / path.name[0])
    run("evaluate", "--weights=digits", "--data", tmp_path / "data")
    metrics = metrics_in(tmp_path / "runs" / "evaluate")
    assert metrics["top1"] == 1 and metrics["pictures"] == 20


# ---- evaluate -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    """Seven pictures under val/, one of them damaged; train/ is not to be read."""
    for name, grey in {"cat/a": 250, "cat/d": 240, "cat/f": 3, "dog/b": 250, "eel/e": 9,
                       "eel/g": 250}.items():  # fmt: skip
        picture(tmp_path / "data" / "val" / f"{name}.png", grey)
    (tmp_path / "data" / "val" / "dog" / "c.png").write_bytes(b"damaged")
    (tmp_path / "data" / "train" / "cat").mkdir(parents=True)
    return tmp_path / "data"


def test_metrics_worked_out_by_hand(tmp_path, run, folder):
    pytest.importorskip("matplotlib")
    # a .. g; the model says cat (1) to white a, b, d, g and eel (0) to black e, f; c is damaged.
    real = [[1], [1, 2], [0], [], [2], [0], [0]]  # right: a, b, f; wrong: e, g; d is not counted
    (tmp_path / "real.json").write_text(json.dumps(real), encoding="utf-8")
    done = run("evaluate", "--weights", saved(tmp_path), "--data", folder, "--out", "out",
               "--real", tmp_path / "real.json", "--batch-size=3", pictures=True)  # fmt: skip
    out = tmp_path / "out"
    metrics = metrics_in(out)
    assert metrics["pictures"] == 6 and metrics["top5"] is None
    assert [Path(path).name for path, _ in metrics["skipped"]] == ["c.png"]
    assert metrics["top1"] == 3 / 6  # a, d, e
    assert metrics["mean_per_class"] == pytest.approx((2 / 3 + 0 / 1 + 1 / 2) / 3)
    assert (metrics["real"], metrics["real_pictures"]) == (3 / 5, 5)
    # confidence 0.7 for four of which two are right; 0.62 for two of which one is
    by_hand = (4 * abs(2 / 4 - 0.7) + 2 * abs(1 / 2 - 0.62)) / 6
    assert metrics["expected_calibration_error"] == pytest.approx(by_hand, abs=1e-5)
    rows = [(row["name"], row["pictures"], row["right"]) for row in read_csv(out / "per_class.csv")]
    assert rows == [("eel", "2", "1"), ("cat", "3", "2"), ("dog", "1", "0")]
    with Image.open(out / "confusion.png") as image:
        assert image.size[0] > 500
    assert sorted(os.listdir(out)) == ["confusion.png", "metrics.json", "per_class.csv"]
    assert "top-1 accuracy              50.00%" in done.stdout and "60.00% of 5" in done.stdout
    assert "c.png" in done.stderr


def test_idx_directories_top_5_and_no_matplotlib(tmp_path, run):
    white, black = (0.3, 0.25, 0.2, 0.15, 0.06, 0.04), (0.04, 0.06, 0.15, 0.2, 0.25, 0.3)
    directory = tmp_path / "idx"
    directory.mkdir()
    for split, labels in (("train", [0, 5]), ("t10k", [0, 5, 5, 1])):
        greys = np.resize(np.uint8([255, 255, 0, 0]), len(labels))
        images = np.broadcast_to(greys[:, None, None], (len(labels), 8, 8))
        write_idx(directory / f"{split}-images-idx3-ubyte", np.ascontiguousarray(images))
        write_idx(directory / f"{split}-labels-idx1-ubyte", np.uint8(labels))
    weights = saved(tmp_path, white=white, black=black, names=None, channels=1)
    arguments = ["--weights", weights, "--data", directory]
    done = run("evaluate", *arguments, "--batch-size=3")
    metrics = metrics_in(tmp_path / "runs" / "evaluate")
    assert (metrics["top1"], metrics["top5"], metrics["pictures"]) == (0.5, 0.75, 4)
    assert metrics["expected_calibration_error"] == pytest.approx(0.2, abs=1e-5)  # |2 / 4 - 0.3|
    assert done.stderr == "for a picture of the confusion matrix: pip install matplotlib\n"
    assert not (tmp_path / "runs" / "evaluate" / "confusion.png").exists()
    assert "--real" in run("evaluate", *arguments, "--real", "x", status=2).stderr
    weights = saved(tmp_path, names=None, channels=1)
    assert "a label 5, but the model 3" in run("evaluate", *arguments, status=2).stderr


def test_class_folders_must_fit_the_model(tmp_path, run, folder):
    arguments = ["--weights", saved(tmp_path, names=["eel", "cat", "wolf"]), "--data", folder]
    said = run("evaluate", *arguments, status=2).stderr
    assert "has pictures of dog, which is not among the classes: eel, cat, wolf" in said
    saved(tmp_path, names=None)  # by order now: cat is 0, which the model says to black
    run("evaluate", *arguments)
    metrics = metrics_in(tmp_path / "runs" / "evaluate")
    assert metrics["top1"] == 2 / 6  # f, and dog's b
    saved(tmp_path, white=(0.5, 0.5), black=(0.2, 0.8), names=None)
    assert "3 class folders, but the model has 2" in run("evaluate", *arguments, status=2).stderr


def test_wrong_files_of_real(tmp_path, run, folder):
    arguments = ["--weights", saved(tmp_path), "--data", folder, "--real", tmp_path / "real.json"]
    for text, said in {
        "[[1], [2]]": "2 lists, but there are 7 pictures",
        "[[1], [3], [], [], [], [], []]": "3, not a class from 0 to 2",
        "{": "is no JSON",
    }.items():
        (tmp_path / "real.json").write_text(text, encoding="utf-8")
        assert said in run("evaluate", *arguments, status=2).stderr
    assert "gone" in run("evaluate", *arguments[:2], "--data=gone", status=2).stderr
    assert not (tmp_path / "runs" / "evaluate" / "metrics.json").exists()


def test_some_of_the_models_classes(tmp_path, run, folder):
    """Others have no folder, or an empty one: no accuracy, and one line that says so."""
    shutil.rmtree(folder / "val" / "dog")
    for file in (folder / "val" / "eel").iterdir():
        file.unlink()
    (folder / "val" / "notes").mkdir()  # no pictures: no class
    arguments = ["--weights", saved(tmp_path), "--data", folder]
    done = run("evaluate", *arguments)
    assert "all are of one class, cat: this says nothing of the others" in done.stdout
    out = tmp_path / "runs" / "evaluate"
    rows = read_csv(out / "per_class.csv")
    found = [(row["name"], row["pictures"], row["accuracy"]) for row in rows]
    assert found == [("eel", "0", ""), ("cat", "3", str(2 / 3)), ("dog", "0", "")]
    assert metrics_in(out)["mean_per_class"] == 2 / 3
    picture(folder / "val" / "eel" / "1.png", 5)
    assert "no pictures of dog\n" in run("evaluate", *arguments).stdout
    saved(tmp_path, names=None)
    assert "3 class folders" not in run("evaluate", *arguments).stdout  # cat, eel, notes: by order


def test_pictures_of_no_class_are_not_used_and_that_is_said(tmp_path, run, folder):
    arguments = ["--weights", saved(tmp_path), "--data", folder]
    expected = run("evaluate", *arguments)
    picture(folder / "val" / "1.png", 5)
    done = run("evaluate", *arguments)
    said = f"evaluate: not used, as they are of no class: 1.png in {folder / 'val'}\n"
    assert done.stdout == expected.stdout and done.stderr == said + expected.stderr


@pytest.mark.parametrize("script", ["predict", "evaluate"])
def test_where_no_thread_can_be_started(tmp_path, run, folder, script, monkeypatch):
    """As in a browser: one picture after another."""
    arguments = ["--weights", saved(tmp_path)]
    arguments += ["--data", folder] if script == "evaluate" else [folder / "val", "--batch-size=2"]
    expected = run(script, *arguments)
    error = RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", lambda thread: raises(error))
    done = run(script, *arguments)
    assert (done.stdout, done.stderr) == (expected.stdout, expected.stderr)


@pytest.mark.parametrize("name, said", [
    ("valid", 0), ("Validation", 0), ("test", 0), ("train", "holds train but no val; give"),
])  # fmt: skip
def test_the_part_that_is_evaluated(tmp_path, run, folder, name, said):
    shutil.rmtree(folder / "train")
    (folder / "val").rename(folder / name)
    arguments = ["--weights", saved(tmp_path), "--data", folder]
    done = run("evaluate", *arguments, status=2 if said else 0)
    assert said in done.stderr if said else f"evaluates on {folder / name}\n" in done.stdout


def test_nan_counts_as_wrong(tmp_path, run, folder, monkeypatch):
    """Of the four white ones, which are cat (1), cat, dog and eel, three get no answer."""
    original = Mixer.predict_logits

    def broken(model, images, batch_size):
        logits = original(model, images, batch_size)
        logits[images.mean(axis=(1, 2, 3)) > 245, 2] = np.nan
        return logits

    monkeypatch.setattr(Mixer, "predict_logits", broken)
    (folder / "val" / "dog" / "c.png").unlink()  # the damaged one
    words = ["evaluate", "--weights", saved(tmp_path), "--data", folder]
    assert "NaN for 3 pictures, which count as wrong" in run(*words).stdout
    metrics = metrics_in(tmp_path / "runs" / "evaluate")
    assert metrics["without_answer"] == 3 and metrics["pictures"] == 6
    assert metrics["top1"] == 2 / 6  # cat/d and eel/e
    assert metrics["mean_per_class"] == pytest.approx((1 / 3 + 0 + 1 / 2) / 3)
    # of those with an answer: 0.7 for one that is right, 0.62 for two of which one is
    assert metrics["expected_calibration_error"] == pytest.approx((0.3 + 2 * 0.12) / 3, abs=1e-5)
    monkeypatch.setattr(Mixer, "predict_logits", lambda *_: np.full((6, 3), np.nan, "float32"))
    assert "the model answers with NaN" in run(*words, status=2).stderr


HARD = ["$a$ or $b$", "esc\x1b[31m", os.fsdecode(b"caf\xe9"), "two\nlines", "\u202egpj", " ", "-rf",
        "\u732b", "x" * 250, "x" * 249 + "y", "e" + "\u0301" * 30]  # fmt: skip


def assert_visible(said):
    """And fit to be written where files are UTF-8."""
    assert all(line.isprintable() and line.encode() for line in "\n".join(said).split("\n") if line)


def test_names_of_every_kind(tmp_path, run, predict):
    """Through pictures, tables and lines of both scripts."""
    pytest.importorskip("matplotlib")
    count = len(HARD)
    even = tuple(np.full(count, 1 / count))
    weights = saved(tmp_path, names=HARD, white=even, black=even)
    for name in HARD:
        picture(tmp_path / "data" / name / "1.png", 9)
        (tmp_path / "data" / name / "\x1b[2J.png").write_bytes(b"no picture\x1b")
    for more in ({"apart": True}, {"pictures": True}):
        assert_visible(run("evaluate", "--weights", weights, "--data", tmp_path / "data", **more))
    out = tmp_path / "runs" / "evaluate"
    assert (out / "confusion.png").stat().st_size > 5000
    names = [row["name"] for row in read_csv(out / "per_class.csv")]
    assert all(name.isprintable() for name in names)
    codec = [n.encode("latin-1", "backslashreplace").decode("unicode_escape") for n in names]
    assert codec == HARD
    skipped = metrics_in(out)["skipped"]
    assert {Path(path).parent.name for path, _ in skipped} == set(HARD)
    done = predict("--weights", weights, "--top=99", *sorted((tmp_path / "data").iterdir()))
    assert_visible(done)
    shown = {line.split("%  ")[1] for line in done.stdout.splitlines() if "%  " in line}
    assert len(shown) == count
    for words in (["--weights", "gone\x1b[31m\n.npz", "x"], ["--top=\x1b", "x"],
                  ["--weights", weights, "--names", "\u202e", "x"]):  # fmt: skip
        assert_visible(predict(*words, status=2))


def test_what_cannot_be_decoded_is_one_line(tmp_path, predict):
    for number in range(9):
        (tmp_path / f"{number}.heic").write_bytes(b"ftypheic")
    picture(tmp_path / "deep" / "1.gif", 250)
    picture(tmp_path / "deep" / "2.tiff", 5)
    Image.new("RGB", (80, 80), "red").save(tmp_path / "deep" / "cut.jpg")
    whole = (tmp_path / "deep" / "cut.jpg").read_bytes()
    (tmp_path / "deep" / "cut.jpg").write_bytes(whole[:-80])
    done = predict("--weights", saved(tmp_path), "--top=1", tmp_path)
    said, count = done.stderr.splitlines()
    assert len(done.stdout.splitlines()) == 4
    assert "skipped 10 files: 9 files (" in said and "0.heic" in said and " and 6 more)" in said
    assert count == "predict: 10 of 12 could not be read"


def test_interpolation(tmp_path, predict):
    """Another filter, other probabilities; bilinear unless it is asked for."""
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 255, (37, 37, 3), np.uint8)).save(tmp_path / "1.png")
    save_checkpoint(tmp_path / "model.npz", redraw(small_mixer(in_channels=3)))
    arguments = ["--weights", tmp_path / "model.npz", tmp_path / "1.png"]
    plain = predict(*arguments).stdout
    assert predict(*arguments, "--interpolation=bilinear").stdout == plain
    assert predict(*arguments, "--interpolation=bicubic").stdout != plain
    assert "invalid choice" in predict(*arguments, "--interpolation=nearest", status=2).stderr
