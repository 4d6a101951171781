"""finetune.py and transfer.py as a user runs them: a few small pictures, a few steps."""

import argparse
import os
import re
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from help import raises, same_state, small_mixer
from processes import quick, read_csv
from scripts import Runner as Script
from scripts import history, killed_at_last, make_data, wait_for, watch, without_times

from minimixer import Mixer, Tensor
from minimixer import functional as F
from minimixer.pictures.augment import mixup_share
from minimixer.pictures.folders import find_images, find_splits
from minimixer.pictures.loader import Loader
from minimixer.training.checkpoint import read_checkpoint, save_checkpoint
from minimixer.training.report import save_pictures
from minimixer.weights import remake as remake_module
from minimixer.weights.probe import choose_shots, pooled_features, ridge

Image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
import finetune  # noqa: E402  (needs Pillow)
import train_mnist  # noqa: E402
import transfer  # noqa: E402
from finetuning import setup as finetune_setup  # noqa: E402
from support import options as command_line  # noqa: E402
from support import run as run_module  # noqa: E402
from support import start as start_module  # noqa: E402

SCRIPT = Path(finetune.__file__)
COLUMNS = ["step", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "waiting", "seconds",
           "images_per_second"]  # fmt: skip
SIZE = 12
CUT = b"\x89PNG\r\n\x1a\n\0\0\0\x0dIHDR\0\0\0\x09\0\0\0\x09\x08\0\0\0\0"  # begins as a picture


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
    model = small_mixer(image_size=SIZE, in_channels=3, hidden_dim=16, tokens_mlp_dim=8,
                        channels_mlp_dim=24, num_classes=5, mean=0.4, std=0.3)  # fmt: skip
    rng = np.random.default_rng(1)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.2 * rng.standard_normal(parameter.shape)
    path = tmp_path_factory.mktemp("weights") / "model.npz"
    save_checkpoint(path, model)
    return path


class Runner:
    def __init__(self, directory, folder, weights):
        self.script = Script(directory, SCRIPT)
        self.directory, self.basic = directory, ["--data", folder, "--steps=6", "--eval-every=3"]
        self.basic += ["--weights", weights, "--batch-size=8", "--workers=0", "--min-area=0.8"]

    def __call__(self, *changes, out="run", main=finetune.main, overwrite=True):
        """Run main in this process, in --out; later options win. Its directory."""
        words = [*changes, "--out", self.directory / out]
        if "--resume" not in changes:
            basic = self.basic if main is finetune.main else []
            words = [*basic, *words, *["--overwrite"] * overwrite]
        before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
            try:
                assert main() == 0
            finally:
                after = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
                assert after == before
        return self.directory / out

    def process(self, *words, **more):
        """Run it in a process of its own: (stdout, stderr)."""
        return self.script(*words, apart=True, warnings="default", **more)


@pytest.fixture(scope="module", autouse=True)
def no_pictures():
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_module, "save_pictures", lambda *_: [])  # takes longer than the rest
        yield


@pytest.fixture
def run(tmp_path, folder, weights):
    return Runner(tmp_path, folder, weights)


@pytest.fixture(scope="module")
def plain(tmp_path_factory, folder, weights):
    return Runner(tmp_path_factory.mktemp("plain"), folder, weights)()


def weights_in(out):
    arrays = read_checkpoint(out / "checkpoint.npz")[1]
    return {k.removeprefix("weights/"): v for k, v in arrays.items() if k.startswith("weights/")}


def assert_same(out, other, but=()):
    ours, theirs = weights_in(out), weights_in(other)
    assert ours.keys() == theirs.keys()
    assert [n for n in ours if ours[n].tobytes() != theirs[n].tobytes() and n not in but] == []


def pictures(folder):
    """(images, labels) of train/ and of val/, as validation sees them."""
    return [next(Loader(paths, labels, SIZE, 64, train=False).epoch(0))
            for paths, labels, _ in find_splits(folder)]  # fmt: skip


# ---- fine-tuning --------------------------------------------------------------------------------


def test_a_folder_of_pictures_becomes_a_classifier(run, folder, capsys):
    out = run("--steps=60", "--lr=0.06", "--eval-every=0")
    said = capsys.readouterr()
    rows = history(out)
    assert [list(row) for row in rows] == [COLUMNS] * 10
    assert [row["step"] for row in rows] == [str(6 * n) for n in range(1, 11)]
    assert float(rows[-1]["val_accuracy"]) > 0.8
    assert "24 pictures of 3 classes, 9 to validate on" in said.out
    assert "2 files skipped" in said.out
    both = r"2 files \(.*train/ivy/broken\.jpg, .*val/ivy/broken\.jpg\): it is none of JPEG"
    assert re.search(f"skipped {both}", said.err)
    skipped = [Path(row["file"]).parts[-3] for row in read_csv(out / "skipped.csv")]
    assert skipped == ["train", "val"]
    model = Mixer.load(out / "checkpoint.npz")
    assert model.class_names == ["hay", "ivy", "jar"] and model.mean[0] == 0.4
    last = rows[-1]
    (_, trained), (images, labels) = pictures(folder)
    assert (len(trained), len(labels)) == (24, 9)
    assert float(last["val_accuracy"]) == (model.predict(images) == labels).mean()
    assert f"accuracy {float(last['val_accuracy']):.2%} on 9 pictures" in said.out
    waited = sum(float(row["waiting"]) * float(row["seconds"]) for row in rows)
    assert 0 < waited < sum(float(row["seconds"]) for row in rows)


def test_the_loss_is_that_of_the_true_class(plain, folder):
    """Also of pictures that the model takes for something else."""
    _, (images, labels) = pictures(folder)
    model = Mixer.load(plain / "checkpoint.npz")
    assert (model.predict(images) != labels).any()
    logits = Tensor(model.predict_logits(images).astype("f8"))
    met = float(history(plain)[-1]["val_loss"])
    assert met == pytest.approx(F.cross_entropy(logits, labels).item(), rel=1e-6)


def test_the_recipe_is_the_papers(run, monkeypatch):
    """SGD with momentum 0.9, a cosine after a warm-up, norm 1 at most, no decay, a zero head."""
    seen, factors, norms = {}, [], []
    original = finetune.SGD

    def sgd(parameters, lr, momentum, weight_decay):
        seen.update(lr=lr, momentum=momentum, decay=weight_decay, head=parameters[-2].data.any())
        optimizer = original(parameters, lr, momentum, weight_decay=weight_decay)
        watch(monkeypatch, optimizer, "step", lambda: (
            factors.append(optimizer.lr_factor),
            norms.append(float(optimizer.gradient_norm()) * float(optimizer.control[2])),
        ))  # fmt: skip
        return optimizer

    monkeypatch.setattr(finetune, "SGD", sgd)
    run("--steps=20")
    assert seen["lr"] == 0.01 and seen["momentum"] == 0.9 and seen["decay"] == 0
    assert not seen["head"]
    np.testing.assert_allclose(factors[:3], [0.5, 1.0, 1.0])
    cosine = 0.5 * (1 + np.cos(np.pi * np.arange(18) / 18))
    np.testing.assert_allclose(factors[2:], cosine, atol=1e-12)
    assert 0.99 < max(norms) < 1 + 1e-5


OPTIONS = ["--mixup=0.5", "--std=0.7", "--label-smoothing=0.1", "--randaugment=2", "--clip=0.1",
           "--lr=0.02", "--momentum=0", "--weight-decay=0.5", "--schedule=linear", "--warmup=0.5",
           "--min-area=0.3", "--flip=0", "--stochastic-depth=0.9", "--seed=1", "--optimizer=adamw",
           "--batch-size=4", "--shots=2", "--approximate=none", "--mean=0.1",
           "--freeze=stem.weight"]  # fmt: skip


def differ(out, other):
    ours, theirs = weights_in(out), weights_in(other)
    return any(ours[name].tobytes() != theirs[name].tobytes() for name in ours)


@pytest.mark.parametrize("option", OPTIONS)
def test_options_have_an_effect(run, plain, option):
    assert differ(run(option), plain)


def test_the_same_run_twice_and_with_workers(run, plain):
    assert_same(run("--workers=2"), plain)


@pytest.mark.parametrize("option, usual", [
    ("--magnitude=3", ["--randaugment=2"]), ("--seed=5", ["--stochastic-depth=0.9"]),
    ("--seed=5", ["--shots=3", "--batch-size=9", "--min-area=1", "--flip=0"]),
])  # fmt: skip
def test_options_have_an_effect_beside_others(run, option, usual):
    assert differ(run(*usual, out="usual"), run(*usual, option))


def test_the_seed_reaches_stochastic_depth_and_shots(run, monkeypatch):
    seeds, drawn = [], []
    watch(monkeypatch, finetune.Run, "start", lambda run, model, *_: (
        seeds.append(model.random.seed)
    ))  # fmt: skip
    watch(monkeypatch, finetune, "choose_shots", lambda labels, shots, seed: drawn.append(seed))
    run("--seed=9", "--shots=3")
    assert seeds == [9] and drawn == [9]


@pytest.mark.parametrize("extra", [[], ["--mixup=0.4"]], ids=str)
def test_parts_of_a_batch_add_up(run, extra):
    whole = weights_in(run(*extra, "--stochastic-depth=0.5", out="whole"))
    parts = weights_in(run(*extra, "--stochastic-depth=0.5", "--accumulate=3", out="parts"))
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], rtol=1e-4, atol=1e-6)


def test_mixup_and_smoothing_reach_pictures_and_targets_alike(run, weights, monkeypatch):
    """What model and loss are given, in three steps, against what the loader gave."""
    seen, met, endless = [], [], finetune.endless

    def batches(pictures, step):
        for batch in endless(pictures, step):
            seen.append(batch)
            yield batch

    class Watched(Mixer):
        def forward(self, images):
            if isinstance(images, Tensor):  # as in training, and not in validation
                met.append({"images": images.data})
            return super().forward(images)

    watch(monkeypatch, finetune.F, "cross_entropy", lambda logits, targets, **_: (
        met[-1].update(targets=targets)
    ))  # fmt: skip
    monkeypatch.setattr(finetune, "endless", batches)
    monkeypatch.setattr(remake_module, "Mixer", Watched)
    run("--mixup=1", "--steps=3", "--eval-every=3", "--label-smoothing=0.3", "--seed=4")
    shares = [mixup_share(1.0, 4, step) for step in range(3)]
    assert len(set(shares)) == 3 and len(seen) >= len(met) == 3
    model = Mixer.load(weights)
    for (images, labels), got, share in zip(seen, met, shares, strict=False):
        hot = 0.7 * np.eye(3)[labels] + 0.1
        for values, name in ((model.convert(images).data, "images"), (hot, "targets")):
            expected = share * values + (1 - share) * np.roll(values, 1, axis=0)
            np.testing.assert_allclose(got[name], expected, atol=1e-5)


def test_from_scratch(run, monkeypatch):
    decays = []
    watch(monkeypatch, finetune, "AdamW", lambda parameters, lr, weight_decay: (
        decays.append(weight_decay)
    ))  # fmt: skip
    sizes = ["--image-size=12", "--patch-size=4", "--num-blocks=2", "--hidden-dim=16"]
    out = run("--weights=", "--variant=mixer_s32", *sizes, "--tokens-mlp-dim=8",
              "--channels-mlp-dim=24")  # fmt: skip
    settings = read_checkpoint(out / "checkpoint.npz")[0]["progress"]["settings"]
    assert settings["optimizer"] == "adamw" and settings["mixup"] == 0.5
    assert settings["randaugment"] == 2 and settings["steps"] == 6  # as it was given
    assert Mixer.load(out / "checkpoint.npz").config["stochastic_depth"] == 0.1
    assert decays == [0.1]


def test_larger_pictures_and_a_kept_head(run, weights):
    out = run("--image-size=24", "--steps=2")
    assert Mixer.load(out / "checkpoint.npz").config["tokens_mlp_dim"] == 4 * 8
    with pytest.raises(ValueError, match="5 classes, without names; the folders are hay, ivy, jar"):
        run("--head=keep", out="other")
    again = run("--weights", out / "checkpoint.npz", "--head=keep", "--lr=1e-9", out="kept")
    kept, head = weights_in(again), weights_in(out)
    np.testing.assert_allclose(kept["head.weight"], head["head.weight"], atol=1e-7)
    model = Mixer.load(out / "checkpoint.npz")
    model.class_names = ["jar", "hay", "ivy"]  # what its outputs mean, in another order
    save_checkpoint(run.directory / "turned.npz", model)
    out = run("--weights", run.directory / "turned.npz", "--head=keep", "--lr=1e-9", out="t")
    for name in ("head.weight", "head.bias"):
        np.testing.assert_allclose(weights_in(out)[name], head[name][..., [1, 2, 0]], atol=1e-7)


def test_without_val_a_share_of_each_class_is_held_out(run, folder, capsys):
    run("--data", folder / "train", "--holdout=0.25")
    assert "18 pictures of 3 classes, 6 to validate on" in capsys.readouterr().out
    options = finetune.make_parser().parse_args(["--data", str(folder / "train")])
    train, val, skipped = finetune_setup.find_data(options)
    assert set(train[0]).isdisjoint(val[0]) and sorted(val[1]) == [0, 1, 2]
    every = [*train[0], *val[0], *(path for path, _ in skipped)]
    assert sorted(every) == sorted(find_images(folder / "train")[0]) and len(skipped) == 1
    options.seed = 5
    assert finetune_setup.find_data(options)[1][0] != val[0]


@pytest.mark.slow
def test_decoding_keeps_the_trainer_fed(run, tmp_path):
    """An epoch over 160 JPEGs of 256 x 256 with S/32 waits for less than a fifth of its time."""
    rng = np.random.default_rng(0)
    for number in range(160):
        noise = rng.integers(0, 255, (32, 32, 3)).astype(np.uint8)
        smooth = Image.fromarray(noise).resize((256, 256))
        pixels = np.asarray(smooth, np.float64) + rng.normal(0, 8, (256, 256, 3))
        path = tmp_path / "pictures" / "ab"[number % 2] / f"{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)
    Mixer.from_name("mixer_s32").export(tmp_path / "s32.npz", format="npz")
    out = run("--data", tmp_path / "pictures", "--weights", tmp_path / "s32.npz", "--holdout=0.01",
              "--batch-size=50", "--steps=3", "--eval-every=3", "--workers=2",
              "--min-area=0.05")  # fmt: skip
    (row,) = history(out)
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
    (train_images, labels), (images, val_labels) = pictures(folder)
    features, val_features = (pooled_features(model, each) for each in (train_images, images))
    wanted = []
    for seed in range(7, 11):
        chosen = choose_shots(labels, 2, seed)
        weight, bias = ridge(features[chosen], labels[chosen], 3, 3.0)
        wanted.append(((val_features @ weight + bias).argmax(axis=1) == val_labels).mean())
    met = [float(row["val_accuracy"]) for row in read_csv(out / "probe.csv")]
    assert met == wanted
    spread = np.std(wanted, ddof=1)
    said = capsys.readouterr()
    assert f"{np.mean(wanted):.2%}, standard deviation {spread:.2%}" in said.out
    kept = Mixer.load(out / "probe.npz")
    assert (kept.predict(images) == val_labels).mean() == wanted[0]
    assert not (out / "checkpoint.npz").exists()
    assert "0 files skipped" in said.out and "skipped 2 files" in said.err


def test_a_class_that_cannot_be_read_is_no_success(run, folder, tmp_path):
    broken = shutil.copytree(folder, tmp_path / "broken")
    for file in (broken / "val" / "jar").iterdir():
        file.write_bytes(CUT)
    with pytest.raises(ValueError, match="no picture of jar can be decoded"):
        run("--data", broken, "--probe=ridge")


# ---- stopped and resumed ------------------------------------------------------------------------


@pytest.mark.parametrize("step, extra", [
    (2, ["--mean=0.4,0.5,0.6", "--std=0.2"]), (3, ["--mixup=0.4", "--stochastic-depth=0.5"]),
    (5, ["--randaugment=1"]),
])  # fmt: skip
def test_stopped_and_resumed(run, step, extra, monkeypatch):
    """With the same results, and a bar that goes on where it was."""
    whole = run(*extra, out="whole")
    said = run.process(*run.basic, *extra, "--out=run", at=f"step {step} SIGINT", status=130)
    assert f"stopped after step {step} of 6" in said.stdout.splitlines()[-1]
    begun = []
    watch(monkeypatch, run_module, "tqdm", lambda total, initial, **_: (
        begun.append((total, initial))
    ))  # fmt: skip
    run.script.resume(said)
    assert begun == [(48, 8 * step)]
    out = run.directory / "run"
    assert_same(out, whole)
    assert without_times(history(out)) == without_times(history(whole))


def half_broken(folder, tmp_path):
    """One picture in two can't be decoded, which shows when it is tried."""
    top = shutil.copytree(folder, tmp_path / "half")
    for file in (top / "train").rglob("[0-3].png"):
        file.write_bytes(CUT)
    return top


def test_killed_and_resumed_when_steps_come_to_nothing(run, folder, tmp_path):
    """Steps of one picture, many of which can't be read: each still sees what it would have seen,
    and rows of nothing have no loss."""
    words = ["--data", half_broken(folder, tmp_path), "--batch-size=1", "--steps=41"]
    found = history(run(*words, "--eval-every=1", out="each"))
    assert [row["step"] for row in found] == [str(n) for n in range(1, 42)]
    assert 5 < sum(row["train_loss"] == "nan" for row in found) < 30
    whole = run(*words, "--eval-every=20", out="whole")
    run.process(*run.basic, *words, "--eval-every=20", "--out=run", at="step 14 SIGKILL",
                status=-signal.SIGKILL)  # fmt: skip
    run("--resume", "--workers=1")
    assert_same(run.directory / "run", whole)


@pytest.mark.slow
def test_stopped_before_what_cannot_be_read(run, folder, tmp_path):
    """Whatever batch comes next after --resume."""
    words = ["--data", half_broken(folder, tmp_path), "--batch-size=1", "--steps=25"]
    whole = run(*words, "--eval-every=25", out="whole")
    for step in (11, 12):  # of the 12 that can be read, among 25
        run.process(*run.basic, *words, "--eval-every=25", f"--out=run{step}",
                    at=f"step {step} SIGINT", status=130)  # fmt: skip
        run("--resume", out=f"run{step}")
        assert_same(run.directory / f"run{step}", whole)


@pytest.mark.parametrize("who", ["everyone", "a worker"])
def test_ctrl_c_in_a_terminal_and_a_killed_worker(run, who):
    """Both end with a checkpoint and how to go on."""
    words = [*run.basic, "--steps=1000000", "--eval-every=50", "--workers=2", "--out=run"]
    with run.script.start(*words, start_new_session=True) as process, killed_at_last(process):
        wait_for(process, "step 50/")
        if who == "everyone":
            os.killpg(process.pid, signal.SIGINT)
        else:
            children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_bytes()
            named = [pid for pid in map(int, children.split())
                     if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]  # fmt: skip
            os.kill(named[0], signal.SIGKILL)
        out, err = process.communicate(timeout=60)
    assert process.returncode == (130 if who == "everyone" else 2), err
    assert "Traceback" not in err and "to go on: python" in out, err
    assert (who == "a worker") == ("exit code -9" in err)
    assert (run.directory / "run" / "checkpoint.npz").exists()


def test_a_finished_run_reports_again_and_other_pictures_are_noticed(run, folder, capsys):
    out = run()
    before, first = (out / "checkpoint.npz").read_bytes(), capsys.readouterr().out
    run("--resume", "--workers=0")
    (accuracy,) = (line for line in first.splitlines() if line.startswith("accuracy "))
    assert accuracy in capsys.readouterr().out.splitlines()
    assert (out / "checkpoint.npz").read_bytes() == before
    with pytest.raises(ValueError, match="other images"):
        run("--resume", "--data", folder / "train")
    for option, value in (("--lr", "0.01"), ("--probe", "''"), ("--mean", "''")):
        with pytest.raises(ValueError, match=rf"{option} is {value} in the run to resume"):
            run("--resume", f"{option}={'ridge' if option == '--probe' else 0.5}")
    with pytest.raises(ValueError, match="--overwrite replaces them"):
        run(overwrite=False)
    with pytest.raises(ValueError, match=r"new run .*: --weights .*checkpoint.npz --head keep"):
        run("--resume", "--steps=12")


def test_pictures_of_val_belong_to_the_run(run, folder, tmp_path):
    top = shutil.copytree(folder, tmp_path / "moved")
    run("--data", top)
    (top / "val" / "hay" / "0.png").rename(top / "val" / "hay" / "00.png")
    with pytest.raises(ValueError, match="other images"):
        run("--resume", "--data", top)


def test_another_scripts_checkpoint_is_kept(run, tmp_path):
    data = make_data(tmp_path / "small")
    words = ["--patch-size=4", "--num-blocks=1", "--hidden-dim=8", "--tokens-mlp-dim=4",
             "--channels-mlp-dim=8", "--epochs=1", "--data-dir", data]  # fmt: skip
    run(*words, main=train_mnist.main)
    with pytest.raises(ValueError, match=r"holds checkpoint\.npz, metrics\.csv"):
        run(overwrite=False)
    with pytest.raises(ValueError, match="was not written by this script: its setting"):
        run("--resume")


# ---- folders as people have them ----------------------------------------------------------------


def test_val_may_lack_classes_and_be_called_test(run, folder, tmp_path, capsys):
    top = shutil.copytree(folder, tmp_path / "fewer")
    shutil.rmtree(top / "val" / "hay")
    for file in (top / "val" / "jar").iterdir():
        file.unlink()
    (top / "val").rename(top / "test")
    for words in ([], ["--probe=ridge", "--out=probe"]):
        out = run("--data", top, *words)
        said = capsys.readouterr().err
        assert "no pictures of hay, jar to validate on" in said
        assert "test, as there is no val/" in said
    model = Mixer.load(run("--data", top) / "checkpoint.npz")
    assert model.class_names == ["hay", "ivy", "jar"]
    assert (out / "checkpoint.npz").exists()
    (top / "test" / "new").mkdir()
    shutil.copy(top / "train" / "jar" / "0.png", top / "test" / "new")
    with pytest.raises(ValueError, match="has pictures of new, which is not among the classes"):
        run("--data", top)


def test_one_class_alone(run, folder, tmp_path):
    shutil.copytree(folder / "train" / "hay", tmp_path / "lone" / "hay")
    with pytest.raises(ValueError, match=r"has one class, hay, and nothing .* give that one"):
        run("--data", tmp_path / "lone")


def test_the_bar_ends_at_the_end(run, folder, tmp_path, monkeypatch, capsys):
    """Although pictures that turn out to be damaged are trained on by nobody."""
    top = half_broken(folder, tmp_path)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)  # else there is no bar
    run("--data", top)
    err = capsys.readouterr().err
    assert "100%|" in err.replace("\r", "\n").splitlines()[-2]
    assert re.search(r"skipped 12 files \(.*and 9 more\): it is none of", err)
    found = read_csv(tmp_path / "run" / "skipped.csv")
    assert len(found) == 14 and all(Path(row["file"]).exists() for row in found)


def test_a_picture_that_is_gone_when_it_is_read(run, folder, tmp_path, monkeypatch, capsys):
    top = shutil.copytree(folder, tmp_path / "going")

    def remove(*_):
        (top / "train" / "hay" / "3.png").unlink()
        shutil.rmtree(top / "val" / "jar")

    watch(monkeypatch, finetune.Run, "start", remove)
    out = run("--data", top)
    said = capsys.readouterr().err
    assert re.search(r"skipped 4 files \(.*3.png, .*\): it can't be read", said)
    assert "no picture of jar was validated on" in said
    assert len(read_csv(out / "skipped.csv")) == 6


def test_interpolation_is_the_validations(run, plain):
    out = run("--interpolation=bicubic")
    assert_same(out, plain)
    assert history(out)[-1]["val_loss"] != history(plain)[-1]["val_loss"]


def test_class_names_of_every_kind(tmp_path, folder, weights, monkeypatch):
    """Two dollars, an escape character, bytes that are no UTF-8: to the end, report included."""
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(run_module, "save_pictures", save_pictures)
    names = ["$a$ or $b$", "esc\x1b[31m", os.fsdecode(b"caf\xe9"), "two\nlines", "x" * 255]
    for name in names:
        shutil.copytree(folder / "train" / "hay", tmp_path / "data" / name)
    runner = Runner(tmp_path, tmp_path / "data", weights)
    words = [*runner.basic, "--steps=2", "--eval-every=2", "--out=run"]
    for extra in ([], ["--probe=ridge", "--shots=2", "--out=other"]):
        said, err = runner.script(*words, *extra, pictures=True, warnings="default")
        assert "\x1b[31m" not in said + err and (said + err).encode() and "wrote run" not in err
    assert sorted(Mixer.load(tmp_path / "run" / "checkpoint.npz").class_names) == sorted(names)
    line = runner.script.refused(*words, "--shots=100", "--out=more", match="has 7 pictures")
    assert "\x1b" not in line


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("words, match", [
    (["--steps=0"], "--steps"), (["--lr=nan"], "--lr"), (["--mixup=3"], "--mixup"),
    (["--optimizer=lion"], "--optimizer"), (["--probe=x"], "--probe"), (["--head=x"], "--head"),
    (["--data="], "--data"), (["--data=none"], "none is not a directory"),
    (["--weights="], "--weights"),
    (["--variant=mixer_s32"], "--variant"), (["--hidden-dim=8"], "--hidden-dim"),
    (["--image-size=13"], "12 x 12, 24 x 24"), (["--freeze=nothing"], "nothing"),
    (["--shots=100"], "hay has 8 pictures"), (["--holdout=2"], "--holdout"),
    (["--workers=-1"], "--workers"), (["--keep=first"], "--keep"),
    (["--patience=-1"], "--patience"),
    (["--probe=ridge", "--keep=best"], "--keep best"), (["--wei=x"], "unrecognized"),
])  # fmt: skip
def test_bad_options(run, words, match):
    with pytest.raises((ValueError, OSError), match=re.escape(match)):
        run(*words)
    assert not (run.directory / "run" / "checkpoint.npz").exists()


def test_one_line_for_what_the_user_can_mend(run):
    for words in (["--nonsense"], ["--data=none", "--weights=x"], []):
        run.script.refused(*words)


def test_each_comparison_has_its_directory(run, small, monkeypatch, capsys):
    monkeypatch.chdir(run.directory)
    done = []
    monkeypatch.setattr(transfer, "compare", lambda options, device, out: (
        done.append(str(out)), (out / "transfer.csv").touch(), (out / "sweep.csv").touch()
    ))  # fmt: skip
    for more in ([], [], ["--overwrite"], ["--out=x"], ["--out=x", "--overwrite"]):
        monkeypatch.setattr(sys, "argv", ["transfer.py", *map(str, small), *more])
        assert transfer.main() == 0
    assert done == ["runs/transfer", "runs/transfer-2", "runs/transfer", "x", "x"]
    assert "results go to runs/transfer-2" in capsys.readouterr().out
    sys.argv.remove("--overwrite")
    with pytest.raises(ValueError, match=r"x holds sweep\.csv, transfer\.csv: --overwrite"):
        transfer.main()


def test_a_precision_that_a_gpu_lacks_is_said(weights, monkeypatch, capsys):
    """Once, in one line; and it is an error if it was asked for."""
    why = "precision bfloat16 needs a GPU of compute capability 8.0"
    monkeypatch.setattr(start_module.backend, "check_precision", lambda *_: raises(ValueError(why)))
    model, options = Mixer.load(weights), argparse.Namespace(precision="bfloat16", resume=False)
    monkeypatch.setattr(model, "set_precision", lambda precision: None)
    start_module.set_precision(argparse.Namespace(options=options, given=set()), model)
    assert options.precision == "float32"
    assert capsys.readouterr().out == f"training in float32: {why}\n"
    options.precision = "bfloat16"
    with pytest.raises(ValueError, match="compute capability"):
        start_module.set_precision(argparse.Namespace(options=options, given={"precision"}), model)


# ---- the best validation -------------------------------------------------------------------------

WORSE = ["--steps=24", "--eval-every=2", "--lr=2", "--schedule=constant", "--warmup=0", "--clip=0",
         "--momentum=0.5"]  # fmt: skip  # too fast to get better all the time


def best_of(out):
    """The number of the best row, by another way than best_row's."""
    scores = [(-float(row["val_accuracy"]), float(row["val_loss"])) for row in history(out)]
    return scores.index(min(scores))


def test_the_best_weights_are_kept(run, monkeypatch, capsys):
    plain = run(*WORSE, out="plain")
    saved = []
    watch(monkeypatch, run_module, "save_checkpoint", lambda path, *_: saved.append(path.name))
    out = run(*WORSE, "--keep=best")
    assert saved[:2] == ["best.npz", "checkpoint.npz"]  # a kill between them makes the row again
    assert_same(out, plain)
    number, found = best_of(out), history(out)
    assert number < len(found) - 1
    until = run(*WORSE, f"--steps={2 * number + 2}", out="until")  # of a constant learning rate
    same_state(Mixer.load(out / "best.npz"), weights_in(until))
    said = capsys.readouterr().out
    accuracy = float(found[number]["val_accuracy"])
    wanted = f"accuracy {accuracy:.2%} on 9 pictures after step {2 * number + 2}, the best of 12"
    assert wanted in said and f"wrote {out / 'best.npz'}" in said
    run("--resume")  # which looks at the pictures again, with the best weights
    assert wanted in capsys.readouterr().out
    run(*WORSE)
    assert not (out / "best.npz").exists()  # it would be another run's


@pytest.mark.parametrize("at", quick(
    ["step 5 SIGINT", "fsync 4 SIGKILL", "fsync 5 SIGKILL", "replaced 7 SIGKILL",
     "step 15 SIGKILL"], "fsync 5 SIGKILL"))  # fmt: skip
def test_the_best_survives_whatever_happens(run, at):
    whole = run(*WORSE, "--keep=best", out="whole")
    run.process(*run.basic, *WORSE, "--keep=best", "--out=run", at=at,
                status=130 if "INT" in at else -signal.SIGKILL)  # fmt: skip
    out = run("--resume")
    assert_same(out, whole)
    assert best_of(out) == best_of(whole)
    same_state(Mixer.load(out / "best.npz"), Mixer.load(whole / "best.npz").state_dict())


def test_patience_ends_a_run(run, capsys):
    whole = history(run(*WORSE, out="whole"))
    capsys.readouterr()
    out = run(*WORSE, "--patience=2")
    found = history(out)
    assert 3 <= len(found) < 12 and best_of(out) == len(found) - 3
    assert without_times(found) == without_times(whole[: len(found)])
    said = capsys.readouterr().out
    assert "ended before step 24: 2 validations in a row were not better" in said
    before = (out / "checkpoint.npz").read_bytes()
    run("--resume")  # it is over
    assert (out / "checkpoint.npz").read_bytes() == before
    assert history(out) == found
    with pytest.raises(ValueError, match=r"holds checkpoint\.npz, metrics\.csv, skipped\.csv: "):
        run(overwrite=False)  # which does not call it unfinished


def test_two_runs_on_one_directory(run):
    """A worker that outlives its killed trainer for a moment holds nothing."""
    words = [*run.basic, "--steps=1000000", "--eval-every=50", "--workers=2", "--out=run"]
    with run.script.start(*words) as process, killed_at_last(process):
        wait_for(process, "step 50/")
        with pytest.raises(BlockingIOError, match="another run is working in"):
            run()
        process.kill()
        process.wait()
        with pytest.raises(ValueError, match="other images"):
            run("--resume", "--data", run.basic[1] / "train")


def test_not_one_picture(run, tmp_path):
    for name in "ab":
        (tmp_path / "bad" / name).mkdir(parents=True)
        for number in (1, 2):
            (tmp_path / "bad" / name / f"{number}.png").touch()
    words = [*run.basic, "--data", tmp_path / "bad", "--out=run"]
    run.script.refused(*words, match="no file of a, b can be used, .*1.png: the file is empty")
    for file in (tmp_path / "bad").rglob("*.png"):
        file.write_bytes(CUT)
    _, err = run.script(*words, status=2)
    assert re.search(r"\nfinetune: Loader: no picture could be decoded.*damaged", err)
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_memory_and_errors_of_scripts(capsys):
    with pytest.raises(SystemExit) as ended:
        command_line.run_script(lambda: raises(MemoryError("much")), "name", "take less")
    assert ended.value.code == 2
    assert capsys.readouterr().err == "name: out of memory; take less: much\n"


@pytest.mark.parametrize("free", [1 << 20, 1 << 40])
def test_a_compiler_gets_room_for_headers_only_where_there_is_some(free, monkeypatch):
    monkeypatch.setenv("CUPY_NVRTC_USE_PCH", "")
    monkeypatch.delenv("CUPY_NVRTC_USE_PCH")
    monkeypatch.setattr(shutil, "disk_usage", lambda directory: argparse.Namespace(free=free))
    with pytest.raises(SystemExit):
        command_line.run_script(lambda: 0, "name")
    assert ("CUPY_NVRTC_USE_PCH" in os.environ) == (free > 1 << 30)


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
    assert len(read_csv(out / "probe.csv")) == 3


# ---- transfer.py --------------------------------------------------------------------------------


@pytest.fixture
def small(tmp_path, monkeypatch):
    """Options of transfer.py for a few seconds' worth."""
    up, down = (make_data(tmp_path / name, train=120, test=30, shape=(14, 7), seed=seed)
                for seed, name in enumerate(("up", "down")))  # fmt: skip
    for name, value in dict(LABELS=(4, 9), HELD_OUT=60, SWEEP=[("sgd", 0.1), ("adamw", 0.01)],
                            SWEEP_DRAWS=1).items():  # fmt: skip
        monkeypatch.setattr(transfer, name, value)
    return ["--upstream", up, "--downstream", down, "--steps=10", "--draws=3", "--epochs=20"]


@pytest.mark.slow
def test_the_whole_comparison(run, small, capsys):
    out = run(*small, main=transfer.main)
    found = read_csv(out / "transfer.csv")
    assert len(found) == 2 * 2 * 3 and len(read_csv(out / "sweep.csv")) == 2 * 2 * 2
    said = capsys.readouterr().out
    for labels in ("4", "9"):
        of = [float(r["accuracy"]) for r in found
              if (r["method"], r["labels"]) == ("fine-tuned", labels)]  # fmt: skip
        error = np.std(of, ddof=1) / np.sqrt(3)
        assert re.search(rf"{labels} labels +fine-tuned +{np.mean(of):.2%} \+- {error:.2%}", said)
    assert found == read_csv(run(*small, out="again", main=transfer.main) / "transfer.csv")


def test_the_comparison_is_fair(run, small, monkeypatch):
    """Who is trained on what, from where, for how long, and who judges."""
    trained, judged = [], []

    def train(model, images, labels, setting, steps, batch_size, seed):
        trained.append((model.state_dict(), images, labels, setting, steps, batch_size))
        for parameter in model.parameters():  # stands for training: adamw wins the sweep
            parameter.data = parameter.data + np.float32(0.01 if setting[0] == "sgd" else 0.02)

    def accuracy(model, images, labels):
        judged.append(images)
        return 0.5 + float(model.head.bias.data[0])

    monkeypatch.setattr(transfer, "train", train)
    monkeypatch.setattr(transfer, "accuracy", accuracy)
    run(*small, main=transfer.main)
    _, _, test_images, _ = transfer.load(str(small[3]), range(10))
    pretraining, sweep, final = trained[0], trained[1:9], trained[9:]
    assert len(final) == 12 and pretraining[4] == 20 and len(pretraining[1]) == 120
    pretrained = pretraining[0]["stem.weight"] + np.float32(0.02)
    for runs in (sweep, final):
        half = len(runs) // 2
        for number, (weights, images, labels, _, steps, size) in enumerate(runs):
            assert (steps, size) == (10, 64) and len(images) == len(labels) in (4, 9)
            same = np.array_equal(weights["stem.weight"], pretrained)
            assert same == (number < half) and not weights["head.weight"].any()
        for one, other in zip(runs[:half], runs[half:], strict=True):  # the same labels for both
            np.testing.assert_array_equal(one[1], other[1])
    assert {entry[3] for entry in final} == {("adamw", 0.01)}
    swept = {image.tobytes() for entry in sweep for image in entry[1]}
    used = {image.tobytes() for entry in final for image in entry[1]}
    held_out = {image.tobytes() for images in judged[1:9] for image in images}
    assert len(held_out) == 60 and not held_out & (swept | used)
    assert {entry[1].tobytes() for entry in sweep}.isdisjoint(e[1].tobytes() for e in final)
    assert all(np.array_equal(images, test_images) for images in judged[9:])
    assert not held_out & {image.tobytes() for image in test_images}


def test_too_few_images_are_an_error(run, small, monkeypatch):
    monkeypatch.setattr(transfer, "LABELS", (90,))
    with pytest.raises(ValueError, match=r"\[40, 40, 40\]; too few for 90"):
        run(*small, main=transfer.main)


def test_labels_are_drawn_evenly_and_apart_from_those_held_out():
    labels = np.random.default_rng(0).integers(0, 3, 500)
    one, other = (transfer.draw_labels(labels, 10, 0, draw) for draw in (0, 1))
    assert np.bincount(labels[one]).tolist() == [4, 3, 3] and len(set(one)) == 10
    assert sorted(one) != sorted(other)
    held, rest = transfer.split(500, 100, 0)
    assert sorted([*held, *rest]) == list(range(500)) and len(held) == 100
    images, classes, *_ = transfer.load("", range(5, 10))
    assert len(images) == 29404 and set(classes) == set(range(5))
