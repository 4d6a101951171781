"""examples/ablations.py: each variant is what it says, and the script writes its table."""

import argparse
import shutil
import signal
import sys
from pathlib import Path

import numpy as np
import pytest
from processes import read_csv
from scripts import EXAMPLES, Runner, stopped_by, watch
from test_baselines import count_products
from test_oracles import redraw

import ablations
from minimixer import Tensor, gradcheck
from minimixer.model.block import MixerMLP

SCRIPT = EXAMPLES / "ablations.py"
SIZES = {"patch_size": 2, "num_blocks": 3, "hidden_dim": 6, "tokens_mlp_dim": 5,
         "channels_mlp_dim": 7, "groups": 3}  # fmt: skip
each_variant = pytest.mark.parametrize("name", ablations.VARIANTS)


def make(name, device="cpu", image=(8, 4, 2), **changes):
    options = argparse.Namespace(**SIZES | {"device": device} | changes)
    return ablations.make(name, options, image, classes=3, seed=1)


@each_variant
def test_gradients(name, device):
    model = redraw(make(name, device).to("float64"), seed=2)
    x = Tensor(np.random.default_rng(3).standard_normal((3, 8, 4, 2)), requires_grad=True)
    x = x if device == "cpu" else Tensor(x.data, requires_grad=True, device=device)
    gradcheck(lambda *_: model(x), [x, *model.parameters()], directions=1)


@each_variant
def test_multiplications_are_those_performed(name, monkeypatch, reference):
    model, images = make(name), np.zeros((2, 8, 4, 2), np.uint8)
    assert count_products(monkeypatch, lambda: model(images)) == 2 * ablations.macs(model)


def test_parameters():
    token_mlps = 3 * (2 * 8 * 5 + 5 + 8)  # of three blocks with S = 8, D_S = 5
    mixer = make("mixer").num_parameters()
    assert make("untied").num_parameters() == mixer + 5 * token_mlps
    assert make("grouped").num_parameters() == mixer + 2 * token_mlps
    assert make("joined").num_parameters() == mixer + 3 * 2 * (2 * 8 * 5 + 8)  # 5 biases b1 stay
    assert make("reducing").blocks[2].token_mixing.w1.shape == (2, 5)
    assert make("merging").blocks[2].token_mixing.w1.shape == (2, 5)
    assert make("merging").head.weight.shape == (12, 3)


@pytest.mark.parametrize("kind", [ablations.GroupedMLP, ablations.JoinedMLP])
def test_one_group_is_mixer_s_token_mixing(kind, device):
    random = np.random.default_rng(4)
    shared, other = MixerMLP(8, 5, 0, "tanh"), kind(8, 6, 5, 1, "tanh")
    pairs = [(p, q) for p, q in zip(shared.parameters(), other.parameters(), strict=True)]
    for p, q in pairs:
        p.data = random.standard_normal(p.shape)
        q.data = p.data.reshape(q.shape)
    x = Tensor(random.standard_normal((8, 3, 6)), dtype="float32", device=device)
    y, same = shared.to(device)(x), other.to(device)(x)
    np.testing.assert_allclose(same.numpy(), y.numpy(), atol=1e-5)


def test_groups_do_not_see_each_other_s_channels():
    """But for the MLPs' parameters nothing ties them: one group's input moves its output alone."""
    layer = redraw(ablations.GroupedMLP(4, 6, 5, 3, "tanh"), seed=1)
    x = np.random.default_rng(5).standard_normal((4, 2, 6)).astype("f4")
    before = layer(Tensor(x)).data
    x[:, :, 2:4] += 1
    moved = abs(layer(Tensor(x)).data - before).max(axis=(0, 1)) > 0
    assert moved.tolist() == [False, False, True, True, False, False]


def test_merged_tokens_are_neighbours():
    """2 x 2 tokens of a 4 x 2 grid: the first result depends on tokens 0, 1, 2, 3 alone."""
    block = redraw(ablations.MergingBlock(4, 2, 3), seed=1)
    x = np.random.default_rng(5).standard_normal((8, 1, 3)).astype("f4")
    before = block(Tensor(x)).data
    for token in range(8):
        other = x.copy()
        other[token] *= [1, -1, 2]
        moved = abs(block(Tensor(other)).data - before).max(axis=(1, 2)) > 0
        assert moved.tolist() == [token < 4, token >= 4]


SMALL = ["--epochs=1", "--num-blocks=2", "--hidden-dim=8", "--tokens-mlp-dim=4",
         "--channels-mlp-dim=8"]  # fmt: skip


@pytest.fixture
def run(tmp_path):
    more = ["--limit-train=256", "--groups=2", "--seeds=2", "--out=out/table.csv"]
    return Runner(tmp_path, SCRIPT, [*SMALL, *more])


@pytest.mark.slow
def test_the_script_writes_its_table(run, tmp_path):
    said = run(apart=True).stdout
    rows = read_csv(tmp_path / "out/table.csv")
    assert [row["model"] for row in rows] == list(ablations.VARIANTS)
    for row in rows:
        top1 = [float(value) for value in row["top1"].split()]
        assert len(top1) == 2 and abs(np.mean(top1) - float(row["top1_mean"])) < 1e-4
        assert abs(np.std(top1, ddof=1) - float(row["top1_deviation"])) < 1e-4
        assert f"{int(row['parameters']):,}" in said and f"{int(row['macs']):,}" in said
    assert any(len(set(row["top1"].split())) == 2 for row in rows)  # seeds differ


@pytest.fixture
def script(monkeypatch, tmp_path):
    """main() on twenty images, in an empty directory: script("--only", ...) -> status."""
    rng, labels = np.random.default_rng(0), np.arange(20) % 10
    images = rng.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8)
    monkeypatch.setattr(ablations.data, "load_mnist", lambda: (images, labels, images, labels))
    monkeypatch.chdir(tmp_path)

    def script(*arguments):
        words = ["ablations.py", *SMALL, "--seeds=1", *map(str, arguments)]
        monkeypatch.setattr(sys, "argv", words)
        return ablations.main()

    return script


def test_seeds_and_test_images(script, monkeypatch):
    """Each run has weights of its own seed, and is judged on the test images alone."""
    rng, made, judged = np.random.default_rng(0), [], []
    images, labels = rng.integers(0, 256, (40, 28, 28, 1), dtype=np.uint8), np.arange(40) % 10
    test = rng.integers(0, 256, (20, 28, 28, 1), dtype=np.uint8), np.arange(20) % 10
    monkeypatch.setattr(ablations.data, "load_mnist", lambda: (images, labels, *test))
    original = ablations.make
    watch(monkeypatch, ablations, "make", lambda *arguments: (
        made.append((arguments[-1], original(*arguments).stem.weight.data.tobytes()))
    ))  # fmt: skip
    watch(monkeypatch, ablations.Mixer, "predict_logits", lambda model, images, size: (
        judged.append(images)
    ))  # fmt: skip
    assert script("--only", "mixer", "--seeds=3") == 0
    assert [seed for seed, _ in made] == [0, 1, 2] and len({weights for _, weights in made}) == 3
    assert len(judged) == 3
    assert all(images.base is test[0] and len(images) == 20 for images in judged)


def test_one_seed_has_no_deviation(script, tmp_path, capsys):
    assert script("--only", "mixer", "--seeds=1") == 0
    (row,) = read_csv(tmp_path / "runs" / "ablations.csv")
    assert row["top1_deviation"] == "" and float(row["top1_mean"]) == float(row["top1"])
    said = capsys.readouterr().out
    assert "nan" not in said and said.splitlines()[1].split()[4] == "-"


def test_no_table_is_replaced_unasked(script, tmp_path, capsys):
    """Without --out each run has a file of its own; with it --overwrite must be said."""
    for name in ("ablations.csv", "ablations-2.csv", "ablations-3.csv"):
        assert script("--only", "mixer") == 0
        said = capsys.readouterr().out
        assert f"wrote {Path('runs') / name}\n" in said
        assert ("is there already" in said) == (name != "ablations.csv")
    assert len(list((tmp_path / "runs").iterdir())) == 3
    out = tmp_path / "own.csv"
    out.write_bytes(b"mine")
    with pytest.raises(ValueError, match=r"own\.csv is there already; --overwrite"):
        script("--only", "mixer", "--out", out)
    assert out.read_bytes() == b"mine"
    for other in ([out, "--overwrite"], [tmp_path / "new.csv"]):
        with pytest.raises(ValueError, match="can't be cut into"):
            script("--only", "grouped", "--groups=3", "--out", *other)
    assert out.read_bytes() == b"mine"
    assert not (tmp_path / "new.csv").exists()  # the name that was taken is free again
    assert script("--only", "mixer", "--out", out, "--overwrite") == 0
    assert [row["model"] for row in read_csv(out)] == ["mixer"]


def test_each_seed_has_its_order_and_its_schedule(script, tmp_path, monkeypatch):
    """Seconds are of one run; batches are the seed's; the rate follows the steps of the whole."""
    train, orders, asked = ablations.train, [], []
    monkeypatch.setattr(ablations, "train", lambda *arguments: train(*arguments) and 3.0)
    watch(monkeypatch, ablations, "schedule", lambda *arguments: asked.append(arguments))
    watch(monkeypatch, ablations.data.Batches, "epoch", lambda batches, epoch: (
        orders.append((batches.seed, epoch))
    ))  # fmt: skip
    assert script("--only", "mixer", "--seeds=2", "--batch-size=1", "--epochs=2") == 0
    (row,) = read_csv(tmp_path / "runs" / "ablations.csv")
    assert float(row["seconds"]) == 3
    assert orders == [(0, 0), (0, 1), (1, 0), (1, 1)]
    assert asked == 2 * [(step, 40, 4) for step in range(40)]


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
@pytest.mark.parametrize("finished", [0, 2])
def test_what_was_finished_is_kept(script, tmp_path, monkeypatch, capsys, name, finished):
    stopped_by(name, monkeypatch, ablations, "train", at=finished + 1)
    handler = signal.getsignal(signal.Signals[name])
    assert script("--only", "mixer", "untied", "merging", "--patch-size=7") == 130
    errors, table = capsys.readouterr().err, Path("runs") / "ablations.csv"
    assert signal.getsignal(signal.Signals[name]) == handler
    if finished:
        assert [row["model"] for row in read_csv(table)] == ["mixer", "untied"]
        assert f"stopped; {table} has mixer untied; for the others: --only merging\n" in errors
    else:
        assert not table.exists()
        assert "nothing is kept; for the others: --only mixer untied merging\n" in errors


def test_a_directory_that_is_removed_meanwhile_is_made_anew(script, tmp_path, monkeypatch):
    watch(monkeypatch, ablations, "train", lambda *_: shutil.rmtree("runs", ignore_errors=True))
    assert script("--only", "mixer", "untied") == 0
    assert len(read_csv(tmp_path / "runs" / "ablations.csv")) == 2


@pytest.mark.parametrize(
    "arguments, message", [
        (["--patch-size", "4", "--only", "merging"], "7 x 7 tokens can't be merged"),
        (["--groups", "3", "--only", "grouped"], "8 channels can't be cut into 3"),
        (["--epochs", "0"], "--epochs must be from 1 to"),
        (["--only", "mixer", "mixer"], "each model once"),
        (["--out", "."], ". is a directory"),
        (["--data-dir", "nowhere"], "nowhere is not a directory"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(run, arguments, message):
    run.refused(*arguments, match=message)
