"""The training script as a user runs it: results, stopping at any moment, what it refuses."""

import contextlib
import importlib.util
import json
import os
import random
import re
import runpy
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time

import numpy as np
import pytest
from help import raises
from minimixer.data import Batches, load_directory
from processes import quick
from scripts import (
    EXAMPLES,
    SCRIPT,
    SMALL,
    Runner,
    contents,
    history,
    killed_at_last,
    make_data,
    results,
    wait_for,
    without_times,
)

from minimixer import AdamW, Mixer, schedule
from minimixer import functional as F
from minimixer.training import files
from minimixer.training.checkpoint import read_checkpoint
from minimixer.training.idx import write_idx

COLUMNS = [
    "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
    "images_per_second",
]  # fmt: skip
EPOCHS, STEPS = 4, 3  # of 80 images: 32, 32, 16


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "small")


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path)


@pytest.fixture
def train(tmp_path, small):
    """Small runs in run/."""
    return Runner(tmp_path, usual=[*SMALL, "--data-dir", small, "--out=run"])


@pytest.fixture(scope="module")
def reference(tmp_path_factory, small):
    """An undisturbed run in a process of its own: its directory, and what it said."""
    path = tmp_path_factory.mktemp("reference")
    return path / "run", *Runner(path)(*SMALL, "--data-dir", small, "--out=run", apart=True)


@pytest.fixture
def finished(reference, tmp_path):
    """A copy of it as run/."""
    return shutil.copytree(reference[0], tmp_path / "run")


def assert_same_run(out, other):
    """Bit for bit, but for the clock."""
    (meta, arrays), (other_meta, other_arrays) = (
        read_checkpoint(path / "checkpoint.npz") for path in (out, other)
    )
    assert arrays.keys() == other_arrays.keys()
    assert any(name.startswith("optimizer/exp_avg_sq/") for name in arrays)
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name
    for progress in (meta["progress"], other_meta["progress"]):
        progress["history"] = without_times(progress["history"])
        del progress["settings"]["data_dir"]  # it may have moved
    assert meta == other_meta
    assert without_times(history(out)) == without_times(history(other))
    assert not list(out.glob(".*.tmp"))


@pytest.fixture
def as_undisturbed(tmp_path, reference):
    """as_undisturbed(out): what is there is what an undisturbed run left."""
    return lambda out="run": assert_same_run(tmp_path / out, reference[0])


def arrays_in(path):
    return read_checkpoint(path / "checkpoint.npz")[1]


def epochs_in(path):
    """How many epochs had ended when the checkpoint was written."""
    return len(read_checkpoint(path / "checkpoint.npz")[0]["progress"]["history"])


# ---- a run ---------------------------------------------------------------------------------


def test_small_data(reference, small):
    out, said, progress = reference
    assert results(out) == ["checkpoint.npz", "metrics.csv"]
    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"] and list(rows[0]) == COLUMNS
    assert all(float(value) > 0 for row in rows for value in row.values())
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    accuracy = float(rows[-1]["test_accuracy"])
    assert accuracy > 0.6  # chance: 0.33

    # Without a terminal: a line for each epoch, a summary, and no bar.
    first, *epochs, found, speed, wrote, pictures = said.splitlines()
    assert re.match("80 training images of 3 classes .*Mixer with [\\d,]+ parameters on cpu", first)
    for line, row in zip(epochs, rows, strict=True):
        met = f"epoch {row['epoch']}/4: test accuracy {float(row['test_accuracy']):.2%}, loss "
        assert line.startswith(met) and len(line) < 80
    assert found.startswith(f"test accuracy {accuracy:.2%} on 30 images")
    assert re.match(r"4 epochs in \d+ s, [\d,]+ images/s", speed)
    assert "checkpoint.npz" in wrote and "metrics.csv" in wrote and ".png" not in said
    assert "matplotlib" in pictures  # how to get them
    assert "\x1b" not in said and "\r" not in said and not progress

    model = Mixer.load(out / "checkpoint.npz")
    assert model.class_names == ["0", "1", "2"] and model.num_classes == 3
    assert (model.height, model.width, model.in_channels) == (12, 8, 1)
    _, _, images, labels = load_directory(small)
    assert (model.predict(images) == labels).mean() == accuracy
    probabilities = model.predict_proba(images)[np.arange(30), labels]
    assert float(rows[-1]["test_loss"]) == pytest.approx(-np.log(probabilities).mean(), rel=1e-5)


def test_the_figures_are_those_of_the_training(reference, small):
    """The same loop, written once more with less around it."""
    images, labels, test_images, test_labels = load_directory(small)
    model = Mixer(
        image_size=(12, 8), in_channels=1, num_classes=3, patch_size=4, num_blocks=2,
        hidden_dim=16, tokens_mlp_dim=8, channels_mlp_dim=32, seed=0,
    )  # fmt: skip
    optimizer = AdamW(model.parameters(), lr=0.02, weight_decay=0.05)
    batches = Batches(images, labels, 32, seed=0, max_shift=1)
    for epoch, row in enumerate(history(reference[0])):
        losses, hits = 0.0, 0
        for index in range(STEPS):
            x, y = batches.batch(epoch, index)
            optimizer.zero_grad()
            logits = model(x)
            loss = F.cross_entropy(logits, y)
            loss.backward()
            optimizer.lr_factor = schedule(epoch * STEPS + index, EPOCHS * STEPS, 1)
            optimizer.step()
            losses += loss.item() * len(y)
            hits += (logits.data.argmax(axis=1) == y).sum()
        hits_of_test = (model.predict(test_images) == test_labels).sum()
        assert float(row["train_loss"]) == pytest.approx(losses / 80, rel=1e-3)
        assert float(row["train_accuracy"]) == pytest.approx(hits / 80, abs=1.1 / 80)
        assert float(row["test_accuracy"]) == pytest.approx(hits_of_test / 30, abs=1.1 / 30)


@pytest.mark.parametrize("columns", quick([80, 132], 80))
def test_a_terminal_has_a_bar_that_fits(run, columns):
    """Its end, the loss, is there, and its middle is a bar; the lines of the epochs are whole."""
    ours, theirs = pytest.importorskip("pty", reason="no terminals here").openpty()
    fcntl, termios = map(importlib.import_module, ("fcntl", "termios"))
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    options = ["--limit-train=8000", "--epochs=2", "--num-blocks=1", "--hidden-dim=8"]
    with run.start(*options, "--out=run", terminal=theirs) as process, killed_at_last(process):
        os.close(theirs)
        met = b""
        with contextlib.suppress(OSError):  # how a terminal says that all is over
            while piece := os.read(ours, 10_000):
                met += piece
    os.close(ours)
    assert process.returncode == 0
    lines = [line for line in re.split(r"[\r\n]+|\x1b\[A", met.decode()) if line.strip()]
    bars = [line for line in lines if re.search(r"loss [\d.]+, [\d.]+%$", line)]
    assert bars and max(map(len, bars)) <= columns
    assert all(re.search(r"^epoch \d/2 +\d+%\|.{8,}\|", line) for line in bars)
    assert sum(line.startswith("epoch 1/2: test accuracy") for line in lines) == 1


def test_the_embedded_mnist(run, tmp_path):
    pytest.importorskip("matplotlib")
    out, err = run("--limit-train=2000", "--epochs=1", "--batch-size=16", "--out=here/run",
                   "--num-blocks=1", "--hidden-dim=32", "--channels-mlp-dim=64", "--lr=0.01",
                   pictures=True, apart=True, warnings="default")  # fmt: skip
    here = tmp_path / "here" / "run"
    files = ["checkpoint.npz", "curves.png", "metrics.csv", "mistakes.png"]
    assert results(here) == files
    assert all(f"here/run/{file}" in out.splitlines()[-1] for file in files)
    for file in ("curves.png", "mistakes.png"):
        assert (here / file).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "2,000 training images of 10 classes" in out and "on 10,000 images" in out
    assert float(history(here)[-1]["test_accuracy"]) > 0.5  # chance: 0.1
    assert "pip" not in out and "Warning" not in err
    assert Mixer.load(here / "checkpoint.npz").class_names == list("0123456789")


def test_a_terminal_that_is_closed(run, train, tmp_path, as_undisturbed):
    """The run is told by SIGHUP, twice, and can't write a word any more; it saves all the same."""
    ours, theirs = pytest.importorskip("pty", reason="no terminals here").openpty()
    with train.start(at="step 4 nap", terminal=theirs) as process, killed_at_last(process):
        os.close(theirs)
        met = b""
        while b"asleep\r\n" not in met:
            met += os.read(ours, 1000)
        os.close(ours)  # from now on EIO
        for _ in range(2):
            process.send_signal(signal.SIGHUP)
            time.sleep(0.1)
        process.send_signal(signal.SIGCONT)
        assert process.wait(90) == 130
    assert read_checkpoint(tmp_path / "run/checkpoint.npz")[0]["progress"]["step"] == 4
    run("--resume", "--out=run")
    as_undisturbed()


@pytest.mark.slow
def test_nobody_reads(train, as_undisturbed):
    """As `| head -1` does: the run is not lost for that."""
    with train.start(at="step 4 nap") as process, killed_at_last(process):
        wait_for(process, "asleep\n")
        process.stdout.close()
        process.stderr.close()
        assert process.wait(90) == 0
    as_undisturbed()


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- 2>&-", ">&- 2>&-", ">&-"])
def test_streams_that_were_never_open(small, tmp_path, closed, as_undisturbed):
    """A file of ours may get their numbers: nothing is written there."""
    words = [sys.executable, "-c", "import sys, train_mnist; sys.exit(train_mnist.main())"]
    words += [*SMALL, "--data-dir", small, "--out=run"]
    subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words)], cwd=tmp_path, check=True,
        env=os.environ | {"PYTHONPATH": f"{EXAMPLES.parent}{os.pathsep}{EXAMPLES}"}, timeout=90,
    )  # fmt: skip
    as_undisturbed()
    assert not (tmp_path / "run/.lock").read_bytes()


def test_nohup_is_respected(train, as_undisturbed):
    train(at="step 4 SIGHUP", preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    as_undisturbed()


@pytest.mark.parametrize(
    "at", quick(["fsync 1", "replace 1", "replaced 1", "predict 1", "fsync 3"], "replaced 1")
)
def test_signals_while_saving_and_evaluating(train, tmp_path, at, as_undisturbed):
    """One is noted; the second ends it at once, and what was saved before is whole."""
    train.resume(train(at=f"{at} SIGINT", status=130))
    as_undisturbed()
    train("--overwrite", at=f"{at} twice", status=-signal.SIGINT)
    assert Mixer.load(tmp_path / "run" / "checkpoint.npz")


def test_ctrl_c_before_the_training_is_one_line(train, tmp_path):
    train.refused(at="made 1 SIGINT", status=130, match="train_mnist: stopped$")
    assert not results(tmp_path / "run")


def test_help_names_every_option(run):
    out, err = run("--help")
    names = runpy.run_path(str(SCRIPT), run_name="imported")["SETTINGS"]
    assert not err and len(names) >= 10
    for name in (*names, "device", "out", "resume"):
        assert f"--{name.replace('_', '-')}" in out
    for name, (default, _, text, *_) in names.items():
        shown = text + (f"(default: {default}" if default != "" else "")
        assert "".join(shown.split()) in "".join(out.split()), name


def test_importing_the_script_does_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    watched = (signal.SIGINT, signal.SIGTERM)
    before = [*map(signal.getsignal, watched)]
    runpy.run_path(str(SCRIPT), run_name="imported")
    assert before == [*map(signal.getsignal, watched)]
    assert not os.listdir(tmp_path)


def test_the_same_run_twice_and_another_seed(train, reference, tmp_path, as_undisturbed):
    train()
    as_undisturbed()
    train("--out=other", "--seed=1")
    arrays, others = (arrays_in(out) for out in (tmp_path / "other", reference[0]))
    assert all((arrays[name] != others[name]).any() for name in arrays if "weight" in name[8:])


@pytest.mark.parametrize(
    "option", ["--schedule=linear", "--warmup=0", "--clip=0.1", "--max-shift=0", "--weight-decay=1"]
)
def test_options_have_an_effect(train, reference, tmp_path, option):
    train(option)
    arrays, others = (arrays_in(out) for out in (tmp_path / "run", reference[0]))
    assert (arrays["weights/stem.weight"] != others["weights/stem.weight"]).any()


def test_images_that_are_no_pictures(train, tmp_path):
    """matplotlib can't show two channels: the training must not be lost for that."""
    data = make_data(tmp_path / "data", shape=(12, 8, 2), train=40, classes=2)
    out = train("--epochs=1", "--data-dir", data, pictures=True, warnings="default").stdout
    assert "of 2 classes" in out and "test accuracy" in out
    assert Mixer.load(tmp_path / "run" / "checkpoint.npz").in_channels == 2
    assert len(history(tmp_path / "run")) == 1


# ---- stopped and resumed -------------------------------------------------------------------

LAST = EPOCHS * STEPS


@pytest.mark.parametrize(
    "step, name", [(1, "SIGINT"), (2, "SIGTERM"), (2, "SIGHUP"), (STEPS, "SIGINT"),
                   (STEPS + 2, "SIGINT"), (LAST, "SIGINT")],
)  # fmt: skip
def test_interrupted_and_resumed(train, tmp_path, step, name, as_undisturbed):
    """In the middle of an epoch, after the last batch of one, and after the very last step."""
    said = train(at=f"step {step} {name}", status=130)
    *epochs, line = said.stdout.splitlines()[1:]  # after what was begun: one message
    assert len(epochs) == (step - 1) // STEPS
    assert f"after step {step} of {LAST}" in line and "checkpoint.npz" in line
    assert (tmp_path / "run" / "checkpoint.npz").is_file() and "train_mnist" not in said.stderr
    assert "test accuracy" in train.resume(said).stdout
    as_undisturbed()


@pytest.mark.slow
def test_interrupted_at_every_step(run, train, tmp_path, as_undisturbed):
    """Again and again, one step each time."""
    for step in range(1, LAST):
        go_on = train if step == 1 else Runner(tmp_path, usual=["--resume", "--out=run"])
        assert f"after step {step} of {LAST}" in go_on(at="step 1 SIGINT", status=130).stdout
    run("--resume", "--out=run")
    as_undisturbed()


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once(train, tmp_path, name):
    number = getattr(signal, name)
    with train.start(at="step 4 sleep") as process, killed_at_last(process):
        wait_for(process, "asleep")
        before = contents(tmp_path / "run")
        process.send_signal(number)
        with pytest.raises(subprocess.TimeoutExpired):  # the step is not over
            process.wait(0.3)
        process.send_signal(number)
        process.communicate(timeout=5)
    assert process.returncode in (-number, 130)
    assert contents(tmp_path / "run") == before
    assert epochs_in(tmp_path / "run") == 1


def test_a_checkpoint_that_is_gone_is_not_called_whole(train):
    line = train.refused(at="step 4 usurp")
    assert "run/checkpoint.npz is gone" in line and "whole" not in line


def test_the_command_to_go_on_can_be_shown_and_pasted(train, run, as_undisturbed):
    name = "r\x1b[31mun it's"
    out = train(f"--out={name}", at="step 2 SIGINT", status=130).stdout
    assert out.replace("\n", "").isprintable()
    shown = ["bash", "-c", "printf '%s\\0' " + out.splitlines()[-1].split("to go on: ")[1]]
    words = subprocess.check_output(shown, encoding="utf-8").split("\0")[2:-1]
    assert name in words
    run(*words)
    as_undisturbed(name)


# In the order of a run: files are written before training, and two after each epoch.
KILLS = [
    *(f"{w} {n} SIGKILL" for w in ("fsync", "replace", "replaced") for n in (2, 4, 5)),
    "step 3 cut", "step 4 cut", "step 9 SIGKILL",
]  # fmt: skip


@pytest.mark.parametrize("at", quick(KILLS, *KILLS[::4]))
def test_killed_while_writing(run, train, tmp_path, at, as_undisturbed):
    train(at=at, status=-signal.SIGXFSZ if at.endswith("cut") else -signal.SIGKILL)
    left = [name for name in results(tmp_path / "run") if not name.endswith(".tmp")]
    assert set(left) <= {"checkpoint.npz", "metrics.csv"}
    if "checkpoint.npz" in left:
        assert epochs_in(tmp_path / "run") >= 1
        assert np.isfinite(Mixer.load(tmp_path / "run" / "checkpoint.npz").head.weight.data).all()
        run("--resume", "--out=run")
    else:
        train()
    as_undisturbed()
    assert results(tmp_path / "run") == ["checkpoint.npz", "metrics.csv"]


@pytest.mark.parametrize("at", ["step 4 full", "replaced 1 brimful"])  # then: metrics.csv
def test_a_full_disk(run, train, tmp_path, at, as_undisturbed):
    line = train.refused(at=at, match="(large|space).*--resume")
    out = tmp_path / "run"
    assert "the last checkpoint, run/checkpoint.npz, is whole" in line and str(out) in line
    assert epochs_in(out) == 1
    assert not list(out.glob(".*.tmp"))
    run("--resume", "--out=run")
    as_undisturbed()


LONG = [*SMALL, "--epochs=50"]


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("long")
    Runner(path)(*LONG, "--data-dir", small, "--out=run")
    return path / "run"


RANDOM = [("SIGKILL", 0), *((name, seed) for name in ("SIGKILL", "SIGINT") for seed in (1, 2))]


@pytest.mark.parametrize("case", quick(RANDOM, RANDOM[0]), ids=str)
def test_killed_at_random(run, small, long_reference, tmp_path, case):
    """At seeded moments, again and again, and resumed each time."""
    (name, seed), out, met = case, tmp_path / "run", 0
    number, rng = getattr(signal, name), random.Random(seed)
    begin, go_on = [*LONG, "--data-dir", small, "--out=run"], ["--resume", "--out=run"]
    for _ in range(8 if seed else 4):
        there = (out / "checkpoint.npz").is_file()
        with run.start(*(go_on if there else begin)) as process, killed_at_last(process):
            ended = wait_for(process, "epoch ", "images after")  # if the last signal came so late
            time.sleep(rng.uniform(0, 0.2))
            process.send_signal(number)
            said, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        if "images after" in ended + said:  # a signal that comes after that may end it in any way
            break
        assert process.returncode == (130 if number == signal.SIGINT else -number), said
        met += 1
    run(*(go_on if (out / "checkpoint.npz").is_file() else begin))
    assert met >= 2
    assert_same_run(out, long_reference)


def test_resuming_with_other_options(run, train, small, tmp_path, as_undisturbed):
    train(at="step 4 SIGINT", status=130)  # in its second epoch
    before = contents(tmp_path / "run")
    for option, stored, value in (
        ("--lr", "0.02", 0.5), ("--patch-size", "4", 2), ("--schedule", "cosine", "linear"),
    ):  # fmt: skip
        run.refused("--resume", "--out=run", option, value, match=f"{option} is '?{stored}")
    other = make_data(tmp_path / "other", seed=1)
    run.refused("--resume", "--out=run", "--data-dir", other, match="other images")
    run.refused("--resume", "--out=run", "--overwrite", match="--overwrite is for a new run")
    run.refused(*SMALL, "--data-dir", small, "--out=run", match="unfinished.*--resume")
    assert contents(tmp_path / "run") == before
    # What is the same may be said again, and data may have moved.
    moved = shutil.copytree(small, tmp_path / "moved")
    run("--resume", "--out=run", *SMALL, "--seed=0", "--data-dir", moved)
    as_undisturbed()


def test_nothing_to_resume(run, tmp_path):
    run.refused("--resume", "--out=none", match=r"no none/checkpoint\.npz")
    assert not os.listdir(tmp_path)


def test_a_finished_run_reports_again(run, train, reference, finished):
    before = contents(finished)
    said = run("--resume", "--out=run").stdout
    summary = [line for line in reference[1].splitlines() if line.startswith(("test acc", "4 ep"))]
    assert len(summary) == 2 and all(line in said for line in summary)
    train.refused("--epochs=1", match="holds checkpoint.npz, metrics.csv: --overwrite")
    assert contents(finished) == before
    train("--epochs=1", "--overwrite")
    assert len(history(finished)) == 1


@pytest.mark.parametrize("damage", ["cut", "a weight lost"])
def test_resuming_from_a_damaged_checkpoint(run, finished, damage):
    path = finished / "checkpoint.npz"
    arrays = dict(np.load(path))
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:1000])
    else:
        np.savez(path, **{name: arrays[name] for name in arrays if name != "weights/head.bias"})
    before = contents(finished)
    run.refused("--resume", "--out=run", match="checkpoint.npz")
    assert contents(finished) == before


GONE = object()


def nonsense():
    """(what to change, to what): wrong types, and numbers that no run can have written."""
    yield from ((("progress",), value) for value in (None, [], {"settings": {}}))
    yield from ((("progress", name), GONE) for name in ("data", "history", "step", "seconds"))
    yield from ((("progress", *place), value) for place, value in nonsense_in_progress())


def nonsense_in_progress():
    for name in ("data", "step", "steps", "images", "correct", "loss_sum", "seconds", "waited"):
        for value in (-1, 2**70, 1e400, np.nan, None, True, "3", [], {}, -0.5, 10**400):
            yield (name,), value
    yield from ((("step",), 13), (("step",), 11), (("correct",), 5), (("history",), {}))
    yield from ((("history",), value) for value in ([1], [{}], [None], [[]], "ab", None))
    for name in COLUMNS:
        for value in ("x", None, True, [], -1):
            yield ("history", 1, name), value
    yield from ((("history", 1, "epoch"), value) for value in (1, 3, 2.0))
    yield from ((("history", 1, "test_accuracy"), value) for value in (1.5, 1e400))
    yield from ((("history", 0, "seconds"), value) for value in (1e400, np.nan))
    yield ("history", 0, "more"), 1.0
    yield from ((("settings",), value) for value in ([], None, {"lr": "x"}, {"more": 1}))
    for name in ("epochs", "batch_size", "lr", "seed", "schedule", "precision", "hidden_dim",
                 "warmup", "max_shift", "accumulate", "limit_train", "num_blocks"):  # fmt: skip
        for value in (-1, "x\x1b[31m", None, 2**70, 1e400, np.nan, True, []):
            yield ("settings", name), value
    yield from ((("settings", "epochs"), value) for value in (3, 10**9, 10**15))
    yield ("settings", "num_blocks"), 10**9


def test_resuming_from_nonsense(run, finished):
    """Checksums are right, but no run wrote this: a sentence each, and nothing is changed."""
    path = finished / "checkpoint.npz"
    arrays = dict(np.load(path))
    text = arrays["meta"].tobytes()
    for place, value in nonsense():
        owner = meta = json.loads(text)
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value
        if value is GONE:
            del owner[place[-1]]
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        np.savez(path, **arrays)
        before = contents(finished)
        said = run.refused("--resume", "--out=run")
        assert said.isprintable() and 20 < len(said) < 600, (place, value, said)
        assert not re.search("object|unsupported|argument|NoneType|not iterable", said), said
        assert contents(finished) == before


# ---- directories, and others who use them --------------------------------------------------


def test_a_directory_of_its_own(run, small, tmp_path):
    """Nothing is replaced unless it was asked for, and --resume finds what was begun."""
    words = [*SMALL, "--epochs=1", "--data-dir", small]
    out, _ = run(*words)
    assert "results go" not in out and results(tmp_path / "runs/mnist")
    before = contents(tmp_path / "runs/mnist")
    out, _ = run(*words, "--lr=0.01", at="step 2 SIGINT", status=130)
    assert out.startswith("results go to runs/mnist-2: runs/mnist has those of another run\n")
    assert "--resume --out runs/mnist-2" in out
    run(*words, "--lr=0.03")
    assert results(tmp_path / "runs/mnist-3") and contents(tmp_path / "runs/mnist") == before
    out, _ = run("--resume")
    assert out.startswith("resuming runs/mnist-2\n") and len(history(tmp_path / "runs/mnist-2"))
    out, _ = run("--resume")  # all are over now: that which was saved last
    assert out.startswith("resuming runs/mnist-2\n")
    run(*words, "--lr=0.03", "--overwrite")  # runs/mnist itself
    assert contents(tmp_path / "runs/mnist") != before


def test_results_of_another_kind_go_with_overwrite(train, tmp_path):
    """What would stand beside the new results as if it were theirs; and only once there are any."""
    (tmp_path / "run").mkdir()
    for name in ("best.npz", "mistakes.png", "mine.txt"):
        (tmp_path / "run" / name).write_text("older", encoding="utf-8")
    train.refused(match="holds best.npz, mistakes.png: --overwrite")
    train.refused("--overwrite", "--lr=nan")
    assert len(results(tmp_path / "run")) == 3
    train("--epochs=1", "--overwrite")
    assert results(tmp_path / "run") == ["checkpoint.npz", "metrics.csv", "mine.txt"]


def test_links_lead_where_they_lead(run, small, tmp_path):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "mnist").symlink_to(tmp_path / "elsewhere")  # which isn't there yet
    words = [*SMALL, "--epochs=1", "--data-dir", small]
    run(*words)
    assert results(tmp_path / "elsewhere") == ["checkpoint.npz", "metrics.csv"]
    before = contents(tmp_path / "elsewhere")
    run.refused(*words, "--out=runs/mnist", match="--overwrite")
    run(*words)
    assert contents(tmp_path / "elsewhere") == before and results(tmp_path / "runs/mnist-2")


@pytest.mark.parametrize("option", ["--epoch=3", "--res", "--data=x", "--hidden=8", "--over"])
def test_options_are_not_abbreviated(run, option):
    run.refused(option, match=f"unrecognized arguments: {option}")


def test_two_runs_on_one_directory(run, small, as_undisturbed):
    """The second is refused, or without --out goes elsewhere; a kill -9 leaves the place free."""
    words = [*SMALL, "--data-dir", small, "--out=runs/mnist"]
    with run.start(*words, at="step 4 sleep") as process, killed_at_last(process):
        wait_for(process, "asleep")
        for other in (["--overwrite", *words], ["--resume", "--out=runs/mnist"]):
            run.refused(*other, match="another run is working in runs/mnist")
        assert "results go to runs/mnist-2" in run(*words[:-1]).stdout
        process.kill()
        process.wait()
        run("--resume", "--out=runs/mnist")
    as_undisturbed("runs/mnist")


def test_without_locks_a_run_goes_on(train, monkeypatch):
    error = OSError(95, "Operation not supported")
    monkeypatch.setattr(files, "_lock", lambda *_: raises(error))
    assert "can't be locked ([Errno 95]" in train("--epochs=1").stdout


@pytest.mark.parametrize("at", ["step 4", "step 6", "step 8"])
def test_a_directory_that_is_removed_is_made_anew(train, tmp_path, at, as_undisturbed):
    train("--out=a/run", at=f"{at} remove")
    as_undisturbed("a/run")
    assert (tmp_path / "a/run/.lock").exists()


# ---- training on ---------------------------------------------------------------------------


def test_training_on_from_weights(run, small, reference, finished, tmp_path):
    """A run that is over is not resumed for more; its weights begin a new one."""
    line = run.refused("--resume", "--out=run", "--epochs=6", match="--epochs is 4 in the run")
    assert "a new run from its weights, with a schedule of its own" in line
    again = [*shlex.split(line.partition("of its own: ")[2]), "--data-dir", small, "--lr=1e-12",
             "--batch-size=80", "--epochs=1", "--warmup=0", "--out=on"]  # fmt: skip
    run(*again)
    (meta, arrays), (_, before) = (
        read_checkpoint(tmp_path / name / "checkpoint.npz") for name in ("on", "run")
    )
    assert meta["progress"]["settings"]["hidden_dim"] == 16  # of the file
    for name in before:
        if name.startswith("weights/"):
            np.testing.assert_allclose(arrays[name], before[name], atol=1e-9)
    first, last = history(tmp_path / "on")[0], history(reference[0])[-1]
    assert first["test_accuracy"] == last["test_accuracy"]
    run.refused(*again, "--hidden-dim=8", "--overwrite", match="--hidden-dim is 16 in run/check")
    other = make_data(tmp_path / "other", shape=(8, 8), classes=2)
    run.refused(*again, "--overwrite", "--data-dir", other, match=r"\(12, 8, 1\) and 3 classes")
    run.refused(*again, "--overwrite", "--weights=none.npz", match="none.npz")
    # It is stopped and resumed without that file.
    two = [*again[:4], "--lr=0.01", "--epochs=2", "--batch-size=32"]
    run(*two, "--out=whole")
    run(*two, "--out=half", at="step 4 SIGINT", status=130)
    shutil.rmtree(finished)
    run("--resume", "--out=half")
    assert_same_run(tmp_path / "half", tmp_path / "whole")


# ---- what is refused -----------------------------------------------------------------------

BAD_OPTIONS = [
    "--device=nonsense", "--device=", "--device=cuda:x", "--device=cuda:99", "--patch-size=5",
    "--patch-size=0", "--epochs=0", "--epochs=-1", "--batch-size=0", "--batch-size=-1",
    "--batch-size=x", "--lr=0", "--lr=-1", "--lr=nan", "--lr=inf", "--num-blocks=0",
    "--hidden-dim=-8", "--tokens-mlp-dim=0", "--channels-mlp-dim=0", "--schedule=nonsense",
    "--warmup=2", "--warmup=nan", "--max-shift=-1", "--clip=-1", "--clip=nan",
    "--weight-decay=-1", "--weight-decay=inf", "--seed=-1", f"--seed={2**64}",
    "--limit-train=-1", "--nonsense=1", "nonsense", "--lr",
]  # fmt: skip


@pytest.mark.parametrize("option", BAD_OPTIONS)
def test_bad_options(train, tmp_path, option):
    """One line that names the option or its value."""
    line = train.refused(option)
    name, _, value = option.partition("=")
    name = name.strip("-")
    words = {name, name.replace("-", "_"), name.replace("-", " "), value, "patches"} - {""}
    assert any(word in line for word in words), line
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("size", [10**13, 10**30])
def test_a_model_larger_than_memory(train, size):
    train.refused(f"--hidden-dim={size}")


@pytest.mark.parametrize(
    "options",
    [["--lr=nan"], ["--patch-size=5"], ["--data-dir=none"], ["--device=cuda:99"],
     ["--resume", "--seed=7"], ["--resume", "--device=nonsense"]],
    ids=" ".join,
)  # fmt: skip
def test_what_is_refused_leaves_results_alone(run, small, finished, options):
    """A slip of the finger does not cost the results of the last run."""
    before = contents(finished)
    replace = [] if "--resume" in options else ["--overwrite"]
    run.refused("--data-dir", small, "--out=run", *options, *replace)
    assert contents(finished) == before


def test_trained_on_the_gpu(train, tmp_path, device):
    """The same run on each device: stopped, and resumed there with the command it names."""
    where = [f"--device={device}", "--out=whole"]
    train(*where, warnings="default", apart=True)
    stopped = train(where[0], at="step 4 SIGINT", status=130, warnings="default")
    said = train.resume(stopped, warnings="default", apart=True)
    assert f"on {device}" in said.stdout.splitlines()[0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def damaged(name, change):
    return lambda path: (path / name).write_bytes(change((path / name).read_bytes()))


def replaced(name, array):
    return lambda path: write_idx(path / name, array)


BAD_DATA = {
    "not a directory: missing": shutil.rmtree,
    "not a directory: a file": lambda path: (shutil.rmtree(path), path.touch()),
    "train-images: empty": lambda path: [file.unlink() for file in path.iterdir()],
    "train-images-idx3-ubyte.*follow: cut": damaged("train-images-idx3-ubyte", lambda b: b[:-1]),
    "t10k-labels-idx1-ubyte: not IDX": damaged("t10k-labels-idx1-ubyte", lambda b: b"<html>"),
    "80 images.*79 labels: count": replaced("train-labels-idx1-ubyte", np.zeros(79, np.uint8)),
    "one size: size": replaced("t10k-images-idx3-ubyte", np.zeros((30, 8, 12), np.uint8)),
    "0 or more: labels": replaced("train-labels-idx1-ubyte", np.full(80, -1, np.int8)),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data(train, tmp_path, case):
    BAD_DATA[case](make_data(tmp_path / "data"))
    train.refused("--data-dir=data", match=case.partition(": ")[0])
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/none/run", "n" * 300])
def test_unwritable_places(train, tmp_path, out):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    train.refused("--out", out, match=out[:10])
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious"
    assert os.listdir(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(train, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    train.refused(match="Permission")


@pytest.mark.parametrize("name", ["checkpoint.npz", "metrics.csv", "skipped.csv"])
@pytest.mark.parametrize("make", [os.mkdir, getattr(os, "mkfifo", None)])
def test_results_that_could_not_be_written_are_refused_before_training(train, tmp_path, make, name):
    if make is None:
        pytest.skip("there are no pipes with names here")
    (tmp_path / "run").mkdir()
    make(tmp_path / "run" / name)
    line = train.refused("--overwrite", match="choose another --out")
    assert f"run/{name}" in line and "epoch" not in line


# ---- when the numbers explode --------------------------------------------------------------


def test_nan_in_the_first_epoch(train, finished):
    """An earlier run's checkpoint stays, but is not given out as this run's last good epoch."""
    huge, before = ["--lr=1e30", "--warmup=0"], (finished / "checkpoint.npz").read_bytes()
    line = train.refused(*huge, "--out=new", warnings="ignore")
    assert re.search(r"(nan|inf) at step [23]\b", line) and "--lr" in line
    assert "checkpoint.npz" not in results(finished.with_name("new"))
    line = train.refused(*huge, "--overwrite", warnings="ignore")
    assert "nothing was saved" in line
    assert (finished / "checkpoint.npz").read_bytes() == before


def test_nan_keeps_the_last_good_epoch(train, tmp_path):
    """A learning rate that grows a hundredfold: fine in the first epoch, far too large later."""
    steep = ["--batch-size=80", "--epochs=100", "--warmup=1", "--lr=1e11"]
    line = train.refused(*steep, warnings="ignore")
    step, out = int(re.search(r"at step (\d+)", line)[1]), tmp_path / "run"
    assert step > 1 and "run/checkpoint.npz" in line
    assert epochs_in(out) == len(history(out)) == step - 1
    assert np.isfinite(Mixer.load(out / "checkpoint.npz").buffer.values).all()


def test_a_finished_run_gets_pictures_with_resume(run, finished):
    """As its last line says."""
    pytest.importorskip("matplotlib")
    said = run("--resume", "--out=run", pictures=True, warnings="default").stdout
    for name in ("curves.png", "mistakes.png"):
        assert (finished / name).stat().st_size > 1000 and name in said
