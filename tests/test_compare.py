"""The comparison: its data, its cells, its table and figures, on settings that take seconds."""

import contextlib
import errno
import json
import os
import re
import runpy
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from help import close, raises, redraw, same_state, small_mixer
from minimixer.data import Batches
from processes import read_csv
from scripts import EXAMPLES, make_data, stopped_by, watch

import compare
from comparison import cells, data, figures, models, tokens, weights
from comparison import table as compare_table
from minimixer import AdamW, Mixer, Tensor, kernels
from minimixer import functional as F
from minimixer.kernels.cpu.threads import blas_on_one_thread
from minimixer.training.checkpoint import save_checkpoint
from minimixer.training.files import Lock


@pytest.fixture(autouse=True)
def switches():
    """What the scripts switch globally is undone."""
    before = np.seterr()
    with blas_on_one_thread:  # products as small as these wait for each other on several
        yield
    np.seterr(**before)
    kernels.use("auto")


def make_digits(folder):
    """8 x 8 images in four classes, each with one bright row."""
    return make_data(folder / "digits", 96, 40, shape=(8, 8), classes=4, rows=2 * np.arange(4))


@pytest.fixture
def digits(tmp_path):
    return make_digits(tmp_path)


def run_in(folder, *arguments):
    """compare.py there, on its digits: (status, output, errors)."""
    usual = ["--data=digits", "--sizes=nano", "--budget=24", "--batch-size=16"]
    words = ["examples/compare.py", *usual, "--lrs=0.003,0.01", "--out=out", *map(str, arguments)]
    with (
        contextlib.chdir(folder), contextlib.redirect_stdout(StringIO()) as out,
        contextlib.redirect_stderr(StringIO()) as err, pytest.MonkeyPatch.context() as patch,
    ):  # fmt: skip
        patch.setattr(models, "TIMED_SECONDS", 0.0)
        patch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            compare.script()
    return ended.value.code, out.getvalue(), err.getvalue()


@pytest.fixture
def run(tmp_path, digits):
    return lambda *arguments: run_in(tmp_path, *arguments)


@pytest.fixture
def costless(monkeypatch):
    """All costs are 1, and nothing is measured."""
    for cost in ("step_seconds", "inference_rate", "peak_bytes"):
        monkeypatch.setattr(models, cost, lambda *_: 1)


@pytest.fixture
def untrained(monkeypatch, costless):
    """Cells are made in no time, as nothing is learned."""

    def train(model, spec, images, labels, index, look, *_):
        for step in cells.curve_steps(spec["steps"]):
            look(step)
        return {"images_seen": spec["steps"] * spec["batch_size"], "loss": 1.0}

    monkeypatch.setattr(cells, "train", train)


@pytest.fixture
def table(tmp_path):
    """table(name): the rows of that file."""
    return lambda name: read_csv(tmp_path / "out" / f"{name}.csv")


@pytest.fixture
def kept(tmp_path):
    """kept(pattern): the files of such cells, sorted."""
    return lambda pattern: sorted((tmp_path / "out" / "cells").glob(pattern))


def contents_of(files):
    return [json.loads(file.read_bytes()) for file in files]


@pytest.fixture
def figures_drawn(monkeypatch):
    """The Figures that are saved, in place of files."""
    figure, saved = pytest.importorskip("matplotlib.figure"), []
    monkeypatch.setattr(figure.Figure, "savefig", lambda self, *a, **k: saved.append(self))
    return saved


# ---- the table ----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The whole table, in a folder that tests copy: that, what was said, and with which kernels it
    trained and took each time."""
    folder, chosen = tmp_path_factory.mktemp("whole"), []
    make_digits(folder)
    with blas_on_one_thread, pytest.MonkeyPatch.context() as patch:
        for module, name in ((models, "time_calls"), (cells, "train")):
            watch(patch, module, name, lambda *_: chosen.append(kernels.chosen()))
        status, said, _ = run_in(folder)
    assert status == 0
    return folder / "out", said, chosen


@pytest.fixture
def finished(whole, run, tmp_path):
    """run, where the whole table is there already."""
    shutil.copytree(whole[0], tmp_path / "out")
    return run


FAMILIES = {"vit": "attention", "resnet": "convolution", "mixer": "MLP"}


def test_the_whole_table(whole):
    out, said, _ = whole
    rows, sweep = (read_csv(out / f"{name}.csv") for name in ("comparison", "sweep"))
    assert [(r["model"], r["family"]) for r in rows] == list(FAMILIES.items())
    for row in rows:
        assert "" not in row.values()
        each = [float(a) for a in row["top1_each"].split()]
        assert row["seeds"] == "0 1 2" and len(each) == 3 and min(each) >= 0.25
        assert np.isclose(float(row["top1_mean"]), np.mean(each))
        assert np.isclose(float(row["top1_sd"]), np.std(each, ddof=1))
        assert np.isclose(float(row["gap"]), float(row["train_top1_mean"]) - np.mean(each))
        assert float(row["train_flops"]) == 6 * int(row["macs"]) * 24 * 16
        for key in ("train_seconds", "images_per_second"):
            assert float(row[key]) > 0
        assert int(row["peak_bytes"]) > 16 * int(row["parameters"])  # with gradients and averages
        assert f"{float(row['top1_mean']):.2%}"[:-1] in said
    model = Mixer(image_size=8, patch_size=2, in_channels=1, num_classes=4, num_blocks=2,
                  hidden_dim=32, tokens_mlp_dim=16, channels_mlp_dim=128)  # fmt: skip
    assert int(rows[2]["parameters"]) == model.num_parameters()
    assert int(rows[2]["macs"]) == model.summary().macs
    assert "\033" not in said and "held-out training images" in said
    assert [r["lr"] for r in sweep] == ["0.003", "0.01"] * 3
    for row in rows:
        tried = [r for r in sweep if r["model"] == row["model"]]
        (chosen,) = (r for r in tried if r["chosen"] == "True")
        assert chosen["lr"] == row["lr"] and row["edge"] == "1"
        assert chosen["held_out_top1"] == max(r["held_out_top1"] for r in tried)


def test_plain_code_is_what_is_timed(whole):
    """And the fast one, once for each of its two columns; what trains has no product timed."""
    chosen = whole[2]
    assert chosen.count("reference") == chosen.count("auto") == 3 * 2
    assert chosen.count("untimed") == 3 * (2 + 3) and kernels.chosen() == "auto"


def test_tables_and_pictures_are_made_again_from_the_rows_of_runs(whole, tmp_path):
    """docs/comparison/draw.py: the numbers of the command that trained, of all data together."""
    trained = (whole[0] / "runs.csv").read_text(encoding="utf-8")
    for name in ("digits", "other"):
        (tmp_path / name).mkdir()
        renamed = trained.replace(",digits,", f",{name},")
        (tmp_path / name / "runs.csv").write_text(renamed, encoding="utf-8")
    shutil.copy(whole[0] / "sweep.csv", tmp_path / "digits")
    places = "".join(f"<!-- {place} -->\nold\n<!-- end -->\n"
                     for place in ("accuracies", "costs", "rates"))  # fmt: skip
    (tmp_path / "page.md").write_text(f"a\n{places}b\n", encoding="utf-8")
    draw = runpy.run_path(str(EXAMPLES.parent / "docs" / "comparison" / "draw.py"))
    draw["main"](tmp_path, tmp_path / "page.md")
    made, rows = read_csv(tmp_path / "comparison.csv"), read_csv(whole[0] / "comparison.csv")
    assert made == rows + [row | {"data": "other"} for row in rows]
    text = (tmp_path / "page.md").read_text(encoding="utf-8")
    said, costs, tried = (re.findall(r"^\| .*", part, re.MULTILINE)[2:]
                          for part in text.split("<!-- end -->")[:3])  # fmt: skip
    assert text.startswith("a\n") and text.endswith("\nb\n") and "old" not in text
    assert [line.split("|")[1].strip() for line in said] == ["digits", "", "", "other", "", ""]
    for row, line in zip(rows * 2, said, strict=True):
        assert f"{100 * float(row['top1_mean']):.2f} ± {100 * float(row['top1_sd']):.2f}" in line
        above = 100 * (float(rows[2]["top1_mean"]) - float(row["top1_mean"]))
        assert row["model"] == "mixer" or f"| {above:+.1f} (" in line
    for row, line in zip(rows, costs, strict=True):
        step = 1e3 * float(row["train_seconds"]) / int(row["steps"])
        assert f" {step:.1f}, " in line and f"{float(row['images_per_second']):,.0f}, " in line
    assert len(tried) == 3 and all("| digits | " in line and "**" in line for line in tried)


@pytest.mark.skipif(sys.platform != "linux", reason="taskset is Linux's")
def test_a_process_for_each_gpu_and_one_at_last(tmp_path):
    """docs/comparison/run.sh: from any folder, and where a process may not choose processors."""
    for name, text in (("python3", 'echo "$PWD $CUDA_VISIBLE_DEVICES $*" >> "$LOG"'),
                       ("taskset", "exit 1"), ("nvidia-smi", "true")):  # fmt: skip
        (tmp_path / name).write_text(f"#!/bin/bash\n{text}\n", encoding="utf-8")
        (tmp_path / name).chmod(0o755)
    root, log = EXAMPLES.parent, tmp_path / "log"
    script = ["bash", str(root / "docs" / "comparison" / "run.sh"), "data", "out", "fashion"]
    usual = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "LOG": str(log)}
    usual.pop("CUDA_VISIBLE_DEVICES", None)
    none = subprocess.run(script, cwd=tmp_path, env=usual, stderr=subprocess.PIPE, encoding="utf-8")
    assert (none.returncode, none.stderr) == (2, "run.sh: there is no GPU\n")
    subprocess.run(script, cwd=tmp_path, env=usual | {"GPUS": "2"}, check=True)
    *work, last = log.read_text(encoding="utf-8").splitlines()
    assert len(work) == 2 and all(line.endswith(" --no-wait") for line in work)
    assert {line.split(" ")[1] for line in work} == {"0", "1"}
    assert last.startswith(f"{root}  ") and last.endswith(f" --out {tmp_path}/out/fashion")
    assert f"--data {tmp_path}/data/fashion " in last and (tmp_path / "out").is_dir()


def test_what_is_finished_stays_and_the_rest_gets_the_same_bits(finished, table, kept, monkeypatch):
    trained = []
    watch(monkeypatch, cells, "train", lambda model, spec, *_: trained.append(spec))
    assert finished()[0] == 0 and trained == []
    rows, before = table("comparison"), contents_of(kept("*.json"))
    weights = [file.read_bytes() for file in kept("*.npz")]
    files = [*kept("final-*.json"), *kept("sweep-*.json")]  # of three families: 3 and 2 of each
    lost = [cell["spec"] for cell in contents_of(files[number] for number in (0, 4, 8, 9))]
    files[0].unlink()
    files[4].write_bytes(files[4].read_bytes()[:-50])
    files[8].write_bytes(files[7].read_bytes())
    files[9].unlink()
    assert finished()[0] == 0
    assert sorted(map(str, trained)) == sorted(map(str, lost))
    exact = ("top1_each", "train_top1_mean", "parameters", "macs", "lr")
    for one, other in zip(rows, table("comparison"), strict=True):
        assert [one[key] for key in exact] == [other[key] for key in exact]
        assert np.isclose(int(one["peak_bytes"]), int(other["peak_bytes"]), rtol=0.01)
    for one, other in zip(before, contents_of(kept("*.json")), strict=True):
        for key in ("loss", "held_loss", "curve"):
            assert one["result"].get(key) == other["result"].get(key)
    assert [file.read_bytes() for file in kept("*.npz")] == weights and not kept("*.lock")


def test_a_cell_whose_weights_are_gone_is_computed_anew(finished, kept):
    """By who needs them: the table does not, a picture of them does, of the first seed's."""
    before = {file: file.read_bytes() for file in kept("final-mixer-*.npz")}
    for file in before:
        file.unlink()
    status, said, _ = finished("--models=mixer", "--figure=table")
    assert status == 0 and "computed anew" not in said and not kept("final-mixer-*.npz")
    status, said, _ = finished("--models=mixer", "--figure=weights,table")
    assert status == 0 and said.count("its weights are missing; computed anew") == 1
    (made,) = kept("final-mixer-*.npz")
    assert made.read_bytes() == before[made]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_signals_between_and_inside_of_cells(run, monkeypatch, untrained, kept, name):
    calls = stopped_by(name, monkeypatch, cells, "train", at=4)
    handler = signal.getsignal(signal.Signals[name])
    status, _, errors = run("--models=mixer")
    assert signal.getsignal(signal.Signals[name]) == handler
    assert status == 130 and "to go on: python examples/compare.py --data" in errors
    assert len(kept("*.json")) == 3
    assert run("--models=mixer")[0] == 0
    assert len(calls) == 4 + 2  # of two in the sweep and three in the table, the third was cut off


def test_who_does_not_wait_measures_no_costs(run, kept, costless):
    """They are of a machine that nobody else works on; so tables are made by a run that waits."""
    transfer = ["--upstream=digits:0-1", "--downstream=digits:2,3", "--fine-lrs=0.03"]
    for words in (["--figure=table"], ["--figure=frontier"], transfer):
        status, said, errors = run("--models=vit", "--lrs=0.01", *words, "--no-wait")
        assert status == 0 and said.splitlines()[-1].startswith("left "), errors
        assert kept("final-*") and not kept("costs-*")
    assert run("--models=vit", "--lrs=0.01")[0] == 0 and len(kept("costs-*")) == 1


@pytest.mark.slow
def test_equal_operations_and_equal_seconds(run, table, monkeypatch):
    arguments = ("--models=mixer,vit", "--lrs=0.003")
    seconds = iter([0.005, 0.001, 0.01, 0.001])  # of each family the plain code's, then the fast
    monkeypatch.setattr(models, "step_seconds", lambda *_: next(seconds))
    for _ in range(2):  # a speed that was measured once counts from then on
        assert run("--equal=seconds", "--budget=0.3", *arguments)[0] == 0
        rows = table("comparison")
        assert [(r["model"], r["steps"]) for r in rows] == [("mixer", "60"), ("vit", "30")]
    assert run("--equal=flops", "--budget=0.001", *arguments)[0] == 0
    for row in table("comparison"):
        step = float(row["train_flops"]) / int(row["steps"])
        assert 1e9 - step < float(row["train_flops"]) <= 1e9


def test_what_cells_are_trained_and_scored_on(run, monkeypatch, costless):
    """The sweep never sees the test images, runs differ by their seeds, and shuffled models are
    trained and scored on shuffled images."""
    scored, begun, seen, sources, load = [], [], [], [], compare.load

    def note_train(model, spec, images, labels, *_):
        begun.append(spec)
        assert len(images) == len(labels) == spec["train_images"]

    def note_shuffle(images, index):
        if begun and index is not None and len(images) == begun[-1]["batch_size"]:
            seen.append(("shuffle", begun[-1]["shuffle"]))

    watch(monkeypatch, cells, "train", note_train)
    watch(monkeypatch, cells, "shuffle", note_shuffle)
    watch(monkeypatch, cells, "evaluate", lambda model, images, labels, index=None: (
        scored.append((begun[-1], images, index is not None))
    ))  # fmt: skip
    watch(monkeypatch, cells, "make_model", lambda family, config, seed, *_: (
        seen.append(("make", seed))
    ))  # fmt: skip
    watch(monkeypatch, cells.data, "Batches", lambda images, labels, size, seed, shift: (
        seen.append(("batches", seed))
    ))  # fmt: skip
    monkeypatch.setattr(compare, "load", lambda *a: sources.append(load(*a)) or sources[-1])
    monkeypatch.setattr(figures, "start_figure", lambda *_: None)
    shown = "--figure=scaling,invariance"
    assert run("--models=mixer", shown, "--shares=40,100", "--lrs=0.01")[0] == 0
    (source,) = sources
    sets = {"train": source.train_images, "held": source.held_images, "test": source.test_images}

    def name(images):
        return next(n for n, all_ in sets.items() if np.shares_memory(images, all_))

    for spec, images, shuffled in scored:
        assert name(images) in ({"held"} if spec["kind"] == "sweep" else {"train", "test"})
        assert shuffled == (spec["shuffle"] != "none")
    assert {len(images) for _, images, _ in scored if name(images) == "train"} == {35, 88}
    assert {s["seed"] for s in begun if s["kind"] == "final"} == {0, 1, 2}
    assert not {s["seed"] for s in begun if s["kind"] == "sweep"} & {0, 1, 2}
    for what in ("make", "batches"):
        assert {seed for kind, seed in seen if kind == what} == {0, 1, 2, 100}
    for kind in ("patches", "pixels"):
        assert seen.count(("shuffle", kind)) >= 3 * 24
        names = [name(i) for s, i, _ in scored if (s["seed"], s["shuffle"]) == (0, kind)]
        assert names[-2:] == ["test", "train"] and names.count("test") == 8 + 1


def test_a_rate_that_diverges_is_not_chosen(run, table, costless):
    assert run("--models=mixer", "--lrs=0.003,1e30")[0] == 0
    sweep = table("sweep")
    assert [(r["lr"], r["diverged"]) for r in sweep] == [("0.003", "False"), ("1e+30", "True")]
    status, _, errors = run("--models=mixer", "--lrs=1e30")
    assert status == 2 and "every learning rate diverged" in errors


@pytest.mark.slow
def test_pretrain_then_transfer(run, tmp_path, table, kept, monkeypatch):
    starts, load = [], cells.starting_weights
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "sweep.csv").write_bytes(b"of another command")

    def note(folder, spec, model):
        starts.append((spec, load(folder, spec, model)))
        return starts[-1][1]

    def check_start(model, spec, *_):
        if spec["start"] is not None:
            for name, value in model.state_dict().items():
                np.testing.assert_array_equal(value, starts[-1][1][name])

    monkeypatch.setattr(models, "step_seconds", lambda *all: 0.25 if all[-1] is True else 0.5)
    monkeypatch.setattr(
        models, "peak_bytes", lambda *all: 1000 + 48 * (all[3]["optimizer"] == "adamw")
    )
    monkeypatch.setattr(cells, "starting_weights", note)
    watch(monkeypatch, cells, "train", check_start)
    words = ["--upstream=digits:0-1", "--downstream=digits:2,3", "--examples=20", "--fine-lrs=0.03"]
    status, said, _ = run(*words)
    assert status == 0 and "fine-tuned on 20 images" in said
    assert (tmp_path / "out" / "sweep.csv").read_bytes() == b"of another command"
    assert len(table("transfer-sweep")) == 3 * (2 + 1)
    for row in table("transfer"):
        assert row["train_images"] == "20" and float(row["upstream_top1_mean"]) >= 0.5
        assert float(row["train_flops"]) == 6 * int(row["macs"]) * 24 * 16 * 2
        assert (float(row["train_seconds"]), float(row["finetune_seconds"])) == (24, 12)
        assert float(row["fast_train_seconds"]) == 12 and int(row["peak_bytes"]) == 1048
    assert len(starts) == 3 * (1 + 3)
    for spec, state in starts:
        stem = "body.root.weight" if spec["family"] == "resnet" else "stem.weight"
        assert not state["head.weight"].any() and state[stem].any()
        assert (spec["optimizer"], spec["weight_decay"], spec["clip"]) == ("sgd", 0, 1)
        (up,) = contents_of(kept(Path(spec["start"]).stem + ".json"))
        assert up["spec"]["seed"] == (spec["seed"] if spec["kind"] == "final" else 0)
    for file in kept("final-*"):
        if '"start": "final' in file.read_text(encoding="utf-8", errors="replace"):
            file.unlink()
        elif file.suffix == ".npz":
            file.write_bytes(file.read_bytes()[:1000])
    for family in ("vit", "mixer"):
        status, _, errors = run(*words, "--models", family)
        assert status == 2 and "is damaged" in errors and errors.count("\n") == 1
    status, _, errors = run(words[0], "--downstream=mnist:0-1")
    assert status == 2 and "images of one size" in errors


def test_costs_are_of_the_batch_that_was_trained(run, table, costless, monkeypatch):
    """Fine-tuning on 10 images has steps of 10, whatever --batch-size says."""
    sizes = []
    for cost in ("step_seconds", "peak_bytes"):
        watch(monkeypatch, models, cost, lambda make, shape, classes, spec, *_: (
            sizes.append((spec["optimizer"], spec["batch_size"]))
        ))  # fmt: skip
    assert run("--upstream=digits:0-1", "--downstream=digits:2,3", "--examples=10",
               "--fine-lrs=0.03", "--models=vit")[0] == 0  # fmt: skip
    assert sizes.count(("adamw", 16)) == sizes.count(("sgd", 10)) == 3 == len(sizes) / 2
    (row,) = table("transfer")
    assert row["batch_size"] == "10" and int(row["images_seen"]) == 24 * (16 + 10)


def test_all_models_are_trained_by_the_same_recipe():
    """Against the same steps by hand: warm-up, cosine, clipped gradients, AdamW with its decay."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
    labels = rng.integers(0, 3, 24)
    spec = {"optimizer": "adamw", "lr": 0.05, "weight_decay": 0.05, "clip": 0.01, "warmup": 0.1,
            "steps": 20, "batch_size": 8, "seed": 3, "max_shift": 1}  # fmt: skip
    trained, by_hand = (small_mixer(seed=5) for _ in range(2))
    cells.train(trained, spec, images, labels, None, lambda step: None, "", 1)
    optimizer = AdamW(by_hand.parameters(), lr=0.05, weight_decay=0.05)
    batches = Batches(images, labels, 8, 3, 1)
    by_hand.train()
    for step in range(20):
        x, y = batches.batch(*divmod(step, 3))
        F.cross_entropy(by_hand(x), y).backward()
        rising, falling = (step + 1) / 2, 0.5 * (1 + np.cos(np.pi * (step - 2) / 18))
        optimizer.lr_factor = rising if step < 2 else falling
        optimizer.clip_grad_norm(0.01)
        optimizer.step()
        optimizer.zero_grad()
    same_state(trained, by_hand.state_dict())


def test_a_frontier_s_costs(run, table, kept, untrained):
    """A part of the steps takes that part of the whole's time, and keeps no weights. Rows are left
    out only where a smaller part of one model's budget is the same run."""
    assert run("--models=mixer", "--lrs=0.01", "--figure=frontier", "--budget=100")[0] == 0
    rows = table("frontier")
    steps = [24, 30, 100]
    assert [(int(r["steps"]), float(r["train_seconds"])) for r in rows] == [(n, n) for n in steps]
    whole, parts = float(rows[2]["train_flops"]), [float(r["train_flops"]) for r in rows[:2]]
    np.testing.assert_allclose(parts, [0.24 * whole, 0.3 * whole])
    assert len(kept("*.npz")) == 3
    assert run("--models=mixer", "--sizes=nano,tiny", "--lrs=0.01", "--figure=frontier")[0] == 0
    assert [r["size"] for r in table("frontier")] == ["nano", "tiny"]


def test_the_rate_that_is_chosen(tmp_path, monkeypatch):
    """The most right ones of those that did not diverge; of equals the smaller loss. A quarter of
    the steps, of a seed that is not the table's."""
    found = {1.0: (0.9, 0.5, None), 0.5: (0.75, None, 0.4), 0.25: (0.75, 0.6, 0.4),
             0.125: (0.75, 0.5, 0.4), 0.0625: (0.5, 0.1, 0.4)}  # fmt: skip
    words = ["--models=vit", "--sizes=nano", "--seeds=3,7", f"--out={tmp_path}", "--batch-size=8"]
    options = compare.make_parser("", list(compare.FIGURES)).parse_args(words)
    run, specs = compare.Comparison(options, compare.World(), tmp_path), []

    def trained(spec, source):
        specs.append(spec)
        return dict(zip(("held_accuracy", "held_loss", "loss"), found[spec["lr"]], strict=True))

    monkeypatch.setattr(run, "run", trained)
    source = data.load("mnist:0-1")
    assert run.learning_rate("vit", "nano", source, list(found), steps=400) == 0.125
    assert {(s["steps"], s["seed"]) for s in specs} == {(100, 100)}
    specs.clear()
    run.learning_rate("vit", "nano", source, list(found), steps=40)
    assert {s["steps"] for s in specs} == {24}


def test_times_are_of_one_call(monkeypatch):
    clock = [0.0]
    monkeypatch.setattr(models.backend, "synchronize", lambda device: None)
    monkeypatch.setattr(models.time, "perf_counter", lambda: clock[0])

    def call():
        clock[0] += 0.25

    for device in ("cpu", "cuda:0"):  # ten calls at once there
        assert np.isclose(models.time_calls(call, device), 0.25)
    monkeypatch.setattr(models, "time_calls", lambda *_: 0.5)
    assert models.inference_rate(small_mixer(), (8, 8, 1), "cpu") == 64 / 0.5


@pytest.mark.parametrize("shape", [(28, 28, 1), (32, 32, 3)])
@pytest.mark.parametrize("size", models.SIZES)
def test_models_of_a_size_have_about_equal_parameters(size, shape):
    families = [family for family in models.FAMILIES if family in models.SIZES[size]]
    configs = {family: models.model_config(family, size, shape, 10) for family in families}
    counts = [models.make_model(*each, seed=None).num_parameters() for each in configs.items()]
    assert max(counts) < 1.5 * min(counts)


# ---- cells --------------------------------------------------------------------------------------

SWEEP = {"kind": "sweep", "family": "vit", "size": "nano", "format": 3}
SWEPT = {"images_seen": 384, "loss": 0.5, "held_accuracy": 0.75, "held_loss": None}
FINAL = {"kind": "final", "family": "mixer", "size": "nano", "steps": 24, "keep": True,
         "start": None}  # fmt: skip
ENDED = {"images_seen": 384, "loss": None, "accuracy": 1, "train_accuracy": 0.75, "weights": False,
         "curve": [[3 * n, 0.5] for n in range(1, 9)], "parameters": 10, "macs": 20,
         "train_flops": 1e9}  # fmt: skip


def keep(folder, spec, result):
    """(what kept() gives, how often it computed that)"""
    computed = []
    found = cells.kept(folder, spec, lambda: computed.append(1) or result)
    return found, len(computed)


def edited(content, change):
    """A cell's file after somebody wrote {key: value or None, to leave it out} into its result,
    and a new checksum as well."""
    found = json.loads(content)
    changed = found["result"] | change
    found["result"] = {key: value for key, value in changed.items() if value is not None}
    found["sum"] = cells.checksum(found["spec"], found["result"])
    return json.dumps(found).encode()


DAMAGED = {
    "a result": lambda c: c.replace(b"0.75", b"0.76"),
    "a spec": lambda c: c.replace(b'"vit"', b'"mixer"'),
    "a name": lambda c: c.replace(b"held_accuracy", b"held_accurate"),
    "no checksum": lambda c: json.dumps(json.loads(c) | {"sum": None}).encode(),
    "of before": lambda c: json.dumps({"spec": SWEEP, "result": SWEPT}).encode(),
    "cut": lambda c: c[:-30],
    "empty": lambda c: b"",
    "a list": lambda c: b"[1, 2]",
    "a number": lambda c: b"5",
    "nested": lambda c: b"[" * 200_000,
    "many digits": lambda c: b"9" * 10_000,
    "bytes": lambda c: bytes(range(256)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_file_that_was_changed_is_no_result(tmp_path, capsys, damage):
    assert keep(tmp_path / "new", SWEEP, SWEPT) == (SWEPT, 1)
    assert keep(tmp_path / "new", SWEEP, SWEPT) == (SWEPT, 0)
    path = cells.cell_path(tmp_path / "new", SWEEP)
    good = path.read_bytes()
    path.write_bytes(DAMAGED[damage](good))
    assert path.read_bytes() != good and capsys.readouterr().out == ""
    assert keep(tmp_path / "new", SWEEP, SWEPT) == (SWEPT, 1)
    said = capsys.readouterr().out
    assert said.count("\n") == 1 and path.name in said and "computed anew" in said
    assert keep(tmp_path / "new", SWEEP, SWEPT) == (SWEPT, 0)
    assert path.read_bytes() == good and [p.name for p in path.parent.iterdir()] == [path.name]


MEASURED = {
    "costs": {"step_seconds": 0.5, "images_per_second": 1e3, "peak_bytes": 4096,
              "fast_step_seconds": 0.25, "fast_images_per_second": 2e3},
    "tokens": {"step_ms": 3.0, "peak_mib": 2.5},
}  # fmt: skip
CELLS = {
    "sweep": (SWEEP, SWEPT), "final": (FINAL, ENDED),
    **{kind: ({"kind": kind, "family": "vit", "size": "nano"}, good)
       for kind, good in MEASURED.items()},
}  # fmt: skip


@pytest.mark.parametrize("kind", CELLS)
def test_nonsense_with_a_right_checksum_is_no_result(tmp_path, kind):
    """All that tables and figures take: the right kinds of values, none of them missing."""
    spec, good = CELLS[kind]
    keep(tmp_path, spec, good)
    path = cells.cell_path(tmp_path, spec)
    content = path.read_bytes()
    values = ["x", float("nan"), float("inf"), -(10**400), [[1, 2]], {}, True, None]
    values += [0, -1.0] if kind in MEASURED else []
    changes = [{key: value} for key in good for value in values]
    if "curve" in good:
        high, shifted = [[3 * n, 1.5] for n in range(1, 9)], [[n, 0.5] for n in range(8)]
        changes += [{"curve": curve} for curve in (high, shifted, [], [[3, 0.5]])]
    for change in changes:
        path.write_bytes(edited(content, change))
        assert keep(tmp_path, spec, good) == (good, 1), change


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_what_stands_in_a_cell_s_place_is_said_before_training(tmp_path):
    path = cells.cell_path(tmp_path, SWEEP)
    path.mkdir()
    with pytest.raises(OSError, match=path.name):
        keep(tmp_path, SWEEP, SWEPT)
    path.rmdir()
    os.mkfifo(path)
    with pytest.raises(ValueError, match=f"{path.name}: it is a pipe, not a file; remove it"):
        cells.kept(tmp_path, SWEEP, pytest.fail)


OTHER = """
import sys, time
sys.path.insert(0, sys.argv[1])
from pathlib import Path
from comparison import cells as compare_cells
def compute():
    print("computing", flush=True)
    time.sleep(float(sys.argv[3]))
    return eval(sys.argv[5])
compare_cells.kept(Path(sys.argv[2]), eval(sys.argv[4]), compute)
"""


@pytest.mark.parametrize("dies", [False, True])
def test_two_processes_and_one_cell(tmp_path, dies):
    """The second waits for the first; if the first is killed, it computes by itself."""
    words = [str(EXAMPLES), str(tmp_path), "600" if dies else "1", repr(SWEEP), repr(SWEPT)]
    other = subprocess.Popen([sys.executable, "-c", OTHER, *words], stdout=subprocess.PIPE)
    try:
        assert other.stdout.readline() == b"computing" + os.linesep.encode()
        if dies:
            threading.Timer(0.5, other.kill).start()
        mine = SWEPT | {"loss": 0.125}
        assert keep(tmp_path, SWEEP, mine) == ((mine, 1) if dies else (SWEPT, 0))
    finally:
        other.kill()
        other.communicate()
    assert keep(tmp_path, SWEEP, mine)[1] == 0
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_processes_share_out_what_there_is_to_do(tmp_path):
    """Each of them begins what no other is at, makes no cell twice, and has all in the end."""
    specs, made = [SWEEP | {"seed": number} for number in range(10)], []
    options = compare.make_parser("", []).parse_args(["--out", str(tmp_path)])
    both = [compare.Comparison(options, compare.World(), tmp_path) for _ in range(2)]

    def work(one):
        def cell(spec):
            def compute():
                made.append((one, spec["seed"]))
                time.sleep(0.05)
                return SWEPT | {"loss": float(spec["seed"])}

            return one.keep(spec, compute)["loss"]

        return one.for_each(specs, cell)

    with ThreadPoolExecutor() as pool:
        assert list(pool.map(work, both)) == [list(range(10))] * 2
    assert sorted(seed for _, seed in made) == list(range(10))
    assert min(sum(one is each for each, _ in made) for one in both) >= 3


def test_nothing_waits_while_something_can_be_begun(tmp_path):
    """A cell that another is at is left to it, and what needs it is; then it is waited for."""
    options = compare.make_parser("", []).parse_args(["--out", str(tmp_path)])
    one, order = compare.Comparison(options, compare.World(), tmp_path), []
    busy, free = ({**SWEEP, "seed": number} for number in (0, 1))
    one.folder.mkdir()
    lock = Lock(cells.cell_path(one.folder, busy).with_suffix(".lock"))

    def cell(spec):
        one.keep(spec, lambda: order.append(spec["seed"]) or SWEPT)
        if spec is free:
            lock.release()
        return spec["seed"]

    assert one.share([busy], cell) == 1
    options.no_wait = True
    with pytest.raises(cells.Busy):
        one.for_each([busy], cell)
    options.no_wait = False
    assert one.for_each([busy, free], cell) == [0, 1]
    assert order == [1, 0]


@pytest.fixture
def held(monkeypatch):
    """Another process is at the first final cell that is asked for; how it was asked for."""
    held, keep = [], compare.kept

    def busy_with_the_first(folder, spec, compute, wait, weights):
        if spec["kind"] == "final" and held[:1] in ([], [spec]):
            held.append(spec)
            raise cells.Busy
        return keep(folder, spec, compute, wait, weights)

    monkeypatch.setattr(compare, "kept", busy_with_the_first)
    return held


def test_what_others_are_at_can_be_left_to_them(run, untrained, held, table):
    """--no-wait: all else is trained, and no table is made of a part."""
    status, said, _ = run("--models=mixer", "--no-wait")
    assert status == 0 and said.count("cell   mixer") == 2
    assert said.splitlines()[-1].startswith("left   what other processes are at")
    with pytest.raises(FileNotFoundError):
        table("comparison")


@pytest.mark.parametrize(
    ("words", "family", "count"),
    [
        ("--figure=scaling --shares=40,100", "resnet", 6),
        ("--figure=frontier", "resnet", 3),
        ("--figure=invariance", "resnet", 9),
        ("--figure=table,invariance", "mixer", 2 + 6),
        ("--figure=weights,table", "resnet", 3),
        ("--upstream=digits:0-1 --downstream=digits:2-3 --fine-lrs=0.01", "resnet", 6),
    ],
)
def test_each_figure_shares_out_all_its_models(run, untrained, held, words, family, count):
    """Another process is at the first cell of all: it alone, and what needs it, is left."""
    status, said, _ = run("--models=mixer,resnet", *words.split(), "--no-wait")
    assert status == 0 and said.splitlines()[-1].startswith("left   what other processes are at")
    assert held[0]["family"] == "mixer" and said.count(f"cell   {family}") == count


def test_several_ranks_compute_a_cell_again_once(tmp_path, capsys, monkeypatch):
    """The first takes the file away, and tells; the others find it gone, or made anew."""
    assert keep(tmp_path / "cells", SWEEP, SWEPT) == (SWEPT, 1)
    path, made, meet = cells.cell_path(tmp_path / "cells", SWEEP), [], threading.Barrier(2)
    words = ["--out", str(tmp_path), "--again", path.name]
    options = compare.make_parser("", []).parse_args(words)

    def work(rank):
        world = compare.World()
        world.rank, world.barrier = rank, meet.wait
        return compare.compare(compare.Comparison(options, world, tmp_path))

    def figures_of(one):
        one.keep(SWEEP, lambda: made.append(1) or SWEPT | {"loss": 0.25})
        return 0

    monkeypatch.setattr(compare, "make_figures", figures_of)
    with ThreadPoolExecutor() as pool:
        assert list(pool.map(work, (0, 1))) == [0, 0]
    assert len(made) == 1 and json.loads(path.read_bytes())["result"]["loss"] == 0.25
    assert capsys.readouterr().out.count("again  loss: 0.5, now 0.25") == 1


def test_a_kill_while_a_cell_is_computed_again_loses_nothing(tmp_path, capsys):
    keep(tmp_path, SWEEP, SWEPT)
    path = cells.cell_path(tmp_path, SWEEP)
    with pytest.raises(KeyboardInterrupt), cells.again(path):
        (left,) = tmp_path.glob("*.before")  # what a kill here leaves, and nothing is put back
        shutil.copy(left, tmp_path / "kept")
        raise KeyboardInterrupt
    path.unlink()
    (tmp_path / "kept").rename(left)
    for kept in (False, True):  # killed before the new one was written, and after
        if kept:
            shutil.copy(path, left)
            keep(tmp_path, SWEEP, SWEPT)
        with cells.again(path):
            assert keep(tmp_path, SWEEP, SWEPT | {"loss": 0.25})[1] == 1
            with pytest.raises(ValueError, match="another process is at it"), cells.again(path):
                pass
        said = capsys.readouterr().out
        assert ("again  loss: 0.25, the same" if kept else "again  loss: 0.5, now 0.25") in said
        assert [*tmp_path.glob("*")] == [path]


@pytest.mark.parametrize(("last", "flat"), [(0.905, True), (0.906, False), (0.5, True)])
def test_half_a_point_more_is_flat(last, flat):
    assert compare_table.flat({"rise": last - 0.9}) == flat


def test_a_computation_that_fails_leaves_the_cell_to_the_next(tmp_path):
    with pytest.raises(ValueError, match="no"):
        cells.kept(tmp_path, SWEEP, lambda: raises(ValueError("no")))
    assert keep(tmp_path, SWEEP, SWEPT) == (SWEPT, 1)


def test_a_folder_that_is_removed_meanwhile_is_made_anew(
    run, monkeypatch, tmp_path, table, kept, untrained
):
    calls = []

    def remove(*_):
        calls.append(1)
        if len(calls) in (2, 5):
            shutil.rmtree(tmp_path / "out")

    watch(monkeypatch, cells, "train", remove)
    assert run("--models=mixer", "--figure=table,weights")[0] == 0
    assert len(table("comparison")) == 1 and len(kept("final-*.npz")) == 3


def test_a_full_disk_is_one_sentence(run, monkeypatch):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, "fsync", lambda descriptor: raises(full))
    status, _, errors = run("--models=mixer")
    assert status == 2 and errors.count("\n") == 1
    assert "No space left on device" in errors and os.path.join("out", "cells") in errors


# ---- scores -------------------------------------------------------------------------------------


class Answers:
    """A model that gives these logits (N, K), whatever it sees."""

    def __init__(self, logits):
        self.logits, self.seen = np.asarray(logits, np.float32), []
        self.num_classes, self.parameters = self.logits.shape[1], lambda: [Tensor(0.0)]

    def predict_logits(self, images, batch_size):
        self.seen.append(np.array(images))
        return self.logits[sum(map(len, self.seen[:-1])) :][: len(images)]


@pytest.mark.parametrize(
    "logits, accuracy, loss", [
        ([[0, 1000], [0, 1000], [-500, 500]], 2 / 3, 1000 / 3),  # a softmax would say 0
        ([[2, 0], [0, 2], [2, 0]], 2 / 3, np.log1p(np.exp(-2)) + 2 / 3),
        ([[2, 0], [0, 2], [np.nan, 0]], 2 / 3, np.inf),
        ([[2, 0], [0, 2], [np.inf, 0]], 2 / 3, np.inf),
        ([[1, 1], [0, 2], [1, 1]], 2 / 3, (2 * np.log(2) + np.log1p(np.exp(-2))) / 3),
    ],
)  # fmt: skip
def test_scores_come_from_logits(monkeypatch, logits, accuracy, loss):
    monkeypatch.setattr(cells, "batch_for", lambda *_: 2)
    images, labels = np.arange(12, dtype=np.uint8).reshape(3, 2, 2, 1), np.array([0, 1, 1])
    model, index = Answers(logits), np.array([3, 1, 0, 2])
    np.testing.assert_allclose(cells.evaluate(model, images, labels, index), (accuracy, loss))
    assert [len(part) for part in model.seen] == [2, 1]
    np.testing.assert_array_equal(np.concatenate(model.seen), data.shuffle(images, index))


# ---- figures ------------------------------------------------------------------------------------


@pytest.mark.slow
def test_numbers_in_the_picture_are_those_of_all_test_images(
    run, table, figures_drawn, monkeypatch
):
    for module in (cells, figures):
        monkeypatch.setattr(module, "CURVE_IMAGES", 10)
    assert run("--models=mixer,resnet", "--lrs=0.01", "--figure=invariance")[0] == 0
    rows = table("invariance")
    (figure,) = figures_drawn
    title = figure.get_suptitle()
    assert title.startswith("digits, nano") and "the first 10 test images" in title
    for axes, model in zip(figure.axes, ("mixer", "resnet"), strict=True):
        ends = [r for r in rows if (r["model"], r["test_images"]) == (model, "40")]
        assert [r["shuffled"] for r in ends] == ["none", "patches", "pixels"]
        legend = axes.get_legend()
        assert "all 40 test images" in legend.get_title().get_text()
        for row, text in zip(ends, legend.get_texts(), strict=True):
            mean, sd = 100 * float(row["top1_mean"]), 100 * float(row["top1_sd"])
            assert text.get_text().endswith(f": {mean:.2f} ± {sd:.2f}")
        marks = [line for line in axes.lines if len(line.get_xdata()) == 1]
        heights = {round(float(line.get_ydata(orig=False)[0]), 6) for line in marks}
        assert heights >= {round(100 * float(r["top1_mean"]), 6) for r in ends}
        curve = next(line for line in axes.lines if len(line.get_xdata()) == 8)
        points = [r for r in rows if (r["model"], r["shuffled"], r["test_images"])
                  == (model, "none", "10")]  # fmt: skip
        expected = [100 * float(r["top1_mean"]) for r in points]
        np.testing.assert_allclose(curve.get_ydata(orig=False), expected)


def test_names_that_paint_or_begin_a_formula(
    run, tmp_path, digits, table, figures_drawn, untrained
):
    odd = "a$b$\x1b[31m" + ("\udcff" if sys.platform == "linux" else "")
    path = digits.rename(tmp_path / odd)
    status, said, errors = run("--data", path, "--models=mixer", "--lrs=0.01",
                               "--figure=scaling,frontier,invariance", "--shares=100")  # fmt: skip
    assert status == 0 and "\x1b" not in said + errors and "\\x1b[31m" in said
    assert "a$b$\\x1b[31m" in table("scaling")[0]["data"]
    for figure in figures_drawn:
        title = figure.get_suptitle()
        assert title.startswith(r"a\$b\$\x1b[31m") and "/" not in title
        figure.draw_without_rendering()
    status, _, errors = run("--data", f"{path}:0-9")
    assert status == 2 and "\x1b" not in errors and "has the classes 0 to 3" in errors


@pytest.mark.slow
def test_figures_from_cells(run, tmp_path, kept):
    pytest.importorskip("matplotlib", reason="needs matplotlib: pip install -e '.[plots]'")
    status, _, _ = run("--models=mixer,resnet", "--lrs=0.01", "--shares=40,100",
                       "--figure=scaling,invariance,frontier,weights")  # fmt: skip
    assert status == 0
    out = tmp_path / "out"
    scaling = read_csv(out / "scaling.csv")
    assert [(r["model"], r["train_images"]) for r in scaling] == [
        ("mixer", "35"), ("mixer", "88"), ("resnet", "35"), ("resnet", "88")
    ]  # fmt: skip
    assert len({r["steps"] for r in scaling}) == 1
    finals = contents_of(kept("final-*.json"))
    for row in scaling:
        gaps = [c["result"]["train_accuracy"] - c["result"]["accuracy"] for c in finals
                if (c["spec"]["family"], c["spec"]["train_images"], c["spec"]["shuffle"])
                == (row["model"], int(row["train_images"]), "none")]  # fmt: skip
        assert len(gaps) == 3 and np.isclose(float(row["gap_mean"]), np.mean(gaps))
    curves = read_csv(out / "invariance.csv")
    kinds = {(r["model"], r["shuffled"]) for r in curves}
    assert len(curves) == 6 * (8 + 1) and len(kinds) == 6
    for model, kind in kinds:  # the last is what the table calls the test accuracy
        *points, end = [r for r in curves if (r["model"], r["shuffled"]) == (model, kind)]
        found = [c["result"]["accuracy"] for c in finals if (model, kind, 88) == (
            c["spec"]["family"], c["spec"]["shuffle"], c["spec"]["train_images"])]  # fmt: skip
        assert len(found) == 3 and np.isclose(float(end["top1_mean"]), np.mean(found))
        assert end["test_images"] == "40" and end["step"] == points[-1]["step"] == "24"
        assert np.isclose(float(end["top1_mean"]), float(points[-1]["top1_mean"]))
    assert len(read_csv(out / "frontier.csv")) == 2  # all parts of so small a budget are the least
    units = read_csv(out / "weights.csv")
    assert sorted(int(r["unit"]) for r in units) == list(range(16))
    assert all(float(r["cosine"]) <= 1 for r in units)
    for name in ("scaling", "invariance", "frontier", "units", "stem"):
        assert (out / f"{name}.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"


def test_figure_of_tokens(run, table, monkeypatch):
    monkeypatch.setattr(tokens, "TOKENS", {"cpu": (4, 2)})
    monkeypatch.setattr(tokens, "ROUNDS", 1)
    status, said, _ = run("--figure=tokens")
    rows = table("tokens")
    assert status == 0 and max(int(r["tokens"]) for r in rows) >= 12 * 4
    fits = table("tokens-fit")
    macs = {r["model"]: r for r in fits if r["of"] == "macs"}
    block, per_token = 12 * 16, 4 * 4  # of each block; of the stem
    assert np.isclose(float(macs["vit"]["b"]), 2 * block + per_token, rtol=1e-6)
    assert np.isclose(float(macs["vit"]["c"]), 2 * 2 * 4, rtol=1e-6)
    assert np.isclose(float(macs["mixer"]["b"]), 2 * (8 * 16 + 2 * 8 * 16) + per_token, rtol=1e-6)
    assert float(macs["mixer"]["c"]) < 1e-6
    assert "the same: predicted from MACs S = 24;" in said  # 6 C


def test_the_fastest_round_counts(run, table, monkeypatch):
    monkeypatch.setattr(tokens, "measure_tokens", lambda spec, device: {
        "step_ms": [5.0, 3.0, 4.0][spec["round"]], "peak_mib": 2.0})  # fmt: skip
    monkeypatch.setattr(figures, "start_figure", lambda *_: None)
    assert run("--figure=tokens")[0] == 0
    assert {r["step_ms"] for r in table("tokens")} == {"3.0"}


def test_filters_are_drawn_by_frequency(run, tmp_path, monkeypatch):
    drawn = {}
    monkeypatch.setattr(weights, "draw", lambda path, images, *_, **__: drawn.update(
        {path.name: images}))  # fmt: skip
    save_checkpoint(tmp_path / "own.npz", small_mixer())
    assert run("--figure=weights", "--weights", tmp_path / "own.npz")[0] == 0
    stem = weights.radial_frequency(drawn["stem.png"][..., 0])
    assert len(stem) == 8 and (np.diff(stem) >= 0).all() and stem[0] < stem[-1]
    units = weights.radial_frequency(drawn["units.png"])
    assert len(units) == 6 and units[0] == units.min()


def test_weights_of_any_checkpoint(run, tmp_path, table):
    sizes = {"in_channels": 3, "patch_size": 2, "num_blocks": 1, "tokens_mlp_dim": 5}
    save_checkpoint(tmp_path / "own.npz", small_mixer(image_size=(4, 6), **sizes))
    small_mixer(**sizes).export(tmp_path / "theirs.npz", "npz")
    for name in ("own", "theirs"):
        status, said, _ = run("--figure=weights", "--weights", tmp_path / f"{name}.npz")
        assert status == 0 and "5 hidden units" in said
        assert table("weights")[-1]["partner"] == ""  # an odd number
    status, _, errors = run("--figure=weights", "--weights", tmp_path / "own.npz", "--block=1")
    assert status == 2 and "counted from 0" in errors


def test_fits_and_crossings():
    s = np.array([4.0, 9, 16, 25, 36])
    terms, error = tokens.fit_quadratic(s, 5 + 0.5 * s + 0.25 * s**2)
    np.testing.assert_allclose(terms, [5, 0.5, 0.25], rtol=1e-9)
    assert error < 1e-12
    terms, error = tokens.fit_quadratic(s, 5 + 3 * s - 0.02 * s**2)
    assert (terms >= 0).all() and terms[2] == 0 and 0 < error < 0.1
    one, other = np.array([0, 10.0, 0]), np.array([0, 4.0, 0.5])
    assert np.isclose(tokens.crossing(one, other, 1, 100), 12)
    assert tokens.crossing(one, other, 20, 100) is None
    assert np.isclose(tokens.half(np.array([0, 6.0, 0.5])), 12)
    assert tokens.half(one) is None


def test_frequencies_and_partners():
    x = np.arange(8)
    wave = np.cos(2 * np.pi * 2 * x / 8)
    across = np.tile(wave, (8, 1))
    images = np.stack([np.ones((8, 8)), across, np.outer(wave, wave), across.T])
    np.testing.assert_allclose(weights.radial_frequency(images), [0, 2, 8**0.5, 2], atol=1e-9)
    vectors = np.array([[1.0, 0], [-1, 0.1], [0, 1], [0.1, -1], [5, 5]])
    order, cosines = weights.pair(vectors, np.array([4.0, 3, 2, 1, 0]))
    assert order.tolist()[0] == 4 and sorted(order.tolist()) == [0, 1, 2, 3, 4]
    assert order.tolist()[1] in (1, 3) and order.tolist()[-1] not in cosines


# ---- data ---------------------------------------------------------------------------------------


def test_held_out_images_and_parts(digits):
    source = data.load(str(digits))
    assert (len(source.train_images), len(source.held_images)) == (88, 8)
    train, held = ({image.tobytes() for image in part}
                   for part in (source.train_images, source.held_images))  # fmt: skip
    assert len(train) == 88 and len(held) == 8 and not train & held
    again = data.load(str(digits))
    np.testing.assert_array_equal(source.train_images, again.train_images)
    assert source.fingerprint == again.fingerprint != data.load(f"{digits}:0-2").fingerprint
    part = data.load(f"{digits}:3,1")
    assert part.classes == 2 and len(part.test_labels) == 20
    bright = part.test_images[:, :, :, 0].mean(axis=2).argmax(axis=1)
    np.testing.assert_array_equal(bright, np.array([6, 2])[part.test_labels])


@pytest.mark.parametrize("wrong", ["0", "0-0", "3-1", "1,1", "0--2", "0-9", "0,,1"])
def test_wrong_classes(digits, wrong):
    with pytest.raises(ValueError):
        data.load(f"{digits}:{wrong}")


def cifar_file(path, labels, limits, seed=0):
    """A file of CIFAR's; returns its images (N, 32, 32, 3)."""
    images = np.random.default_rng(seed).integers(0, 256, (len(labels), 32, 32, 3), dtype=np.uint8)
    columns = [np.asarray(labels) % limit for limit in limits[:-1]] + [np.asarray(labels)]
    pixels = images.transpose(0, 3, 1, 2).reshape(len(labels), -1)
    records = np.concatenate([np.stack(columns, axis=1).astype(np.uint8), pixels], axis=1)
    records.tofile(path)
    return images


def test_cifar_10(tmp_path):
    top = tmp_path / "cifar-10-batches-bin"
    top.mkdir()
    images = [cifar_file(top / f"data_batch_{n}.bin", [n, 9, 0, 5, 5, 2], (10,), n)
              for n in range(1, 6)]  # fmt: skip
    test = cifar_file(top / "test_batch.bin", [3, 4, 9], (10,), 7)
    for place in (top, tmp_path):  # also the folder in which the archive was unpacked
        source = data.load(str(place))
        assert source.classes == 10 and source.shape == (32, 32, 3)
        np.testing.assert_array_equal(source.test_images, test)
        assert source.test_labels.tolist() == [3, 4, 9]
    x, y, *_ = data.load_cifar(top)
    np.testing.assert_array_equal(x, np.concatenate(images))
    assert y.tolist() == [label for n in range(1, 6) for label in (n, 9, 0, 5, 5, 2)]
    (top / "data_batch_4.bin").unlink()
    with pytest.raises(ValueError, match=r"lacks data_batch_4\.bin"):
        data.load(str(top))


def test_cifar_100_takes_the_fine_labels(tmp_path):
    labels = np.arange(40) % 100 + 55
    cifar_file(tmp_path / "train.bin", labels, (20, 100))
    cifar_file(tmp_path / "test.bin", [99, 0], (20, 100))
    assert data.load_cifar(tmp_path)[1].tolist() == labels.tolist()
    assert data.load(str(tmp_path)).classes == 100


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="needs named pipes")
def test_cifar_from_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "train.bin")
    with pytest.raises(ValueError, match=r"train\.bin: it is a pipe, not a file"):
        data.read_cifar(tmp_path / "train.bin", (20, 100))


BAD_CIFAR = {
    "cut": lambda c: c[:-1], "longer": lambda c: c + b"x", "empty": lambda c: b"",
    "coarse": lambda c: c[:3074] + b"d" + c[3075:], "label": lambda c: c[:3075] + b"d" + c[3076:],
}  # fmt: skip


@pytest.mark.parametrize("change", [*BAD_CIFAR, "directory"])
def test_damaged_cifar_is_refused(tmp_path, change):
    path, limits = tmp_path / "test.bin", (20, 100)
    if change == "directory":
        path.mkdir()
    else:
        cifar_file(path, [1, 2, 3], limits)
        path.write_bytes(BAD_CIFAR[change](path.read_bytes()))
    with pytest.raises((ValueError, OSError), match=r"test\.bin"):
        data.read_cifar(path, limits)


def test_pickles_are_not_opened(tmp_path):
    (tmp_path / "data_batch_1").write_bytes(b"cos\nsystem\n(S'touch ran'\ntR.")
    with pytest.raises(ValueError, match="binary version"):
        data.load(str(tmp_path))
    assert not (tmp_path / "ran").exists()


def coloured(folder, count=20, size=(8, 8)):
    """Two classes of pictures, red ones and blue ones."""
    image = pytest.importorskip("PIL.Image", reason="needs Pillow: pip install -e '.[images]'")
    for name, colour in (("red", (255, 0, 0)), ("sky", (0, 100, 255))):
        (folder / name).mkdir(parents=True)
        for number in range(count):
            image.new("RGB", size, colour).save(folder / name / f"{number}.png")


def assert_coloured(source):
    np.testing.assert_array_equal(source.test_images[:, 3, 3, 0] > 100, source.test_labels == 0)


def test_folders(tmp_path, capsys):
    coloured(tmp_path, size=(20, 12))
    (tmp_path / "red" / "bad.png").write_bytes(b"no picture")
    source = data.load(str(tmp_path), 8)
    assert source.shape == (8, 8, 3) and len(source.test_images) == 8
    assert "1 of 41 pictures left out" in capsys.readouterr().out
    assert_coloured(source)


def test_test_pictures_of_folders_are_mixed(tmp_path):
    """Learning curves are taken on the first 1,000: these must not be of the first classes."""
    for part in ("train", "val"):
        coloured(tmp_path / part)
    source = data.load(str(tmp_path), 8)
    assert set(source.test_labels[:20].tolist()) == {0, 1}
    assert_coloured(source)


# ---- shuffles -----------------------------------------------------------------------------------


def test_shuffles_are_permutations():
    images = np.arange(2 * 8 * 12 * 3, dtype=np.int64).reshape(2, 8, 12, 3)
    for kind in data.SHUFFLES:
        index = data.shuffle_index(kind, 8, 12, 4)
        assert sorted(index) == list(range(96))
        shuffled = data.shuffle(images, index)
        np.testing.assert_array_equal(
            shuffled.reshape(2, 96, 3), images.reshape(2, 96, 3)[:, index]
        )
        assert (kind == "none") == np.array_equal(index, np.arange(96))
    index = data.shuffle_index("patches", 8, 12, 4).reshape(8, 12)
    for row in (0, 4):
        for column in (0, 4, 8):  # all pixels of a patch come from one patch
            patch = index[row : row + 4, column : column + 4]
            assert len({(p // 12 // 4, p % 12 // 4) for p in patch.ravel().tolist()}) == 1
    with pytest.raises(ValueError, match="cut into"):
        data.shuffle_index("patches", 8, 12, 5)


def test_a_mixer_with_permuted_weights_sees_shuffled_patches_as_it_saw_the_others():
    model = redraw(small_mixer(in_channels=2))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 2), dtype=np.uint8)
    expected = model(images).numpy()
    tokens, pixels = data.patch_orders(8, 8, 4)
    weight = model.stem.weight.numpy().reshape(16, 2, -1)
    model.stem.weight.data = weight[pixels].reshape(32, -1)
    for block in model.blocks:
        for name in ("w1", "w2", "b2"):
            parameter = getattr(block.token_mixing, name)
            parameter.data = parameter.numpy()[tokens]
    shuffled = data.shuffle(images, data.shuffle_index("patches", 8, 8, 4))
    close(model(shuffled).data, expected, rtol=1e-4, atol=1e-4)
    assert abs(model(images).numpy() - expected).max() > 0.1


# ---- what is refused ----------------------------------------------------------------------------


@pytest.mark.parametrize("wrong, message", [
    ("--seeds=0,1", "three seeds"), ("--seeds=0,1,1", "must differ"), ("--models=mixer,cnn", "cnn"),
    ("--sizes=huge", "huge"), ("--figure=table,pie", "pie"), ("--budget=3", "24 steps"),
    ("--budget=nan", "--budget"), ("--equal=flops --budget=1e-9", "steps"), ("--lrs=0", "--lrs"),
    ("--shares=0,50", "--shares"), ("--shares=50,nan", "--shares"), ("--lrs=0.003,nan", "--lrs"),
    ("--examples=20", "--upstream"), ("--cell-minutes=nan", "--cell-minutes"),
    ("--batch-size=-1", "--batch-size"), ("--upstream=mnist", "go together"),
    ("--data=nowhere", "nowhere"), ("--device=tpu", "tpu"), ("--cell-minutes=0.00001", "minutes"),
    ("--weights=gone.npz --figure=weights", "gone.npz"), ("--tune", "of --figure decades"),
    ("--shares=50 --figure=table", "--shares is of --figure scaling"),
])  # fmt: skip
def test_wrong_options_are_one_sentence(run, wrong, message):
    status, _, errors = run(*wrong.split())
    assert status == 2 and message in errors
    assert errors.count("\n") == 1 and errors.startswith("compare")
