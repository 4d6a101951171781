"""The example scripts started with mpirun make the same models, metrics and files as without."""

import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from help import redraw, small_mixer
from processes import quick, read_csv
from scripts import SCRIPT, SMALL, history, killed_at_last, make_data, wait_for, without_times
from test_parallel import ENVIRONMENT, MPIRUN, needs_mpi

from minimixer.training.checkpoint import read_checkpoint

pytestmark = needs_mpi
FINETUNE = SCRIPT.with_name("finetune.py")
# MPICH's name for it, and Open MPI's.
IS_RANK_1 = "'1' in map(os.environ.get, ('PMI_RANK', 'OMPI_COMM_WORLD_RANK'))"
WORDS = [*SMALL, "--stochastic-depth=0.5", "--batch-size=13", "--epochs=3", "--max-shift=1"]


def start(processes, script, *words, cwd):
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(SCRIPT.parents[1]), *sys.path])}
    command = [sys.executable, script, *words]
    command = command if processes == 1 else [MPIRUN, "-n", processes, *command]
    return subprocess.Popen(
        [str(word) for word in command], cwd=cwd, env=environment, encoding="utf-8",
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def wrapped(tmp_path, code, rank=IS_RANK_1):
    """train_mnist.py, before which that rank runs some code."""
    path = tmp_path / "wrapper.py"
    path.write_text(
        "import os, runpy, signal, sys\n"
        f"sys.argv[0] = {str(SCRIPT)!r}\nsys.path.insert(0, {str(SCRIPT.parent)!r})\n"
        f"if {rank}:\n{textwrap.indent(code, '    ')}\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n",
        encoding="utf-8",
    )
    return path


def run(processes, script, *words, cwd, status=0):
    """(stdout, stderr)"""
    with start(processes, script, *words, cwd=cwd) as process, killed_at_last(process):
        out, err = process.communicate(timeout=60)
    assert (process.returncode != 0) == (status != 0) and "Traceback" not in err, err
    return out, err


def assert_weights_close(path, other):
    """In float32, but for what AdamW makes of rounding noise: the gradient of token mixing's last
    bias is exactly zero."""
    ours, theirs = (read_checkpoint(path)[1] for path in (path, other))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if name.startswith("weights/") and not name.endswith("token_mixing.b2"):
            np.testing.assert_allclose(value, theirs[name], rtol=2e-3, atol=2e-4, err_msg=name)


def assert_close(out, other):
    assert_weights_close(out / "checkpoint.npz", other / "checkpoint.npz")
    for one, two in zip(*(without_times(history(path)) for path in (out, other)), strict=True):
        for key in one:
            assert float(one[key]) == pytest.approx(float(two[key]), rel=2e-3, abs=1e-3), key


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return make_data(tmp_path_factory.mktemp("data") / "small", train=66)


@pytest.fixture(scope="module")
def alone(tmp_path_factory, small):
    path = tmp_path_factory.mktemp("alone")
    run(1, SCRIPT, *WORDS, "--data-dir", small, "--out=run", cwd=path)
    return path / "run"


@pytest.mark.parametrize("processes", quick([2, 3], 3))
def test_the_same_training(small, alone, tmp_path, processes):
    """66 images in batches of 13, so that the last, of one image, leaves ranks without any."""
    out, _ = run(processes, SCRIPT, *WORDS, "--data-dir", small, "--out=run", cwd=tmp_path)
    assert_close(tmp_path / "run", alone)
    for text in ("66 training images", "epoch 1/3: test accuracy", "images after the last step"):
        assert out.count(text) == 1  # rank 0 alone
    assert sorted(os.listdir(tmp_path / "run")) == sorted(os.listdir(alone))


KILLED = f"""
from minimixer import AdamW
step, calls = AdamW.step, []
def watched(self):
    step(self)
    calls.append(1)
    if len(calls) == 9 and {IS_RANK_1}:
        os.kill(os.getpid(), signal.SIGKILL)
AdamW.step = watched
"""


@pytest.mark.slow
def test_killed_and_resumed_by_others(small, alone, tmp_path):
    """SIGKILL of one rank ends all; the checkpoint is whole, and any number goes on with it."""
    words = [*WORDS, "--data-dir", small, "--out=run"]
    killed = wrapped(tmp_path, KILLED, rank=True)  # the same code on both ranks
    began = time.monotonic()
    run(2, killed, *words, cwd=tmp_path, status=1)
    assert time.monotonic() - began < 15
    progress = read_checkpoint(tmp_path / "run" / "checkpoint.npz")[0]["progress"]
    assert len(progress["history"]) == 1
    run(3, SCRIPT, "--resume", "--out=run", cwd=tmp_path)
    assert_close(tmp_path / "run", alone)


@pytest.mark.parametrize("who", ["mpirun", "one rank"])
def test_ctrl_c_stops_all_after_the_same_step(small, tmp_path, who):
    words = [*WORDS, "--epochs=100000", "--data-dir", small, "--out=run"]
    with start(2, SCRIPT, *words, cwd=tmp_path) as process, killed_at_last(process):
        wait_for(process, "epoch ")
        if who == "mpirun":
            process.send_signal(signal.SIGINT)
        else:
            ranks = [int(p.name) for p in Path("/proc").iterdir() if is_rank_1(p, tmp_path)]
            assert ranks, "no process of rank 1"
            os.kill(min(ranks), signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and "Traceback" not in err
    assert len(re.findall("to go on: mpirun -n 2 python", out)) == 1
    assert read_checkpoint(tmp_path / "run" / "checkpoint.npz")[0]["progress"]["step"] > 0


def is_rank_1(process, directory):
    """Of a folder in /proc: is it of a rank 1 that works in the directory?"""
    try:
        environment = (process / "environ").read_bytes().split(b"\0")
        here = os.readlink(process / "cwd") == str(directory)
    except OSError:  # another user's, or none
        return False
    return here and not {b"PMI_RANK=1", b"OMPI_COMM_WORLD_RANK=1"}.isdisjoint(environment)


@pytest.mark.parametrize("option, text", [
    ("--lr=0.5", r"settings\.lr is 0\.5 on rank 1"), ("--graph=off", r"options\.graph is 'off' on"),
    ("--nonsense", "rank 1: unrecognized arguments: --nonsense"),
])  # fmt: skip
def test_ranks_with_other_options(small, tmp_path, option, text):
    """Found before the first step, whichever option it is."""
    wrapper = wrapped(tmp_path, f"sys.argv.append({option!r})")
    words = [*WORDS, "--data-dir", small, "--out=run"]
    _, err = run(2, wrapper, *words, cwd=tmp_path, status=2)
    assert re.search(text, err), err
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


HELPERS = """
def fails(*_, **__):
    raise OSError('lost')
class AtImport:
    def find_spec(self, name, *_):
        if name == 'minimixer':
            self.what()
def at_import(what):
    sys.meta_path.insert(0, AtImport())
    sys.meta_path[0].what = what
"""
# What goes wrong on one rank, and what is said; `fails` raises an error, `at_import(f)` calls f
# while the script imports minimixer. Other options are above, steps in test_parallel.py.
STAGES = {
    "a package": ("sys.modules['tqdm'] = None", "rank 1: train_mnist: .*tqdm"),
    "mpi4py": ("sys.modules['mpi4py'] = None", "rank 1: train_mnist: .*mpi4py"),
    "a bug in a package": ("at_import(fails)", "OSError: lost"),
    "leaving at import": ("at_import(sys.exit)", ""),
    "data": ("import minimixer.data as data; data.load_directory = fails", "rank 1: lost"),
    "model": ("import minimixer; minimixer.Mixer.to = fails", "rank 1: lost"),
    "evaluation": ("import minimixer; minimixer.Mixer.predict_logits = fails", "rank 1: lost"),
    "writing": ("import os; os.replace = fails", "rank 0: .*lost"),
}


@pytest.mark.parametrize("stage", quick(STAGES, "a package", "leaving at import", "writing"))
def test_an_error_on_one_rank_ends_all(small, tmp_path, stage):
    """Wherever it is, within seconds, and in that rank's words."""
    code, message = STAGES[stage]
    rank = "not " * ("rank 0" in message) + IS_RANK_1
    wrapper = wrapped(tmp_path, HELPERS + code, rank)
    began = time.monotonic()
    words = [*WORDS, "--data-dir", small, "--out=run"]
    with start(2, wrapper, *words, cwd=tmp_path) as process, killed_at_last(process):
        out, err = process.communicate(timeout=30)
    assert process.returncode != 0 and time.monotonic() - began < 15
    assert re.search(message, err), err
    assert err.count("Traceback") == (stage == "a bug in a package") and "test accuracy" not in out


@pytest.mark.slow
def test_the_first_rank_holds_the_directory(small, tmp_path):
    """Without --out: all ranks go where rank 0 found a place, and resume what it found."""
    words = [*WORDS, "--epochs=1", "--data-dir", small]
    for _ in range(2):
        out, _ = run(2, SCRIPT, *words, cwd=tmp_path)
    assert out.count("results go to runs/mnist-2") == 1
    ours, theirs = (read_checkpoint(tmp_path / f"runs/{name}/checkpoint.npz")[1]
                    for name in ("mnist", "mnist-2"))  # fmt: skip
    assert all(ours[name].tobytes() == theirs[name].tobytes() for name in ours)
    out, _ = run(2, SCRIPT, "--resume", cwd=tmp_path)
    assert out.count("resuming runs/mnist-2") == 1
    words += ["--weights=runs/mnist/checkpoint.npz", "--out=on"]
    run(2, SCRIPT, *words, cwd=tmp_path)
    _, err = run(2, SCRIPT, *words, cwd=tmp_path, status=2)
    assert err.count("on holds checkpoint.npz") == 1


def test_not_one_picture(tmp_path):
    pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
    for name in ("a/1.png", "a/2.png", "a/3.png", "b/1.png", "b/2.png", "b/3.png"):
        (tmp_path / "pictures" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "pictures" / name).write_bytes(b"\x89PNG\r\n\x1a\n and no more")
    words = ["--variant=mixer_s32", "--image-size=8", "--patch-size=4", "--num-blocks=1",
             "--hidden-dim=8", "--data=pictures", "--workers=0", "--steps=50",
             "--out=run"]  # fmt: skip
    _, err = run(2, FINETUNE, *words, cwd=tmp_path, status=2)
    assert "no picture could be decoded" in err


@pytest.mark.parametrize("option, message", [
    ("--batch-size=1", "2 processes for a batch of 1"), ("--device=cuda:0", "cuda"),
    ("--lr=1e30", "the loss became .* on rank"), ("--data-dir=none", "none is not a directory"),
    ("--nonsense", "--nonsense"), ("--resume", "there is no"),
])  # fmt: skip
def test_what_ends_all_is_said_once(small, tmp_path, option, message):
    words = [*WORDS, "--data-dir", small, "--out=run", option]
    _, err = run(2, SCRIPT, *words, cwd=tmp_path, status=2)
    assert len(re.findall(message, err)) in (1, 2) and err.count("train_mnist: ") <= 1, err
    assert not (tmp_path / "run" / "checkpoint.npz").exists()


@pytest.mark.slow
def test_fine_tuning(tmp_path):
    """Mixup across ranks, unreadable pictures, workers, validation: as one process does it."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
    rng = np.random.default_rng(0)
    for number in range(33):
        path = tmp_path / "pictures" / "abc"[number % 3] / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        pixels = rng.integers(0, 100 + 70 * (number % 3), (12, 12, 3), dtype=np.uint8)
        image.fromarray(pixels).save(path)
        if number % 5 == 2:
            path.write_bytes(path.read_bytes()[:40])
    redraw(small_mixer(in_channels=3)).save(tmp_path / "w.npz")
    words = ["--weights=w.npz", "--data=pictures", "--steps=9", "--batch-size=7", "--mixup=0.5",
             "--label-smoothing=0.1", "--stochastic-depth=0.4", "--eval-every=4", "--lr=0.05",
             "--holdout=0.3", "--workers=1", "--accumulate=2"]  # fmt: skip
    for processes in (1, 3):
        out, err = run(processes, FINETUNE, *words, f"--out=run{processes}", cwd=tmp_path)
        assert_close(tmp_path / f"run{processes}", tmp_path / "run1")
        assert err.count("skipped 7 files") == 1 and "7 files skipped" in out
    best = ["--keep=best", "--patience=1", "--lr=1", "--steps=30", "--eval-every=1"]
    for processes in (1, 2):
        said, _ = run(processes, FINETUNE, *words, *best, f"--out=b{processes}", cwd=tmp_path)
        assert said.count("validations in a row were not better") == 1
    for before, again in ((1, 2), (2, 1)):
        run(again, FINETUNE, "--resume", f"--out=b{before}", cwd=tmp_path)
    assert_weights_close(*(tmp_path / f"b{number}" / "best.npz" for number in (1, 2)))
    _, err = run(2, FINETUNE, *words, "--probe=ridge", "--out=p", cwd=tmp_path, status=2)
    assert "start it without mpirun" in err


@pytest.mark.slow
def test_the_comparison_is_shared_out(small, tmp_path):
    """Two processes train different models; the table is that of one."""
    words = ["--data", small, "--sizes=nano", "--models=mixer,vit", "--lrs=0.003,0.01,0.03",
             "--budget=24", "--batch-size=8"]  # fmt: skip
    found = []
    for processes in (1, 2):
        compare = SCRIPT.with_name("compare.py")
        run(processes, compare, *words, f"--out=run{processes}", cwd=tmp_path)
        out = tmp_path / f"run{processes}"
        rows = [{k: row[k] for k in ("model", "top1_each", "lr", "macs")}
                for row in read_csv(out / "comparison.csv")]  # fmt: skip
        found.append((rows, sorted(path.name for path in (out / "cells").iterdir())))
    cells = 2 * 3 + 2 * 3 * 2 + 2  # of sweeps, whole runs with weights beside them, and costs
    assert found[0] == found[1] and len(found[0][1]) == cells


@pytest.mark.slow
def test_the_benchmark(tmp_path):
    words = ["--distributed=2", "--batch-size=8", "--runs=1", "--warm-up=1", "--seconds=0.1"]
    out, _ = run(1, SCRIPT.with_name("benchmark.py"), *words, cwd=tmp_path)
    for text in ("images/s of 2 processes over", "efficiency", "exposed communication"):
        assert text in out
