"""predict.py and evaluate.py as a user runs them, on models with known answers."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minimixer import Mixer
from minimixer.checkpoint import save_checkpoint
from minimixer.idx import write_idx

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
    stub = tmp_path / "stub"
    stub.mkdir()
    (stub / "matplotlib.py").write_text("raise ImportError('a stub')\n", encoding="utf-8")

    def run(script, *arguments, status=0, matplotlib=False):
        paths = [str(ROOT)] if matplotlib else [str(stub), str(ROOT)]  # the stub also saves time
        done = subprocess.run(
            [sys.executable, ROOT / "examples" / f"{script}.py", *map(str, arguments)],
            env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "OPENBLAS_NUM_THREADS": "1"},
            cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=60,
        )  # fmt: skip
        assert done.returncode == status, done.stderr
        assert "Traceback" not in done.stderr
        if status == 2:
            assert done.stderr.startswith(f"{script}") and done.stderr.count("\n") == 1
        return done

    return run


# ---- predict ------------------------------------------------------------------------------------


def test_classes_and_probabilities_of_pictures_and_directories(tmp_path, run):
    weights, folder = saved(tmp_path), tmp_path / "pictures"
    picture(folder / "b" / "deep" / "1.png", 250)
    picture(folder / "a" / "2.png", 5, (30, 20))
    picture(folder / ".hidden" / "3.png", 5)
    (folder / "a" / "bad.jpg").write_bytes(b"no picture")
    (folder / "notes.txt").write_text("not a picture by name", encoding="utf-8")
    single = picture(tmp_path / "single.png", 250)
    done = run("predict", "--weights", weights, single, folder, "gone.png", "--batch-size=2")
    white = ["   70.00%  cat", "   20.00%  dog", "   10.00%  eel"]
    black = ["   62.00%  eel", "   28.00%  dog", "   10.00%  cat"]
    assert done.stdout.splitlines() == [
        str(single), *white, str(folder / "a" / "2.png"), *black,
        str(folder / "b" / "deep" / "1.png"), *white,
    ]  # fmt: skip
    bad, gone, count = done.stderr.splitlines()
    assert "bad.jpg: it is none of JPEG" in bad and "gone.png: it can't be read" in gone
    assert count == "predict: 2 of 5 could not be read"


def test_a_hand_set_bias_always_wins(tmp_path, run):
    pytest.importorskip("safetensors", reason="needs safetensors: pip install -e '.[weights]'")
    even = (0.5, 0.3, 0.2)
    with pytest.warns(UserWarning, match="GELU"):
        two_faced(even, even).export(tmp_path / "m.safetensors", "timm")
    paths = [picture(tmp_path / f"{grey}.png", grey) for grey in (3, 128, 200)]
    done = run("predict", "--weights", tmp_path / "m.safetensors", "--top=1", *paths)
    assert done.stdout.splitlines()[1::2] == ["   50.00%  eel"] * 3


def test_names_from_a_file(tmp_path, run):
    weights, image = saved(tmp_path, names=None), picture(tmp_path / "1.png", 250)
    names = tmp_path / "names.txt"
    names.write_text("Aal\nKatze\nHund\n\n", encoding="utf-8")
    done = run("predict", "--weights", weights, "--names", names, "--top=1", image)
    assert done.stdout.splitlines()[1] == "   70.00%  Katze"
    names.write_text("Aal\nKatze\n", encoding="utf-8")
    done = run("predict", "--weights", weights, "--names", names, image, status=2)
    assert "names.txt has 2 names, the model 3 classes" in done.stderr


def test_normalisation_can_be_overridden_and_sizes_need_not_be_square(tmp_path, run):
    weights, image = saved(tmp_path, size=(4, 12), names=None), picture(tmp_path / "1.png", 100)
    arguments = ["--weights", weights, "--top=1", image]
    assert "62.00%  class 0" in run("predict", *arguments).stdout  # darker than grey
    arguments += ["--mean=0.1,0.1,0.2", "--std", "0.3", "--approximate=none"]
    assert "70.00%  class 1" in run("predict", *arguments).stdout
    done = run("predict", "--weights", weights, "--mean=1,2", image, status=2)
    assert "mean and std must be numbers, or 3 of them" in done.stderr


def test_grey_models_see_grey_and_the_whole_picture(tmp_path, run):
    pixels = np.full((16, 16, 3), (255, 255, 0), "uint8")  # yellow: 226 as grey
    pixels[3:13, 3:13] = (30, 30, 80)
    Image.fromarray(pixels).save(tmp_path / "1.png")
    arguments = ["--weights", saved(tmp_path, channels=1), "--top=1", tmp_path / "1.png"]
    assert "70.00%  cat" in run("predict", *arguments).stdout
    assert "62.00%  eel" in run("predict", *arguments, "--crop=0.6").stdout


def test_what_predict_refuses(tmp_path, run):
    weights, bad = saved(tmp_path), tmp_path / "bad.png"
    bad.write_bytes(b"")
    (tmp_path / "empty").mkdir()
    done = run("predict", "--weights", weights, bad, tmp_path / "empty", status=1)
    assert not done.stdout and "the file is empty" in done.stderr
    assert "it has no pictures" in done.stderr and "2 of 2 could not be read" in done.stderr
    assert "nothing.npz" in run("predict", "--weights=nothing.npz", bad, status=2).stderr
    assert "can't be read" in run("predict", "--weights", bad, bad, status=2).stderr
    assert "--top" in run("predict", "--weights", weights, "--top=0", bad, status=2).stderr
    two = picture(tmp_path / "two.png", 9)
    weights = saved(tmp_path, channels=2)
    assert "1 or 3 channels" in run("predict", "--weights", weights, two, status=2).stderr


def test_a_digit_of_ones_own(tmp_path, run):
    three = str(ROOT / "tests" / "digits" / "3_003.png")  # a pencil's, on white, off the middle
    done = run("predict", three, picture(tmp_path / "blank.png", 250), "--top=1")
    name, first = done.stdout.splitlines()
    assert name == three and first.endswith("%  3") and float(first.split("%")[0]) > 90
    note, skipped, count = done.stderr.splitlines()
    assert note == "predict: no --weights, so the pictures are taken for digits"
    assert "blank.png: it shows no ink" in skipped and "1 of 2" in count
    (tmp_path / "digits").write_text("a file of this name is no model", encoding="utf-8")
    assert run("predict", three, "--top=1").stdout == done.stdout
    (tmp_path / "digits").unlink()
    arguments = ["--weights=digits", three, "--top=1"]
    assert run("predict", *arguments).stdout == done.stdout
    as_is = run("predict", *arguments, "--prepare=none")
    assert as_is.stdout != done.stdout and not as_is.stderr
    run("predict", *arguments, "--prepare=none", "--crop=0.5")
    refused = run("predict", *arguments, "--crop=0.5", status=2)
    assert "--crop is for pictures taken as they are: add --prepare none" in refused.stderr
    refused = run("predict", "--weights", saved(tmp_path), "--prepare=digit", three, status=2)
    assert "28 x 28 with 1 channel" in refused.stderr
    assert (
        "nor a model that comes with" in run("predict", "--weights=digit", three, status=2).stderr
    )


def test_evaluate_sees_digits_as_predict_does(tmp_path, run):
    for digit in range(10):
        folder = tmp_path / "data" / str(digit)
        folder.mkdir(parents=True)
        for path in (ROOT / "tests" / "digits").glob(f"{digit}_*"):
            (folder / path.name).write_bytes(path.read_bytes())
    run("evaluate", "--weights=digits", "--data", tmp_path / "data")
    metrics = json.loads(
        (tmp_path / "runs" / "evaluate" / "metrics.json").read_text(encoding="utf-8")
    )
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
               "--real", tmp_path / "real.json", "--batch-size=3", matplotlib=True)  # fmt: skip
    out = tmp_path / "out"
    metrics = json.loads((out / "metrics.json").read_text(encoding="utf-8"))
    assert metrics["pictures"] == 6 and metrics["top5"] is None
    assert [Path(path).name for path, _ in metrics["skipped"]] == ["c.png"]
    assert metrics["top1"] == 3 / 6  # a, d, e
    assert metrics["mean_per_class"] == pytest.approx((2 / 3 + 0 / 1 + 1 / 2) / 3)
    assert (metrics["real"], metrics["real_pictures"]) == (3 / 5, 5)
    # confidence 0.7 for four of which two are right; 0.62 for two of which one is
    by_hand = (4 * abs(2 / 4 - 0.7) + 2 * abs(1 / 2 - 0.62)) / 6
    assert metrics["expected_calibration_error"] == pytest.approx(by_hand, abs=1e-5)
    with open(out / "per_class.csv", newline="", encoding="utf-8") as file:
        rows = [(row["name"], row["pictures"], row["right"]) for row in csv.DictReader(file)]
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
    metrics = json.loads(
        (tmp_path / "runs" / "evaluate" / "metrics.json").read_text(encoding="utf-8")
    )
    assert (metrics["top1"], metrics["top5"], metrics["pictures"]) == (0.5, 0.75, 4)
    assert metrics["expected_calibration_error"] == pytest.approx(0.2, abs=1e-5)  # |2 / 4 - 0.3|
    assert done.stderr == "for a picture of the confusion matrix: pip install matplotlib\n"
    assert not (tmp_path / "runs" / "evaluate" / "confusion.png").exists()
    assert "--real" in run("evaluate", *arguments, "--real", "x", status=2).stderr
    weights = saved(tmp_path, names=None, channels=1)
    assert "6 classes, the model 3" in run("evaluate", *arguments, status=2).stderr


def test_class_folders_must_fit_the_model(tmp_path, run, folder):
    arguments = ["--weights", saved(tmp_path, names=["eel", "cat", "wolf"]), "--data", folder]
    said = run("evaluate", *arguments, status=2).stderr
    assert "only folders: dog; only the model's classes: wolf" in said
    saved(tmp_path, names=None)  # by order now: cat is 0, which the model says to black
    run("evaluate", *arguments)
    metrics = json.loads(
        (tmp_path / "runs" / "evaluate" / "metrics.json").read_text(encoding="utf-8")
    )
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
