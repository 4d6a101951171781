"""finetune.py and transfer.py as a user runs them: a few small pictures, a few steps."""

import csv
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from test_train_mnist import DRIVER, killed_at_last, make_data

from minimixer import Mixer
from minimixer.checkpoint import read_checkpoint, save_checkpoint
from minimixer.transfer.folders import find_images, find_splits
from minimixer.transfer.loader import Loader
from minimixer.transfer.probe import choose_shots, pooled_features, ridge

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
import finetune  # noqa: E402  (needs Pillow)
import options as command_line  # noqa: E402
import transfer  # noqa: E402

SCRIPT = Path(finetune.__file__)
COLUMNS = ["step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "waiting", "seconds",
           "images_per_second"]  # fmt: skip
SIZE = 12


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """train/ and val/ with striped pictures: the stripes of `hay` lie, those of `ivy` stand, and
    `jar` has none. One file in each is none."""
    top, rng = tmp_path_factory.mktemp("data") / "pictures", np.random.default_rng(0)
    stripes = 80.0 * (np.arange(16) // 4 % 2)
    for split, count in (("train", 8), ("val", 3)):
        for name, pattern in (("hay", stripes[:, None]), ("ivy", stripes[None]), ("jar", 40)):
            (top / split / name).mkdir(parents=True)
            for number in range(count):
                pixels = pattern + rng.integers(0, 60, (16, 16)) + rng.integers(0, 100)
                grey = pixels.astype(np.uint8)[:, :, None].repeat(3, 2)
                Image.fromarray(grey).save(top / split / name / f"{number}.png")
        (top / split / "ivy" / "broken.jpg").write_bytes(b"no picture")
    return top


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """A model for another task, every weight of which was drawn at random."""
    model = Mixer(image_size=SIZE, patch_size=4, num_blocks=2, hidden_dim=16, tokens_mlp_dim=8,
                  channels_mlp_dim=24, num_classes=5, mean=0.4, std=0.3)  # fmt: skip
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        noise = rng.standard_normal(parameter.shape) * 0.2
        parameter.data = (parameter.data + noise).astype("float32")
    path = tmp_path_factory.mktemp("weights") / "model.npz"
    save_checkpoint(path, model)
    return path


class Runner:
    def __init__(self, directory, folder, weights):
        self.directory, self.basic = directory, ["--data", folder, "--steps=6", "--eval-every=3"]
        self.basic += ["--weights", weights, "--batch-size=8", "--workers=0", "--min-area=0.8"]

    def __call__(self, *changes, out="run", main=finetune.main):
        """Run main in this process, in --out; later options win. Its directory."""
        words = [*self.basic, *changes, "--out", self.directory / out]
        if main is not finetune.main or "--resume" in changes:
            words = [*changes, "--out", self.directory / out]
        before = sys.argv, signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        try:
            sys.argv = [str(SCRIPT), *map(str, words)]
            assert main() == 0
        finally:
            sys.argv = before[0]
            signal.signal(signal.SIGINT, before[1])
            signal.signal(signal.SIGTERM, before[2])
        return self.directory / out

    def process(self, *words, at=None, status=0):
        """Run it in a process of its own: (stdout, stderr)."""
        command = [sys.executable, *(["-c", DRIVER.replace("AdamW", "SGD"), at] if at else [])]
        paths = os.pathsep.join([str(SCRIPT.parents[1]), str(SCRIPT.parent), *sys.path])
        with subprocess.Popen(
            [*map(str, command), str(SCRIPT), *map(str, words)], cwd=self.directory, text=True,
            env=os.environ | {"PYTHONPATH": paths, "OPENBLAS_NUM_THREADS": "1"},
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        ) as process, killed_at_last(process):  # fmt: skip
            out, err = process.communicate(timeout=120)
        assert process.returncode == status and "Traceback" not in err, err
        return out, err


@pytest.fixture
def run(tmp_path, folder, weights, monkeypatch):
    monkeypatch.setattr(finetune, "save_pictures", lambda *_: [])  # takes longer than all the rest
    return Runner(tmp_path, folder, weights)


def weights_in(out):
    arrays = read_checkpoint(out / "checkpoint.npz")[1]
    return {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}


def assert_same(out, other, but=()):
    ours, theirs = weights_in(out), weights_in(other)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n].tobytes() != theirs[n].tobytes() and n not in but] == []


def rows(path):
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# ---- fine-tuning --------------------------------------------------------------------------------


def test_a_folder_of_pictures_becomes_a_classifier(run, folder, capsys):
    out = run("--steps=60", "--lr=0.06", "--eval-every=0")
    said = capsys.readouterr()
    assert [list(row) for row in rows(out / "metrics.csv")] == [COLUMNS] * 10
    assert [row["step"] for row in rows(out / "metrics.csv")] == [str(6 * n) for n in range(1, 11)]
    assert float(rows(out / "metrics.csv")[-1]["val_accuracy"]) > 0.8
    assert "25 pictures of 3 classes, 10 to validate on" in said.out  # with those to be skipped
    assert "2 files skipped" in said.out
    for split in ("train", "val"):
        assert re.search(rf"skipped .*{split}/ivy/broken\.jpg: it is none of JPEG", said.err)
    model = Mixer.load(out / "checkpoint.npz")
    assert model.class_names == ["hay", "ivy", "jar"] and model.mean[0] == 0.4
    (paths, labels, _), _ = find_splits(folder)
    with Loader(paths, labels, SIZE, 64, train=False) as pictures:
        (images, labels), = pictures.epoch(0)  # fmt: skip
    assert (model.predict(images) == labels).mean() > 0.8


def test_the_recipe_is_the_papers(run, weights, monkeypatch):
    """SGD with momentum 0.9, a cosine after a warm-up, norm 1 at most, no decay, a zero head."""
    seen = {}
    original = finetune.SGD

    def sgd(parameters, lr, momentum, weight_decay):
        seen.update(lr=lr, momentum=momentum, decay=weight_decay, head=parameters[-2].data.any())
        optimizer = original(parameters, lr, momentum, weight_decay=weight_decay)
        step, seen["factors"], seen["norms"] = optimizer.step, [], []

        def watched():
            seen["factors"].append(optimizer.lr_factor)
            norm = float(optimizer._gradient_norm())
            seen["norms"].append(norm * float(optimizer.control[2]))
            step()

        optimizer.step = watched
        return optimizer

    monkeypatch.setattr(finetune, "SGD", sgd)
    run("--steps=20")
    assert seen["lr"] == 0.01 and seen["momentum"] == 0.9 and seen["decay"] == 0
    assert not seen["head"]
    np.testing.assert_allclose(seen["factors"][:3], [0.5, 1.0, 1.0])
    np.testing.assert_allclose(
        seen["factors"][2:], 0.5 * (1 + np.cos(np.pi * np.arange(18) / 18)), atol=1e-12
    )
    assert max(seen["norms"]) < 1 + 1e-5 and max(seen["norms"]) > 0.99


OPTIONS = ["--mixup=0.5", "--label-smoothing=0.1", "--randaugment=2", "--clip=0.1", "--lr=0.02",
           "--momentum=0", "--weight-decay=0.5", "--schedule=linear", "--warmup=0.5",
           "--min-area=0.3", "--flip=0", "--stochastic-depth=0.9", "--seed=1", "--optimizer=adamw",
           "--batch-size=4", "--shots=2", "--approximate=none", "--mean=0.1",
           "--freeze=stem.weight"]  # fmt: skip


@pytest.fixture(scope="module")
def plain(tmp_path_factory, folder, weights):
    runner = Runner(tmp_path_factory.mktemp("plain"), folder, weights)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(finetune, "save_pictures", lambda *_: [])
        return runner()


@pytest.mark.parametrize("option", OPTIONS)
def test_options_have_an_effect(run, plain, option):
    ours, theirs = weights_in(run(option)), weights_in(plain)
    assert any(ours[name].tobytes() != theirs[name].tobytes() for name in ours)


def test_the_same_run_twice_and_with_workers(run, plain):
    assert_same(run("--workers=2"), plain)


@pytest.mark.parametrize("extra", [[], ["--mixup=0.4"]], ids=str)
def test_parts_of_a_batch_add_up(run, extra):
    whole = weights_in(run(*extra, "--stochastic-depth=0.5", out="whole"))
    parts = weights_in(run(*extra, "--stochastic-depth=0.5", "--accumulate=3", out="parts"))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_mixup_blends_pictures_and_targets_alike(run, monkeypatch):
    """A model that sees blended pictures, and a loss with targets blended by the same share."""
    seen = {}
    original = finetune.F.cross_entropy

    def cross_entropy(logits, targets, reduction):
        seen["targets"] = targets
        return original(logits, targets, reduction=reduction)

    def record(step, *_, **__):
        def watched(images, labels, targets, share):
            seen.update(labels=labels, share=float(share[0]))
            return step(images, labels, targets, share)

        return watched

    monkeypatch.setattr(finetune.F, "cross_entropy", cross_entropy)
    monkeypatch.setattr(finetune, "record", record)
    run("--mixup=1", "--steps=1", "--eval-every=1")
    hot = np.eye(3)[seen["labels"]]
    expected = seen["share"] * hot + (1 - seen["share"]) * np.roll(hot, 1, axis=0)
    assert 0.5 <= seen["share"] < 0.999
    np.testing.assert_allclose(seen["targets"], expected, atol=1e-6)


def test_from_scratch(run, capsys):
    sizes = ["--image-size=12", "--patch-size=4", "--num-blocks=2", "--hidden-dim=16"]
    out = run("--weights=", "--variant=mixer_s32", *sizes, "--tokens-mlp-dim=8",
              "--channels-mlp-dim=24")  # fmt: skip
    settings = read_checkpoint(out / "checkpoint.npz")[0]["progress"]["settings"]
    assert settings["optimizer"] == "adamw" and settings["mixup"] == 0.5
    assert settings["randaugment"] == 2 and settings["steps"] == 6  # as it was given
    assert Mixer.load(out / "checkpoint.npz").config["stochastic_depth"] == 0.1


def test_larger_pictures_and_a_kept_head(run, weights):
    out = run("--image-size=24", "--steps=2")
    assert Mixer.load(out / "checkpoint.npz").config["tokens_mlp_dim"] == 4 * 8
    with pytest.raises(ValueError, match="for 5 classes, not 3"):
        run("--head=keep", out="other")
    again = run("--weights", out / "checkpoint.npz", "--head=keep", "--lr=1e-9", out="kept")
    np.testing.assert_allclose(
        weights_in(again)["head.weight"], weights_in(out)["head.weight"], atol=1e-7
    )


def test_without_val_a_share_of_each_class_is_held_out(run, folder, capsys):
    run("--data", folder / "train", "--holdout=0.25")
    assert "19 pictures of 3 classes, 6 to validate on" in capsys.readouterr().out
    options = finetune.make_parser().parse_args(["--data", str(folder / "train")])
    train, val = finetune.find_data(options)
    assert set(train[0]).isdisjoint(val[0]) and sorted(val[1]) == [0, 1, 2]
    assert sorted(train[0] + val[0]) == sorted(find_images(folder / "train")[0])
    options.seed = 5
    assert finetune.find_data(options)[1][0] != val[0]


@pytest.mark.slow
def test_decoding_keeps_the_trainer_fed(run, tmp_path):
    """An epoch over 2,000 JPEGs of 256 x 256 with S/32 waits for less than a fifth of its time."""
    rng = np.random.default_rng(0)
    for number in range(2000):
        smooth = Image.fromarray(rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)).resize(
            (256,) * 2
        )
        pixels = np.asarray(smooth, np.float64) + rng.normal(0, 8, (256, 256, 3))
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    Mixer.from_name("mixer_s32").export(tmp_path / "s32.npz", format="npz")
    out = run("--data", tmp_path / "pictures", "--weights", tmp_path / "s32.npz", "--holdout=0.01",
              "--batch-size=50", "--steps=39", "--eval-every=39", "--workers=2",
              "--min-area=0.05")  # fmt: skip
    (row,) = rows(out / "metrics.csv")
    print(f"{float(row['waiting']):.1%} of {float(row['seconds']):.0f} s waiting for pictures")
    assert float(row["waiting"]) < 0.2


# ---- probes -------------------------------------------------------------------------------------


def test_the_linear_probe_trains_the_head_alone(run, weights):
    out = run("--probe=linear")
    before, after = Mixer.load(weights).state_dict(), weights_in(out)
    moved = [n for n in after if n not in before or after[n].tobytes() != before[n].tobytes()]
    assert moved == ["head.weight", "head.bias"] and after["head.weight"].any()


def test_the_ridge_probe_is_the_closed_form(run, folder, weights, capsys):
    out = run("--probe=ridge", "--shots=2", "--draws=4", "--strength=3", "--seed=7")
    model = Mixer.from_pretrained(weights, num_classes=0)
    sides = []
    for paths, labels, _ in find_splits(folder):
        found = list(Loader(paths, labels, SIZE, 99, train=False).epoch(0))
        sides.append((pooled_features(model, found[0][0]), found[0][1]))
    (features, labels), (val_features, val_labels) = sides
    wanted = []
    for seed in range(7, 11):
        chosen = choose_shots(labels, 2, seed)
        weight, bias = ridge(features[chosen], labels[chosen], 3, 3.0)
        wanted.append(((val_features @ weight + bias).argmax(axis=1) == val_labels).mean())
    met = [float(row["val_accuracy"]) for row in rows(out / "probe.csv")]
    assert met == wanted
    spread = np.std(wanted, ddof=1)
    assert f"{np.mean(wanted):.2%}, standard deviation {spread:.2%}" in capsys.readouterr().out
    kept = Mixer.load(out / "probe.npz")
    images = next(Loader(*find_splits(folder)[1][:2], SIZE, 99, train=False).epoch(0))[0]
    assert (kept.predict(images) == val_labels).mean() == wanted[0]
    assert not (out / "checkpoint.npz").exists()


# ---- stopped and resumed ------------------------------------------------------------------------


@pytest.mark.parametrize("step, extra", [(2, []), (3, ["--mixup=0.4"]), (5, ["--randaugment=1"])])
def test_stopped_and_resumed(run, step, extra):
    whole = run(*extra, out="whole")
    words = [*run.basic, *extra, "--out=run"]
    said, _ = run.process(*words, at=f"step {step} SIGINT", status=130)
    line = said.splitlines()[-1]
    assert f"stopped after step {step} of 6" in line
    python, script, *again = shlex.split(line.partition("go on: ")[2])
    assert python == "python" and Path(script).samefile(SCRIPT)
    run.process(*again)
    assert_same(run.directory / "run", whole)
    ours, theirs = (rows(out / "metrics.csv") for out in (run.directory / "run", whole))
    clock = {"waiting", "seconds", "images_per_second"}
    assert [{k: v for k, v in row.items() if k not in clock} for row in ours] == [
        {k: v for k, v in row.items() if k not in clock} for row in theirs
    ]


def test_killed_and_resumed_when_steps_come_to_nothing(run):
    """Steps of one picture, one of which can't be read: each still sees what it would have seen."""
    words = ["--batch-size=1", "--steps=60", "--eval-every=25"]
    whole = run(*words, out="whole")
    run.process(*run.basic, *words, "--out=run", at="step 40 SIGKILL", status=-signal.SIGKILL)
    run.process("--resume", "--out=run", "--workers=1")
    assert_same(run.directory / "run", whole)


def test_a_finished_run_reports_again_and_other_pictures_are_noticed(run, folder, weights, capsys):
    out = run()
    before, first = (out / "checkpoint.npz").read_bytes(), capsys.readouterr().out
    run("--resume", "--workers=0")
    assert capsys.readouterr().out.splitlines()[1] == first.splitlines()[1]
    assert (out / "checkpoint.npz").read_bytes() == before
    with pytest.raises(ValueError, match="other images"):
        run("--resume", "--data", folder / "train")
    with pytest.raises(ValueError, match=r"--lr is 0\.01 in the run to resume"):
        run("--resume", "--lr=0.5")


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("words, match", [
    (["--steps=0"], "--steps"), (["--lr=nan"], "--lr"), (["--mixup=3"], "--mixup"),
    (["--optimizer=lion"], "--optimizer"), (["--probe=x"], "--probe"), (["--head=x"], "--head"),
    (["--data="], "--data"), (["--data=none"], "none is not a directory"),
    (["--weights="], "--weights"),
    (["--variant=mixer_s32"], "--variant"), (["--hidden-dim=8"], "--hidden-dim"),
    (["--image-size=13"], "12 x 12, 24 x 24"), (["--freeze=nothing"], "nothing"),
    (["--shots=100"], "class 0 has 8"), (["--holdout=2"], "--holdout"),
    (["--workers=-1"], "--workers"),
])  # fmt: skip
def test_bad_options(run, words, match):
    with pytest.raises((ValueError, OSError), match=re.escape(match)):
        run(*words)
    assert not (run.directory / "run" / "checkpoint.npz").exists()


def test_one_line_for_what_the_user_can_mend(run):
    for words in (["--nonsense"], ["--data=none", "--weights=x"], []):
        _, err = run.process(*words, status=2)
        assert err.count("\n") == 1 and err.startswith("finetune")


def test_not_one_picture(run, tmp_path):
    for name in ("a/1.png", "a/2.png", "b/1.png", "b/2.png"):
        (tmp_path / "bad" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "bad" / name).touch()
    _, err = run.process(*run.basic, "--data", tmp_path / "bad", "--out=run", status=2)
    assert re.search(r"finetune: Loader: no picture could be decoded.*empty", err)


def test_memory_and_errors_of_scripts(capsys):
    def fail():
        raise MemoryError("much")

    with pytest.raises(SystemExit) as ended:
        command_line.run_script(fail, "name", "take less")
    assert (
        ended.value.code == 2
        and capsys.readouterr().err == "name: out of memory; take less: much\n"
    )


# ---- on a GPU -----------------------------------------------------------------------------------


def test_the_gpu_learns_the_same(run, plain, device):
    """Recorded and not, with mixup and without: the weights of the CPU, up to rounding."""
    where = [f"--device={device}", "--precision=float32"]
    for extra in ([], ["--mixup=0.4", "--label-smoothing=0.1", "--accumulate=2"]):
        name = f"cpu{len(extra)}"
        wanted = weights_in(run(*extra, out=name))
        met = [run(*where, *extra, f"--graph={graph}", out=f"{name}{graph}") for graph in
               ("auto", "off")]  # fmt: skip
        assert_same(*met)
        for key, value in weights_in(met[0]).items():
            np.testing.assert_allclose(value, wanted[key], rtol=2e-3, atol=2e-5)


def test_the_probe_on_each_device(run, device):
    out = run("--probe=ridge", "--shots=3", f"--device={device}", "--precision=float32")
    assert len(rows(out / "probe.csv")) == 3


# ---- transfer.py --------------------------------------------------------------------------------


def test_the_whole_comparison(run, tmp_path, monkeypatch, capsys):
    shape = dict(train=120, test=30, shape=(14, 7))
    up, down = (make_data(tmp_path / n, seed=s, **shape) for n, s in (("up", 0), ("down", 1)))
    for name, value in dict(LABELS=(4, 9), HELD_OUT=60, SWEEP=[("sgd", 0.1), ("adamw", 0.01)],
                            SWEEP_DRAWS=1).items():  # fmt: skip
        monkeypatch.setattr(transfer, name, value)
    words = ["--upstream", up, "--downstream", down, "--steps=10", "--draws=3", "--epochs=20"]
    out = run(*words, main=transfer.main)
    found = rows(out / "transfer.csv")
    assert len(found) == 2 * 2 * 3 and len(rows(out / "sweep.csv")) == 2 * 2 * 2
    said = capsys.readouterr().out
    for labels in ("4", "9"):
        of = [float(r["accuracy"]) for r in found
              if (r["method"], r["labels"]) == ("fine-tuned", labels)]  # fmt: skip
        error = np.std(of, ddof=1) / np.sqrt(3)
        assert re.search(rf"{labels} labels +fine-tuned +{np.mean(of):.2%} \+- {error:.2%}", said)
    assert found == rows(run(*words, out="again", main=transfer.main) / "transfer.csv")


def test_labels_are_drawn_evenly_and_apart_from_those_held_out():
    labels = np.random.default_rng(0).integers(0, 3, 500)
    one, other = (transfer.draw_labels(labels, 10, 0, draw) for draw in (0, 1))
    assert np.bincount(labels[one]).tolist() == [4, 3, 3] and len(set(one)) == 10
    assert sorted(one) != sorted(other)
    held, rest = transfer.split(500, 100, 0)
    assert sorted([*held, *rest]) == list(range(500)) and len(held) == 100
    images, classes, *_ = transfer.load("", range(5, 10))
    assert len(images) == 29404 and set(classes) == set(range(5))
