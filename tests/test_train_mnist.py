"""The training script as a user runs it: results, stopping at any moment, what it refuses."""

import contextlib
import importlib.util
import json
import os
import random
import re
import runpy
import select
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from minimixer.data import Batches, load_directory, load_mnist
from processes import quick, read_csv

from minimixer import AdamW, Mixer, backend, schedule
from minimixer import functional as F
from minimixer.training.checkpoint import read_checkpoint
from minimixer.training.idx import write_idx

ROOT = Path(__file__).parents[1]
SCRIPT = ROOT / "examples" / "train_mnist.py"
FASHION = Path("/usr/share/datasets/fashion-mnist")
COLUMNS = [
    "epoch", "train_loss", "train_accuracy", "test_loss", "test_accuracy", "seconds",
    "images_per_second",
]  # fmt: skip
SMALL = [
    "--patch-size=4", "--num-blocks=2", "--hidden-dim=16", "--tokens-mlp-dim=8",
    "--channels-mlp-dim=32", "--batch-size=32", "--epochs=4", "--lr=0.02",
]  # fmt: skip
EPOCHS, STEPS = 4, 3  # of 80 images: 32, 32, 16

# Runs the script, but does something to it at a chosen moment: "WHEN NUMBER ACTION".
DRIVER = """
import os, resource, runpy, shutil, signal, sys, time
from minimixer import AdamW, Mixer, kernels
from minimixer.kernels import unchanged

when, number, action = sys.argv[1].split()
calls = 0

def act():
    if action in ("full", "brimful", "cut"):  # no file can grow: an error, or the end
        if action == "cut":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit = 0 if action == "brimful" else 5000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    elif action == "twice":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    elif action in ("remove", "usurp"):
        shutil.rmtree(sys.argv[-1].removeprefix("--out="))
        if action == "usurp":
            open(sys.argv[-1].removeprefix("--out="), "x").close()
    elif action in ("sleep", "nap"):
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(60 if action == "sleep" else 2)
    else:
        os.kill(os.getpid(), getattr(signal, action))

def hook(owner, name, event, after):
    original = getattr(owner, name)

    def wrapper(*arguments, **options):
        global calls
        calls += 1
        if calls == int(number) and not after:
            act()
        result = original(*arguments, **options)
        if calls == int(number) and after:
            act()
        return result

    if event == when:
        setattr(owner, name, wrapper)

hook(AdamW, "step", "step", True)
hook(Mixer, "predict_logits", "predict", False)
hook(os, "fsync", "fsync", False)
hook(os, "replace", "replace", False)
hook(os, "replace", "replaced", True)
unchanged._held.clear()
unchanged.remember(unchanged.known())  # what is hooked counts as the plain code: the same bits
kernels._forms.clear()
kernels.use("auto")
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


@pytest.fixture(scope="session")
def stub(tmp_path_factory):
    """A directory that hides matplotlib, which would take longer than the training."""
    path = tmp_path_factory.mktemp("stub")
    (path / "matplotlib").mkdir()
    (path / "matplotlib" / "__init__.py").write_text(
        "raise ImportError('hidden')\n", encoding="utf-8"
    )
    return path


def make_data(path, train=80, test=30, shape=(12, 8), classes=3, seed=0, **options):
    """Images with one bright row for each class: a small model learns them in seconds."""
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 100, (count, *shape))
        images[np.arange(count), 2 + 3 * labels] += 150
        kind = f"idx{images.ndim}"
        write_idx(path / f"{split}-images-{kind}-ubyte", images.astype(np.uint8))
        write_idx(path / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return path


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "small")


@contextlib.contextmanager
def killed_at_last(process):
    """Else a test that fails would wait for its process."""
    try:
        yield
    finally:
        process.kill()


class Runner:
    """Starts the script in `cwd`; stub hides matplotlib."""

    def __init__(self, cwd, stub):
        self.cwd, self.stub = cwd, stub

    def start(
        self, *options, at=None, warnings="error", pictures=False, terminal=None, **more
    ):  # fmt: skip
        paths = [ROOT, SCRIPT.parent, *sys.path]
        paths = paths if pictures else [self.stub, *paths]
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
            "PYTHONWARNINGS": warnings,
            "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",  # two threads on busy processors wait for each other
        }
        command = [sys.executable, *(["-c", DRIVER, at] if at else []), SCRIPT, *options]
        return subprocess.Popen(
            [str(word) for word in command], cwd=self.cwd, env=environment,
            encoding="utf-8", stdin=subprocess.DEVNULL,
            **dict.fromkeys(("stdout", "stderr"), terminal or subprocess.PIPE) | more,
        )  # fmt: skip

    def __call__(self, *options, status=0, **more):
        """(stdout, stderr) of a run that ends with `status` and without a traceback."""
        with self.start(*options, **more) as process, killed_at_last(process):
            out, err = process.communicate(timeout=120)
        assert "Traceback" not in out + err, err
        assert process.returncode == status, (process.returncode, out, err)
        return out, err

    def refused(self, *options, match="", **more):
        """The one line with which the script ends."""
        _out, err = self(*options, status=2, **more)
        assert err.endswith("\n")
        (line,) = err.splitlines()
        assert line.startswith("train_mnist") and re.search(match, line), line
        return line


@pytest.fixture
def run(tmp_path, stub):
    return Runner(tmp_path, stub)


@pytest.fixture(scope="module")
def reference(tmp_path_factory, stub, small):
    """An undisturbed run: its directory, and what it said."""
    path = tmp_path_factory.mktemp("reference")
    said = Runner(path, stub)(*SMALL, "--data-dir", small, "--out=run")
    return path / "run", *said


def results(out):
    """The names of what a run left, but for its lock."""
    return sorted(set(os.listdir(out)) - {".lock"})


def history(out):
    return read_csv(out / "metrics.csv")


def without_times(rows):
    times = ("seconds", "images_per_second")
    return [{key: value for key, value in row.items() if key not in times} for row in rows]


def assert_same_run(out, other):
    """Bit for bit, but for the clock."""
    for file in ("checkpoint.npz", "metrics.csv"):
        assert (out / file).is_file()
    (meta, arrays), (other_meta, other_arrays) = (
        read_checkpoint(path / "checkpoint.npz") for path in (out, other)
    )
    assert arrays.keys() == other_arrays.keys()
    assert {name for name in arrays if name.startswith("optimizer/exp_avg_sq/")}
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name
    progress, other_progress = meta.pop("progress"), other_meta.pop("progress")
    assert meta == other_meta
    rows, other_rows = progress.pop("history"), other_progress.pop("history")
    for one in (progress, other_progress):
        del one["settings"]["data_dir"]  # it may have moved
    assert without_times(rows) == without_times(other_rows) and progress == other_progress
    assert without_times(history(out)) == without_times(history(other))
    assert not list(out.glob(".*.tmp"))


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}


def epochs_in(path):
    """How many epochs had ended when the checkpoint was written."""
    return len(read_checkpoint(path / "checkpoint.npz")[0]["progress"]["history"])


def checkpoint_of(path):
    return (path / "checkpoint.npz").read_bytes()


# ---- a run ---------------------------------------------------------------------------------


def test_small_data(reference, small):
    out, said, _progress = reference
    assert results(out) == ["checkpoint.npz", "metrics.csv"]
    rows = history(out)
    assert [row["epoch"] for row in rows] == ["1", "2", "3", "4"] and list(rows[0]) == COLUMNS
    for row in rows:
        assert all(float(value) >= 0 for value in row.values())
        assert float(row["seconds"]) > 0 and float(row["images_per_second"]) > 0
    assert float(rows[-1]["train_loss"]) < float(rows[0]["train_loss"])
    accuracy = float(rows[-1]["test_accuracy"])
    assert accuracy > 0.6  # chance: 0.33
    lines = said.splitlines()
    assert re.match(
        r"80 training images of 3 classes .*Mixer with [\d,]+ parameters on cpu", lines[0]
    )
    assert f"test accuracy {accuracy:.2%} on 30 images" in said
    assert re.search(r"4 epochs in \d+ s, [\d,]+ images/s", said)
    assert "checkpoint.npz" in lines[-2] and "metrics.csv" in lines[-2]
    assert "matplotlib" in lines[-1] and ".png" not in said  # how to get the pictures

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


def test_output_without_a_terminal(reference):
    """A log: a line for each epoch, a summary, and no bar."""
    out, said, progress = reference
    assert "\x1b" not in said and "\r" not in said and not progress
    lines = said.splitlines()
    assert len(lines) == 1 + EPOCHS + 4
    for line, row in zip(lines[1:], history(out), strict=False):
        accuracy = float(row["test_accuracy"])
        assert line.startswith(f"epoch {row['epoch']}/4: test accuracy {accuracy:.2%}, loss ")
        assert len(line) < 80


@pytest.mark.parametrize("columns", quick([80, 132], 80))
def test_a_terminal_has_a_bar_that_fits(run, small, columns):
    """Its end, the loss, is there, and its middle is a bar; the lines of the epochs are whole."""
    pty = pytest.importorskip("pty", reason="no terminals here")
    fcntl, termios = (importlib.import_module(name) for name in ("fcntl", "termios"))
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    options = ["--limit-train=20000", "--epochs=2", "--num-blocks=1", "--hidden-dim=8"]
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


@pytest.mark.skipif(importlib.util.find_spec("matplotlib") is None, reason="no matplotlib")
def test_the_embedded_mnist(run, tmp_path):
    out, err = run("--limit-train=2000", "--epochs=2", "--batch-size=32", "--out=here/run",
                   "--num-blocks=1", "--hidden-dim=32", "--channels-mlp-dim=64", "--lr=0.01",
                   pictures=True, warnings="default")  # fmt: skip
    here = tmp_path / "here" / "run"
    files = ["checkpoint.npz", "curves.png", "metrics.csv", "mistakes.png"]
    assert results(here) == files
    assert all(f"here/run/{file}" in out.splitlines()[-1] for file in files)
    for file in ("curves.png", "mistakes.png"):
        assert (here / file).read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    assert "2,000 training images of 10 classes" in out and "on 10,000 images" in out
    assert float(history(here)[-1]["test_accuracy"]) > 0.5  # chance: 0.1
    assert "pip" not in out and "Warning" not in err
    model = Mixer.load(here / "checkpoint.npz")
    assert model.class_names == list("0123456789")
    assert (model.predict(load_mnist()[2][:500]) == load_mnist()[3][:500]).mean() > 0.4


def test_a_terminal_that_is_closed(run, small, reference, tmp_path):
    """The run is told by SIGHUP, twice, and can't write a word any more; it saves all the same."""
    pty = pytest.importorskip("pty", reason="no terminals here")
    ours, theirs = pty.openpty()
    words = [*SMALL, "--data-dir", small, "--out=run"]
    with run.start(*words, at="step 4 nap", terminal=theirs) as process, killed_at_last(process):
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
    assert_same_run(tmp_path / "run", reference[0])


@pytest.mark.slow
def test_nobody_reads(run, small, reference, tmp_path):
    """As `| head -1` does: the run is not lost for that."""
    words = [*SMALL, "--data-dir", small, "--out=run"]
    with run.start(*words, at="step 4 nap") as process, killed_at_last(process):
        wait_for(process, "asleep\n")
        process.stdout.close()
        process.stderr.close()
        assert process.wait(90) == 0
    assert_same_run(tmp_path / "run", reference[0])


@pytest.mark.slow
@pytest.mark.parametrize("closed", ["<&- 2>&-", ">&- 2>&-", ">&-"])
def test_streams_that_were_never_open(run, small, reference, tmp_path, closed):
    """A file of ours may get their numbers: nothing is written there."""
    words = [sys.executable, "-c", "import sys, train_mnist; sys.exit(train_mnist.main())"]
    words += [*SMALL, "--data-dir", small, "--out=run"]
    subprocess.run(
        ["sh", "-c", f'exec "$@" {closed}', "sh", *map(str, words)], cwd=tmp_path, check=True,
        env=os.environ | {"PYTHONPATH": f"{ROOT}{os.pathsep}{SCRIPT.parent}"}, timeout=90,
    )  # fmt: skip
    assert_same_run(tmp_path / "run", reference[0])
    assert not (tmp_path / "run/.lock").read_bytes()


def test_nohup_is_respected(run, small, reference, tmp_path):
    words = [*SMALL, "--data-dir", small, "--out=run"]
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)  # noqa: E731
    with run.start(*words, at="step 4 SIGHUP", preexec_fn=ignore) as process:
        process.communicate(timeout=90)
    assert process.returncode == 0
    assert_same_run(tmp_path / "run", reference[0])


@pytest.mark.slow
def test_signals_while_saving_and_evaluating(run, small, reference, tmp_path):
    """One is noted; the second ends it at once, and what was saved before is whole."""
    for number, at in enumerate(("fsync 1", "replace 1", "replaced 1", "predict 1", "fsync 3")):
        words = [*SMALL, "--data-dir", small, f"--out=run{number}"]
        out, _ = run(*words, at=f"{at} SIGINT", status=130)
        assert "to go on: " in out
        run(*resume_command(out.splitlines()[-1]))
        assert_same_run(tmp_path / f"run{number}", reference[0])
        run(*words, "--overwrite", at=f"{at} twice", status=-signal.SIGINT)
        assert Mixer.load(tmp_path / f"run{number}" / "checkpoint.npz")


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
    handlers = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    runpy.run_path(str(SCRIPT), run_name="imported")
    assert handlers == (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM))
    assert not os.listdir(tmp_path)


def test_the_same_run_twice_and_another_seed(run, reference, small, tmp_path):
    run(*SMALL, "--data-dir", small, "--out=run")
    assert_same_run(tmp_path / "run", reference[0])
    run(*SMALL, "--data-dir", small, "--out=other", "--seed=1")
    arrays, others = (
        read_checkpoint(out / "checkpoint.npz")[1] for out in (tmp_path / "other", reference[0])
    )
    assert all((arrays[name] != others[name]).any() for name in arrays if "weight" in name[8:])


@pytest.mark.parametrize(
    "option", ["--schedule=linear", "--warmup=0", "--clip=0.1", "--max-shift=0", "--weight-decay=1"]
)
def test_options_have_an_effect(run, small, reference, tmp_path, option):
    run(*SMALL, option, "--data-dir", small, "--out=run")
    stem, other = (
        read_checkpoint(out / "checkpoint.npz")[1]["weights/stem.weight"]
        for out in (tmp_path / "run", reference[0])
    )
    assert (stem != other).any()


@pytest.mark.parametrize("channels", [3, 2])
def test_images_with_channels(run, tmp_path, channels):
    """Two are no picture that matplotlib can show: the training must not be lost for that."""
    data = make_data(tmp_path / "data", shape=(12, 8, channels), train=40, classes=2)
    pictures = importlib.util.find_spec("matplotlib") is not None
    out, _ = run(*SMALL, "--epochs=1", "--data-dir", data, "--out=run", pictures=pictures,
                 warnings="default")  # fmt: skip
    assert "of 2 classes" in out and "test accuracy" in out
    assert Mixer.load(tmp_path / "run" / "checkpoint.npz").in_channels == channels
    assert len(history(tmp_path / "run")) == 1


@pytest.mark.skipif(not FASHION.is_dir(), reason="no Fashion-MNIST on this machine")
def test_fashion_mnist(run, tmp_path):
    out, _ = run("--data-dir", FASHION, "--limit-train=2000", "--epochs=1", "--num-blocks=1",
                 "--hidden-dim=32", "--batch-size=32", "--lr=0.01", "--out=run")  # fmt: skip
    assert "2,000 training images of 10 classes" in out and str(FASHION) in out
    assert float(history(tmp_path / "run")[-1]["test_accuracy"]) > 0.4


# ---- stopped and resumed -------------------------------------------------------------------

LAST = EPOCHS * STEPS


@pytest.mark.parametrize(
    "step, name", [(1, "SIGINT"), (2, "SIGTERM"), (2, "SIGHUP"), (STEPS, "SIGINT"),
                   (STEPS + 2, "SIGINT"), (LAST, "SIGINT")],
)  # fmt: skip
def test_interrupted_and_resumed(run, small, reference, tmp_path, step, name):
    """In the middle of an epoch, after the last batch of one, and after the very last step."""
    out, err = run(*SMALL, "--data-dir", small, "--out=run", at=f"step {step} {name}", status=130)
    *epochs, line = out.splitlines()[1:]  # after what was begun: one message
    assert len(epochs) == (step - 1) // STEPS
    assert f"after step {step} of {LAST}" in line and "checkpoint.npz" in line
    assert (tmp_path / "run" / "checkpoint.npz").is_file() and "train_mnist" not in err
    out, _ = run(*resume_command(line))
    assert "test accuracy" in out
    assert_same_run(tmp_path / "run", reference[0])


def resume_command(line):
    """The options in the command that a stopped run names."""
    python, script, *options = shlex.split(line.partition("to go on: ")[2])
    assert python.startswith("python") and Path(script).samefile(SCRIPT) and "--resume" in options
    return options


def test_the_resume_command_can_be_pasted(run, small, reference, tmp_path):
    out, _ = run(*SMALL, "--data-dir", small, "--out=a run", at="step 2 SIGINT", status=130)
    run(*resume_command(out.splitlines()[-1]))
    assert_same_run(tmp_path / "a run", reference[0])


@pytest.mark.slow
def test_interrupted_at_every_step(run, small, reference, tmp_path):
    """Again and again, one step each time."""
    first = [*SMALL, "--data-dir", small]
    for step in range(1, LAST):
        options = ["--resume"] if step > 1 else first
        out, _ = run(*options, "--out=run", at="step 1 SIGINT", status=130)
        assert f"after step {step} of {LAST}" in out
    run("--resume", "--out=run")
    assert_same_run(tmp_path / "run", reference[0])


def wait_for(process, text):
    """Reads stdout and stderr, as it comes, until `text` is there."""
    met = {process.stdout: "", process.stderr: ""}
    while not any(text in said for said in met.values()):
        for stream in select.select(list(met), [], [], 60)[0]:
            character = os.read(stream.fileno(), 1).decode()
            assert character, met
            met[stream] += character


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_signal_stops_at_once(run, small, tmp_path, name):
    number = getattr(signal, name)
    process = run.start(*SMALL, "--data-dir", small, "--out=run", at="step 4 sleep")
    with process, killed_at_last(process):
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


def test_ctrl_c_before_the_training_is_not_a_traceback(run, small):
    process = run.start(*SMALL, "--data-dir", small, "--out=run", at="replaced 1 SIGINT")
    with process, killed_at_last(process):
        _, err = process.communicate(timeout=60)
    assert process.returncode in (130, -signal.SIGINT) and "Traceback" not in err


def test_a_checkpoint_that_is_gone_is_not_called_whole(run, small, tmp_path):
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", at="step 4 usurp")
    assert "run/checkpoint.npz is gone" in line and "whole" not in line


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes with names here")
@pytest.mark.parametrize("name", ["checkpoint.npz", "metrics.csv", "skipped.csv"])
def test_results_that_could_not_be_written_are_refused_before_training(run, tmp_path, name):
    (tmp_path / "run").mkdir()
    os.mkfifo(tmp_path / "run" / name)
    line = run.refused(*SMALL, "--out=run", "--overwrite", match="choose another --out")
    assert f"run/{name}" in line


def test_the_command_to_go_on_can_be_shown_and_pasted(run, small, reference, tmp_path):
    name = "r\x1b[31mun it's"
    out, _ = run(*SMALL, "--data-dir", small, f"--out={name}", at="step 2 SIGINT", status=130)
    assert out.replace("\n", "").isprintable()
    words = subprocess.run(
        ["bash", "-c", "printf '%s\\0' " + out.splitlines()[-1].split("to go on: ")[1]],
        stdout=subprocess.PIPE, encoding="utf-8", check=True,
    ).stdout.split("\0")[2:-1]  # fmt: skip
    assert name in words
    run(*words)
    assert_same_run(tmp_path / name, reference[0])


# In the order of a run: files are written before training, and two after each epoch.
KILLS = [
    *(f"{w} {n} SIGKILL" for w in ("fsync", "replace", "replaced") for n in (2, 4, 5)),
    "step 3 cut", "step 4 cut", "step 9 SIGKILL",
]  # fmt: skip


@pytest.mark.parametrize("at", quick(KILLS, *list(KILLS)[::4]))
def test_killed_while_writing(run, small, reference, tmp_path, at):
    status = -signal.SIGXFSZ if at.endswith("cut") else -signal.SIGKILL
    run(*SMALL, "--data-dir", small, "--out=run", at=at, status=status)
    left = [name for name in results(tmp_path / "run") if not name.endswith(".tmp")]
    assert set(left) <= {"checkpoint.npz", "metrics.csv"}
    if "checkpoint.npz" in left:
        epoch = epochs_in(tmp_path / "run")
        assert epoch >= 1
        assert np.isfinite(Mixer.load(tmp_path / "run" / "checkpoint.npz").head.weight.data).all()
        run("--resume", "--out=run")
    else:
        run(*SMALL, "--data-dir", small, "--out=run")
    assert_same_run(tmp_path / "run", reference[0])
    assert results(tmp_path / "run") == ["checkpoint.npz", "metrics.csv"]


@pytest.mark.parametrize("at", ["step 4 full", "replaced 1 brimful"])  # then: metrics.csv
def test_a_full_disk(run, small, reference, tmp_path, at):
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", at=at,
                       match="(large|space).*--resume")  # fmt: skip
    out = tmp_path / "run"
    assert "the last checkpoint, run/checkpoint.npz, is whole" in line and str(out) in line
    assert epochs_in(out) == 1
    assert not list(out.glob(".*.tmp"))
    run("--resume", "--out=run")
    assert_same_run(out, reference[0])


LONG = [*SMALL, "--epochs=100"]


def kill_again_and_again(run, data, out, number, seed, kills):
    """Signals at seeded random moments, resuming each time; returns how often it met a run."""
    rng, met = random.Random(seed), 0
    begin, go_on = [*LONG, "--data-dir", data, "--out", out], ["--resume", "--out", out]
    stopped = 130 if number == signal.SIGINT else -number
    for _ in range(kills):
        there = (out / "checkpoint.npz").is_file()
        with run.start(*(go_on if there else begin)) as process, killed_at_last(process):
            wait_for(process, "epoch ")
            time.sleep(rng.uniform(0, 0.4))
            process.send_signal(number)
            said, err = process.communicate(timeout=60)
        assert "Traceback" not in err, err
        finished = "images after" in said  # a signal that comes after that may end it in any way
        assert finished or process.returncode == stopped, (process.returncode, said)
        if finished:
            break
        met += 1
    run(*(go_on if (out / "checkpoint.npz").is_file() else begin))
    return met


@pytest.fixture(scope="module")
def long_reference(tmp_path_factory, stub, small):
    path = tmp_path_factory.mktemp("long")
    Runner(path, stub)(*LONG, "--data-dir", small, "--out=run")
    return path / "run"


def test_killed_at_random(run, small, long_reference, tmp_path):
    met = kill_again_and_again(run, small, tmp_path / "run", signal.SIGKILL, seed=0, kills=4)
    assert met >= 2
    assert_same_run(tmp_path / "run", long_reference)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize("name", ["SIGKILL", "SIGINT"])
def test_killed_at_random_many_times(run, small, long_reference, tmp_path, name, seed):
    number = getattr(signal, name)
    assert kill_again_and_again(run, small, tmp_path / "run", number, seed, kills=8) >= 2
    assert_same_run(tmp_path / "run", long_reference)


@pytest.mark.slow
def test_mnist_interrupted_and_resumed(run, tmp_path):
    """The same with the embedded MNIST and more than one thread."""
    options = ["--limit-train=1500", "--epochs=3", "--num-blocks=2", "--hidden-dim=32"]
    run(*options, "--out=whole")
    run(*options, "--out=run", at="step 7 SIGINT", status=130)
    run("--resume", "--out=run", at="step 9 SIGKILL", status=-signal.SIGKILL)
    run("--resume", "--out=run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


@pytest.fixture
def stopped(run, small, tmp_path):
    """The directory of a run that was stopped in its second epoch."""
    run(*SMALL, "--data-dir", small, "--out=run", at="step 4 SIGINT", status=130)
    return tmp_path / "run"


def test_resuming_with_other_options(run, small, reference, stopped, tmp_path):
    before = checkpoint_of(stopped)
    names = runpy.run_path(str(SCRIPT), run_name="imported")["SETTINGS"]
    stored = read_checkpoint(stopped / "checkpoint.npz")[0]["progress"]["settings"]
    other = make_data(tmp_path / "other", seed=1)
    changes = {"schedule": "linear"}
    for name in ("lr", "patch_size", "schedule"):
        value = changes.get(name, 2 if isinstance(names[name].default, int) else 0.5)
        option = f"--{name.replace('_', '-')}"
        line = run.refused("--resume", "--out=run", option, value, match=option)
        assert str(stored[name]) in line and checkpoint_of(stopped) == before
    run.refused("--resume", "--out=run", "--data-dir", other, match="other images")
    assert checkpoint_of(stopped) == before
    # What is the same may be said again, and data may have moved.
    moved = tmp_path / "moved"
    shutil.copytree(small, moved)
    run("--resume", "--out=run", *SMALL, "--seed", names["seed"].default, "--data-dir", moved)
    assert_same_run(stopped, reference[0])


def test_resuming_with_other_images(run, small, stopped, tmp_path):
    before = checkpoint_of(stopped)
    kept = contents(small)
    try:
        make_data(small, seed=1)
        run.refused("--resume", "--out=run", match="other images")
    finally:
        for name, data in kept.items():
            (small / name).write_bytes(data)
    assert checkpoint_of(stopped) == before


def test_an_unfinished_run_is_kept(run, small, stopped):
    before = contents(stopped)
    run.refused(*SMALL, "--data-dir", small, "--out=run", match="unfinished.*--resume")
    run.refused("--resume", "--out=run", "--overwrite", match="--overwrite is for a new run")
    assert contents(stopped) == before


def test_nothing_to_resume(run, tmp_path):
    run.refused("--resume", "--out=none", match=r"no none/checkpoint\.npz")
    assert not os.listdir(tmp_path)


def test_a_finished_run_reports_again(run, small, reference, tmp_path):
    out = shutil.copytree(reference[0], tmp_path / "run")
    checkpoint = (out / "checkpoint.npz").read_bytes()
    said, _ = run("--resume", "--out=run")
    summary = [line for line in reference[1].splitlines() if line.startswith(("test acc", "4 ep"))]
    assert len(summary) == 2 and all(line in said for line in summary)
    assert (out / "checkpoint.npz").read_bytes() == checkpoint
    assert (out / "metrics.csv").read_bytes() == (reference[0] / "metrics.csv").read_bytes()
    again = [*SMALL, "--epochs=1", "--data-dir", small, "--out=run"]
    run.refused(*again, match="holds checkpoint.npz, metrics.csv: --overwrite")
    assert (out / "checkpoint.npz").read_bytes() == checkpoint
    run(*again, "--overwrite")
    assert len(history(out)) == 1


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty", "other npz", "a weight lost"])
def test_resuming_from_a_damaged_checkpoint(run, reference, tmp_path, damage):
    out = shutil.copytree(reference[0], tmp_path / "run")
    path = out / "checkpoint.npz"
    content = bytearray(path.read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    elif damage in ("other npz", "a weight lost"):
        with np.load(path) as stored:
            arrays = dict(stored)
        arrays.pop("weights/head.bias")
        np.savez(path, **({"x": arrays["meta"]} if damage == "other npz" else arrays))
        content = path.read_bytes()
    else:
        content = content[: len(content) // 2 if damage == "cut" else 0]
    path.write_bytes(content)
    before = checkpoint_of(out)
    run.refused("--resume", "--out=run", match="checkpoint.npz")
    assert checkpoint_of(out) == before


@pytest.mark.parametrize(
    "change", [{"progress": None}, {"progress": []}, {"progress": {"settings": {}}}, "data",
               "history", "step", "seconds"],
    ids=str,
)  # fmt: skip
def test_resuming_from_what_another_script_wrote(run, reference, tmp_path, change):
    out = shutil.copytree(reference[0], tmp_path / "run")
    path = out / "checkpoint.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    meta = json.loads(arrays["meta"].tobytes())
    if isinstance(change, str):
        del meta["progress"][change]
    else:
        meta |= change
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
    np.savez(path, **arrays)
    before = checkpoint_of(out)
    run.refused("--resume", "--out=run")
    assert checkpoint_of(out) == before


def nonsense():
    """(what to change, to what): wrong types, and numbers that no run can have written."""
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


def test_resuming_from_nonsense(reference, small, tmp_path, monkeypatch):
    """Checksums are right, but no run wrote this: a sentence each, and nothing is changed."""
    monkeypatch.syspath_prepend(SCRIPT.parent)
    train_mnist = importlib.import_module("train_mnist")
    out = shutil.copytree(reference[0], tmp_path / "run")
    path = out / "checkpoint.npz"
    with np.load(path) as stored:
        arrays = dict(stored)
    text = arrays["meta"].tobytes()
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), "--resume", "--out", str(out)])
    for place, value in nonsense():
        meta = json.loads(text)
        owner = meta["progress"]
        for key in place[:-1]:
            owner = owner[key]
        owner[place[-1]] = value
        arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), dtype=np.uint8)
        np.savez(path, **arrays)
        before = contents(out)
        with pytest.raises((ValueError, MemoryError)) as caught:
            train_mnist.main()
            print(f"{place}: {value} was accepted")
        said = str(caught.value)
        assert said.isprintable() and 20 < len(said) < 600, (place, value, said)
        assert not re.search("object|unsupported|argument|NoneType|not iterable", said), said
        assert contents(out) == before


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


def test_results_of_another_kind_go_with_overwrite(run, small, tmp_path):
    """What would stand beside the new results as if it were theirs; and only once there are any."""
    (tmp_path / "run").mkdir()
    for name in ("best.npz", "mistakes.png", "mine.txt"):
        (tmp_path / "run" / name).write_text("older", encoding="utf-8")
    words = [*SMALL, "--epochs=1", "--data-dir", small, "--out=run"]
    run.refused(*words, match="holds best.npz, mistakes.png: --overwrite")
    run.refused(*words, "--overwrite", "--lr=nan")
    assert len(results(tmp_path / "run")) == 3
    run(*words, "--overwrite")
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


def test_two_runs_on_one_directory(run, small, reference, tmp_path):
    """The second is refused, or without --out goes elsewhere; a kill -9 leaves the place free."""
    words = [*SMALL, "--data-dir", small, "--out=runs/mnist"]
    with run.start(*words, at="step 4 sleep") as process, killed_at_last(process):
        wait_for(process, "asleep")
        for other in (["--overwrite", *words], ["--resume", "--out=runs/mnist"]):
            run.refused(*other, match="another run is working in runs/mnist")
        out, _ = run(*SMALL, "--data-dir", small)
        assert "results go to runs/mnist-2" in out
        process.kill()
        process.wait()
        run("--resume", "--out=runs/mnist")
    assert_same_run(tmp_path / "runs/mnist", reference[0])


def test_without_locks_a_run_goes_on(small, tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(SCRIPT.parent)
    names = "train_mnist", "minimixer.training.files"
    train_mnist, files = map(importlib.import_module, names)

    def refuse(*_):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(files, "_lock", refuse)
    words = [*SMALL, "--epochs=1", "--data-dir", small, "--out", tmp_path / "run"]
    monkeypatch.setattr(sys, "argv", [str(SCRIPT), *map(str, words)])
    assert train_mnist.main() == 0
    assert "can't be locked ([Errno 95]" in capsys.readouterr().out


@pytest.mark.parametrize("at", ["step 4", "step 6", "step 8"])
def test_a_directory_that_is_removed_is_made_anew(run, small, reference, tmp_path, at):
    run(*SMALL, "--data-dir", small, "--out=a/run", at=f"{at} remove")
    assert_same_run(tmp_path / "a/run", reference[0])
    assert (tmp_path / "a/run/.lock").exists()


# ---- training on ---------------------------------------------------------------------------


def test_training_on_from_weights(run, small, reference, tmp_path):
    """A run that is over is not resumed for more; its weights begin a new one."""
    shutil.copytree(reference[0], tmp_path / "run")
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
    assert (
        history(tmp_path / "on")[0]["test_accuracy"] == history(reference[0])[-1]["test_accuracy"]
    )
    run.refused(*again, "--hidden-dim=8", "--overwrite", match="--hidden-dim is 16 in run/check")
    other = make_data(tmp_path / "other", shape=(8, 8), classes=2)
    run.refused(*again, "--overwrite", "--data-dir", other, match=r"\(12, 8, 1\) and 3 classes")
    run.refused(*again, "--overwrite", "--weights=none.npz", match="none.npz")
    # It is stopped and resumed without that file.
    run(*again[:4], "--lr=0.01", "--epochs=2", "--batch-size=32", "--out=whole")
    run(*again[:4], "--lr=0.01", "--epochs=2", "--batch-size=32", "--out=half",
        at="step 4 SIGINT", status=130)  # fmt: skip
    shutil.rmtree(tmp_path / "run")
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
def test_bad_options(run, small, tmp_path, option):
    """One line that names the option or its value."""
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", option)
    name, _, value = option.partition("=")
    name = name.strip("-")
    words = {name, name.replace("-", "_"), name.replace("-", " "), value, "patches"} - {""}
    assert any(word in line for word in words), line
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("size", [10**13, 10**30])
def test_a_model_larger_than_memory(run, small, size):
    run.refused(*SMALL, "--data-dir", small, "--out=run", f"--hidden-dim={size}")


@pytest.mark.parametrize(
    "options",
    [["--lr=nan"], ["--patch-size=5"], ["--data-dir=none"], ["--device=cuda:99"],
     ["--resume", "--seed=7"], ["--resume", "--device=nonsense"]],
    ids=" ".join,
)  # fmt: skip
def test_what_is_refused_leaves_results_alone(run, small, reference, tmp_path, options):
    """A slip of the finger does not cost the results of the last run."""
    before = contents(shutil.copytree(reference[0], tmp_path / "run"))
    replace = [] if "--resume" in options else ["--overwrite"]
    run.refused("--data-dir", small, "--out=run", *options, *replace)
    assert contents(tmp_path / "run") == before


def test_no_gpu(run, small):
    try:
        backend.check_device("cuda")
    except ValueError:
        run.refused(*SMALL, "--data-dir", small, "--out=run", "--device=cuda", match="cuda|CuPy")
    else:
        pytest.skip("there is a GPU")


def test_trained_on_the_gpu(run, small, tmp_path, device):
    """The same run on each device: stopped, and resumed there with the command it names."""
    where = f"--device={device}"
    run(*SMALL, "--data-dir", small, "--out=whole", where, warnings="default")
    out, _ = run(*SMALL, "--data-dir", small, "--out=run", where, at="step 4 SIGINT", status=130,
                 warnings="default")  # fmt: skip
    out, _ = run(*resume_command(out.splitlines()[-1]), warnings="default")
    assert f"on {device}" in out.splitlines()[0]
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def damage_missing(path):
    shutil.rmtree(path)
    return "not a directory"


def damage_empty(path):
    for file in path.iterdir():
        file.unlink()
    return "train-images"


def damage_file(path):
    shutil.rmtree(path)
    path.write_text("a file", encoding="utf-8")
    return "not a directory"


def damage_truncated(path):
    file = path / "train-images-idx3-ubyte"
    file.write_bytes(file.read_bytes()[:-1])
    return "train-images-idx3-ubyte.*follow"


def damage_not_idx(path):
    (path / "t10k-labels-idx1-ubyte").write_text("<html>not found</html>", encoding="utf-8")
    return "t10k-labels-idx1-ubyte"


def damage_count(path):
    write_idx(path / "train-labels-idx1-ubyte", np.zeros(79, np.uint8))
    return "80 images.*79 labels"


def damage_size(path):
    write_idx(path / "t10k-images-idx3-ubyte", np.zeros((30, 8, 12), np.uint8))
    return "one size"


def damage_labels(path):
    write_idx(path / "train-labels-idx1-ubyte", np.full(80, -1, np.int8))
    return "0 or more"


@pytest.mark.parametrize(
    "damage", [damage_missing, damage_empty, damage_file, damage_truncated, damage_not_idx,
               damage_count, damage_size, damage_labels],
    ids=lambda damage: damage.__name__.partition("_")[2],
)  # fmt: skip
def test_bad_data(run, tmp_path, damage):
    match = damage(make_data(tmp_path / "data"))
    run.refused(*SMALL, "--data-dir=data", "--out=run", match=match)
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.parametrize("out", ["file", "file/run", "/proc/none/run", "n" * 300])
def test_unwritable_places(run, small, tmp_path, out):
    (tmp_path / "file").write_text("precious", encoding="utf-8")
    run.refused(*SMALL, "--data-dir", small, "--out", out, match=out[:10])
    assert (tmp_path / "file").read_text(encoding="utf-8") == "precious" and os.listdir(
        tmp_path
    ) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_directory_without_permission(run, small, tmp_path):
    (tmp_path / "run").mkdir(mode=0o500)
    run.refused(*SMALL, "--data-dir", small, "--out=run", match="Permission")


def test_a_checkpoint_that_is_a_directory(run, small, tmp_path):
    """What can't be replaced is noticed before the training, not after an epoch."""
    (tmp_path / "run" / "checkpoint.npz").mkdir(parents=True)
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", match="checkpoint.npz")
    assert "epoch" not in line


# ---- when the numbers explode --------------------------------------------------------------


def test_a_huge_learning_rate(run, small, tmp_path):
    """It may survive; if not, it says so."""
    process = run.start(*SMALL, "--data-dir", small, "--out=run", "--lr=1e6", warnings="default")
    with process, killed_at_last(process):
        _, err = process.communicate(timeout=60)
    assert "Traceback" not in err and process.returncode in (0, 2)
    assert process.returncode == 0 or re.search(r"at step \d+", err)


def test_nan_in_the_first_epoch(run, small, tmp_path):
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", "--lr=1e30", "--warmup=0",
                       warnings="ignore")  # fmt: skip
    assert re.search(r"(nan|inf) at step [23]\b", line) and "--lr" in line
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


def test_nan_in_the_first_epoch_beside_an_earlier_run(run, small, tmp_path):
    """The earlier run's checkpoint stays, but is not given out as this run's last good epoch."""
    run(*SMALL, "--data-dir", small, "--out=run")
    before = checkpoint_of(tmp_path / "run")
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", "--lr=1e30", "--warmup=0",
                       "--overwrite", warnings="ignore")  # fmt: skip
    assert "nothing was saved" in line and checkpoint_of(tmp_path / "run") == before


def test_nan_keeps_the_last_good_epoch(run, small, tmp_path):
    """A learning rate that grows a hundredfold: fine in the first epoch, far too large later."""
    line = run.refused(*SMALL, "--data-dir", small, "--out=run", "--batch-size=80", "--epochs=100",
                       "--warmup=1", "--lr=1e11", warnings="ignore")  # fmt: skip
    step = int(re.search(r"at step (\d+)", line)[1])
    checkpoint = tmp_path / "run" / "checkpoint.npz"
    assert step > 1 and "run/checkpoint.npz" in line
    assert epochs_in(checkpoint.parent) == step - 1
    assert len(history(tmp_path / "run")) == step - 1
    model = Mixer.load(checkpoint)
    assert all(np.isfinite(value).all() for value in model.state_dict().values())


def test_pictures_of_the_right_size(run, reference, tmp_path):
    """A finished run without pictures gets them with --resume, as its last line says."""
    pytest.importorskip("matplotlib")
    shutil.copytree(reference[0], tmp_path / "run")
    out, _ = run("--resume", "--out=run", pictures=True, warnings="default")
    for name in ("curves.png", "mistakes.png"):
        data = (tmp_path / "run" / name).read_bytes()
        width, height = struct.unpack(">II", data[16:24])
        assert width > 500 and height > 200 and name in out
