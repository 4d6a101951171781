"""Checkpoints: what is saved comes back bit for bit; what is damaged or hostile is refused."""

import errno
import io
import json
import os
import pickle
import random
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from files_help import assert_refused, members, npy, pack
from help import each_dtype, raises, redraw
from minimixer.data import Batches
from processes import ENVIRONMENT

from minimixer import SGD, Adam, AdamW, Dropout, LayerNorm, Linear, Mixer, Module, Parameter
from minimixer import functional as F
from minimixer.backend import to_device, to_numpy
from minimixer.training.checkpoint import load_checkpoint, load_model, read_checkpoint
from minimixer.training.checkpoint import save_checkpoint as save

PROGRESS = {"epoch": 3, "names": ["näh", None], "loss": 0.1 + 0.2, "big": 2**70, "deep": [[{}]]}


class RMSNorm(Module):
    def __init__(self, channels, biased=False):
        self.weight = Parameter(np.ones(channels, "float32"))
        if biased:
            self.bias = Parameter(np.zeros(channels, "float32"))

    def forward(self, x):
        return x * (((x * x).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5).to(x.dtype) * self.weight


class LikeLayerNorm(LayerNorm):
    """The same weights."""


def make_model(**changes):
    config = dict(
        image_size=(6, 4), patch_size=2, in_channels=3, num_classes=3, num_blocks=2, hidden_dim=8,
        tokens_mlp_dim=5, channels_mlp_dim=16, stochastic_depth=0.3, approximate="none",
        mean=(0.1, 0.2, 0.7), std=(1 / 3, 0.5, 1.0), class_names=["cat", "dog", "ünit"], seed=7,
    )  # fmt: skip
    return Mixer(**config | changes)


def make_images(size=(6, 4), n=40):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (n, *size, 3), dtype=np.uint8), rng.integers(0, 3, n)


def train(model, optimizer, start, stop):
    images = make_images((model.height, model.width))
    batches = Batches(*images, batch_size=16, seed=5, max_shift=1)
    model.train()
    for step in range(start, stop):
        images, labels = batches.batch(*divmod(step, len(batches)))
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def trained(device="cpu", steps=5, make=AdamW, **changes):
    """A model and its optimizer after so many steps; after none, something to be filled."""
    model = make_model(**changes).to(device)
    optimizer = make(model.parameters(), lr=0.01, weight_decay=0.05)
    train(model, optimizer, 0, steps)
    return model, optimizer


def everything(model, optimizer=None):
    """All that a checkpoint is about, as a flat dict of NumPy arrays and plain values."""
    found = {f"weights/{name}": value for name, value in model.state_dict().items()}
    found |= {"seed": model.random.seed, "counters": to_numpy(model.random.counters).copy()}
    found |= {"mean": model.mean.copy(), "std": model.std.copy(), "names": str(model.class_names)}
    found |= {"dtype": str(model.dtype), "device": model.device, "config": dict(model.config)}
    if optimizer is not None:
        state = optimizer.state_dict()
        found |= {"kind": type(optimizer), "step": state.pop("step")}
        for moment, values in state.items():
            found |= {f"{moment}/{i}": value for i, value in enumerate(values)}
    return found


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, value in one.items():
        if isinstance(value, np.ndarray):
            assert value.dtype == other[name].dtype and value.shape == other[name].shape, name
            assert value.tobytes() == other[name].tobytes(), name
        else:
            assert value == other[name], name


def assert_loaded(loaded, model):
    """All but what belongs to training."""
    wanted = everything(model) | {"device": "cpu"}
    found = everything(loaded) | {name: wanted[name] for name in ("seed", "counters")}
    assert_same(found, wanted)
    assert type(loaded) is type(model)
    assert not any(module.training for _, module in loaded.named_modules())


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.npz"


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of a trained model, not to be written; with its content."""
    path = tmp_path_factory.mktemp("good") / "checkpoint.npz"
    model, optimizer = trained()
    save(path, model, optimizer, PROGRESS)
    return path, model, optimizer


# ---- what is saved comes back --------------------------------------------------------------


@each_dtype
def test_round_trip(path, device, dtype):
    model, optimizer = trained(device, dtype=dtype)
    before = everything(model, optimizer)
    assert any(before["exp_avg/0"].ravel()) and before["counters"].any()  # there is something
    save(str(path), model, optimizer, PROGRESS)
    assert_same(everything(model, optimizer), before)
    assert os.listdir(path.parent) == ["checkpoint.npz"]
    for there in {"cpu", device}:  # also from the GPU to the CPU
        other, its = trained(there, 0, seed=99, dtype=dtype)
        assert load_checkpoint(str(path), other, its) == PROGRESS
        assert_same(everything(other, its), before | {"device": other.device})
    assert_loaded(Mixer.load(path), model)


def test_going_on_is_as_if_it_had_not_stopped(path, device):
    straight = trained(device, steps=11)
    model, optimizer = trained(device, steps=4)
    for start, stop in ((4, 7), (7, 8), (8, 11)):  # in the middle of epochs and between them
        save(path, model, optimizer, start)
        model, optimizer = trained(device, 0, seed=stop)
        assert load_checkpoint(path, model, optimizer) == start
        train(model, optimizer, start, stop)
    assert_same(everything(model, optimizer), everything(*straight))
    fewer = everything(*trained(device, steps=10))
    assert (fewer["weights/head.weight"] != straight[0].state_dict()["head.weight"]).any()


@each_dtype
def test_the_file_is_all_that_a_fresh_process_needs(tmp_path, path, device, dtype):
    model, _ = trained(device, dtype=dtype)
    model.save(path)
    images, _ = make_images()
    np.save(tmp_path / "images.npy", images)
    code = """if True:
        import numpy as np
        from minimixer import Mixer
        model = Mixer.load("checkpoint.npz")
        assert not model.training and model.device == "cpu", model.device
        np.save("logits.npy", model(np.load("images.npy")).data)
    """
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=ENVIRONMENT, check=True)
    logits = np.load(tmp_path / "logits.npy")
    expected = model.to("cpu").eval()(images).data
    assert logits.dtype == dtype and np.ptp(logits) > 0.1
    assert logits.tobytes() == expected.tobytes()


def momentum(parameters, **options):
    return SGD(parameters, momentum=0.9, **options)


def some_parameters(parameters, **options):
    return AdamW(parameters[::2], **options)


@pytest.mark.parametrize("make", [SGD, momentum, Adam, some_parameters])
def test_every_optimizer(path, make):
    model, optimizer = trained(steps=3, make=make)
    save(path, model, optimizer)
    other, its = trained(steps=0, make=make, seed=1)
    assert load_checkpoint(path, other, its) is None
    assert_same(everything(other, its), everything(model, optimizer))


def test_numpy_integers_as_sizes_and_seed(path):
    """num_classes=labels.max() + 1 is an np.int64; so is any size out of a shape computation."""
    model = make_model(
        num_classes=np.array([0, 2, 1]).max() + 1, image_size=(np.int64(6), np.int32(4)),
        hidden_dim=np.int64(8), seed=np.int64(3), stochastic_depth=np.float32(0.25),
    )  # fmt: skip
    model.save(path)
    assert_loaded(Mixer.load(path), model)


# ---- what is on disk stays whole -----------------------------------------------------------


@pytest.fixture
def kept(path, good):
    """A checkpoint on disk, which is as it was when the test is over, and alone."""
    save(path, *good[1:])
    before = path.read_bytes()
    yield path
    assert path.read_bytes() == before and os.listdir(path.parent) == ["checkpoint.npz"]


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_not_written(kept, device, value):
    model, optimizer = trained(device)
    for name, parameter in model.named_parameters():
        whole = to_numpy(parameter.data).copy()
        broken = whole.copy()
        broken.reshape(-1)[-1] = value
        parameter.data = broken
        with pytest.raises(ValueError, match=name):
            save(kept, model, optimizer)
        parameter.data = whole


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(kept, monkeypatch, call):
    full = OSError(errno.ENOSPC, "No space left on device")
    monkeypatch.setattr(os, call, lambda *arguments: raises(full))
    with pytest.raises(OSError, match="No space"):
        save(kept, make_model())


def nested(levels):
    return [nested(levels - 1)] if levels else None


@pytest.mark.parametrize("progress, said", [
    ({"rng": object()}, "object"), (10**40, "not saved: .*41 digits"),
    (nested(101), "not saved: .*100 levels"),
])  # fmt: skip
def test_what_json_cannot_hold_is_not_written(kept, good, progress, said):
    with pytest.raises((TypeError, ValueError), match=said):
        save(kept, *good[1:], progress)


def test_flushed_to_disk_before_it_takes_the_name(path, good, monkeypatch):
    calls, replace = [], os.replace

    def fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def rename(source, target):
        calls.append(("rename", os.stat(source).st_ino, os.stat(source).st_size))
        assert os.path.dirname(source) == os.path.dirname(target) and Path(target) == path
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    save(path, *good[1:])
    inode, size = path.stat().st_ino, path.stat().st_size  # all of it was flushed
    of_the_file = [call for call in calls if call[1] == inode]
    assert of_the_file == [("fsync", inode, size), ("rename", inode, size)]


# ---- damaged and hostile files -------------------------------------------------------------


def with_meta(path, good, text=None, **changes):
    """The good checkpoint with another meta; `...` removes an entry."""
    content = members(good[0])
    meta = json.loads(np.load(io.BytesIO(content["meta.npy"])).tobytes()) | changes
    meta = {key: value for key, value in meta.items() if value is not ...}
    text = json.dumps(meta) if text is None else text
    data = text.encode() if isinstance(text, str) else text
    return pack(path, content | {"meta.npy": npy(np.frombuffer(data, np.uint8))})


def read_or_refuse(path, expected):
    """Returns whether the file was refused; if not, it must say what the undamaged one says."""
    begin = time.perf_counter()
    try:
        meta, arrays = read_checkpoint(path)
    except ValueError as error:
        assert str(path) in str(error)
        return True
    finally:
        assert time.perf_counter() - begin < 1
    assert meta == expected[0]
    assert_same(arrays, expected[1])
    return False


def test_crafting_by_itself_is_harmless(path, good):
    """Else the refusals below could have another reason than the one that is meant."""
    with_meta(path, good)
    assert not read_or_refuse(path, read_checkpoint(good[0]))
    assert_taken(path, good)


def assert_taken(path, good):
    assert_loaded(load_model(path), good[1])
    assert load_checkpoint(path, *trained(steps=0, seed=1)) == PROGRESS


def test_truncated(path, good):
    content = good[0].read_bytes()
    directory = content.index(b"PK\x01\x02")
    lengths = {*range(0, len(content), 97), *range(directory - 40, directory + 120)}
    for length in sorted(lengths | set(range(len(content) - 100, len(content)))):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("where", ["anywhere", "directory", "first header", "names", "end"])
def test_a_flipped_byte(path, good, where):
    """Several at once are among the mutants of test_files.py."""
    content = good[0].read_bytes()
    expected, rng = read_checkpoint(good[0]), random.Random(where)
    size, directory = len(content), content.index(b"PK\x01\x02")
    places = {
        "anywhere": [rng.randrange(size) for _ in range(200)],
        "directory": [rng.randrange(directory, size) for _ in range(200)],
        "first header": range(200), "names": range(directory, directory + 160),
        "end": range(size - 100, size),
    }[where]  # fmt: skip
    refused = 0
    for place in places:
        for flip in {0xFF, 1 << rng.randrange(8)}:
            damaged = bytearray(content)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            refused += read_or_refuse(path, expected)
    assert refused > len(places)


def test_other_archives(path, good):
    """Other files are among those of test_pretrained.py."""
    np.savez(path, a=np.zeros(3, np.float32))
    assert_refused(path, match="checkpoint")
    np.savez(path, meta=np.frombuffer(b'{"format": "other", "version": 1}', np.uint8))
    assert_refused(path, match="minimixer")
    with_meta(path, good, version=2)
    assert_refused(path, match="version 2, this minimixer reads version 1")


class Bomb:
    def __reduce__(self):
        return (os.mkdir, ("unpickled",))


def test_nothing_is_ever_unpickled(tmp_path, good, monkeypatch):
    monkeypatch.chdir(tmp_path)
    content = members(good[0])
    array = np.array([Bomb()], dtype=object)
    files = [
        pack(tmp_path / "a.npz", content | {"weights/head.bias.npy": npy(array)}),
        pack(tmp_path / "b.npz", content | {"meta.npy": npy(array)}),
        pack(tmp_path / "c.npz", content | {"meta.npy": pickle.dumps(Bomb())}),
        tmp_path / "d.npz",
    ]
    files[3].write_bytes(pickle.dumps(Bomb()))

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **options: pytest.fail("unpickled"))
    for path in files:
        assert_refused(path)
    assert not (tmp_path / "unpickled").exists()
    assert_taken(good[0], good)


BAD_TEXTS = {
    "empty": "", "open": "{", "null": "null", "number": "5", "string": '"x"', "list": "[]",
    "list of names": '["format", "version"]', "zero byte": "\x00", "not UTF-8": b"\xff\xfe\x00",
    "nested lists": "[" * 100_000, "nested objects": '{"a":' * 100_000,
    "long number": f'{{"format": {"1" * 5000}}}',
    "format alone": '{"format": "minimixer checkpoint"}',
    "format in a list": '{"format": ["minimixer checkpoint"]}',
    "twice": '{"format": "minimixer checkpoint", "format": "minimixer checkpoint", "version": 1}',
    "deep within": '{"format": "minimixer checkpoint", "progress": ' + "[" * 200_000,
    "format and version": '{"format": "minimixer checkpoint", "version": 1}',
}  # fmt: skip


def config(**changes):
    config = json.loads(json.dumps(make_model().config)) | changes
    return {"config": {key: value for key, value in config.items() if value is not ...}}


SIZES = ("patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim",
         "in_channels", "num_classes", "image_size")  # fmt: skip
BAD_SIZES = (10**12, 10**9, 10**30, 7.5, 2.0, "8", True, 0, -8, None, [], [8, 8], {}, float("nan"))
BAD_META = {
    **{f"text {kind}": {"text": text} for kind, text in BAD_TEXTS.items()},
    **{f"{size} {value if type(value) is not int else f'{value:.0e}'}": config(**{size: value})
       for size in SIZES for value in BAD_SIZES if size != "image_size" or value != [8, 8]},
    "image_size [1e9, 1e9]": config(image_size=[10**9, 10**9], patch_size=1),
    "image_size [6, 4, 1]": config(image_size=[6, 4, 1]),
    "image_size nested": config(image_size=[[6], [4]]),
    "image_size floats": config(image_size=[6.0, 4.0]),
    "image_size 5 by 4": config(image_size=[5, 4]),
    "all large": config(image_size=10**9, patch_size=1, num_blocks=10**12, hidden_dim=10**12),
    **{f"stochastic_depth {value}": config(stochastic_depth=value)
       for value in (1, -0.1, float("nan"), "x", None, [0.1], 10**400)},
    **{f"approximate {value}": config(approximate=value) for value in ("sine", None, 1, ["tanh"])},
    **{f"config {str(value)[:9]}": {"config": value}
       for value in (..., None, 5, [], [["image_size", 4]], "image_size", {})},
    **{f"config without {size}": config(**{size: ...}) for size in SIZES[:5]},
    **{f"config with {name}": config(**{name: 1})
       for name in ("more", "mean", "self", "seed", "dtype", "", "\x1b[2J")},
    **{f"{name} {str(value)[:9]}": {name: value}
       for name in ("mean", "std") for value in (
           ..., None, [0.5, 0.5], [[0.5]] * 4, "x", {}, float("nan"), 10**400,
           [0.5, 0.5, float("inf")], ["a", "b", "c"], [None, 0, 0])},
    "std 0": {"std": [0.5, 0.0, 0.5]},
    "std negative": {"std": -0.5},
    "std of text": {"std": ["", "", ""]},
    **{f"class_names {str(value)[:12]}": {"class_names": value}
       for value in (..., ["a", "b"], ["a"] * 4, [], 5, True, {"a": 1}, "abc", [1, 2, 3],
                     ["a", "b", None], [["a"], "b", "c"], {"a": 1, "b": 2, "c": 3})},
    **{f"arrays {str(value)[:9]}": {"arrays": value}
       for value in (..., None, [], 5, "x", [5], {}, [["weights/head.bias"]])},
    **{f"loss_scale {value}": {"loss_scale": value}
       for value in (None, [], 5, [1.0], [1.0, 0.0, 0.0], [1, 0], [float("nan"), 0.0], ["1", 0.0],
                     [-1.0, 0.0], [2.0**49, 0.0], [1.0, -1.0], [1.0, 1e9], {})},
    **{f"dtype {value}": {"dtype": value}
       for value in (..., None, "float16", "int32", "object", "O", "cuda", 5, [], ["float32"], {},
                     "x" * 20, "float32,float32")},
    **{f"version {value}": {"version": value} for value in (..., 0, 2, "1", None, [1], 10**30)},
    **{f"format {value}": {"format": value} for value in (..., None, "other", [])},
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_META)
def test_bad_meta(path, good, kind):
    assert_refused(with_meta(path, good, **BAD_META[kind]))


def test_sizes_that_agree_by_accident(path, good):
    """12 num_blocks + 6 numbers in one array are not 12 num_blocks + 6 arrays."""
    for count, changes in (
        (18, {"num_blocks": 1, "hidden_dim": 1_000_000, "channels_mlp_dim": 4}),
        (240_006, {"num_blocks": 20_000}),
    ):
        with_meta(path, good, **config(**changes))
        meta = members(path)["meta.npy"]
        pack(path, {"meta.npy": meta, "weights/a.npy": npy(np.zeros(count, np.uint8))})
        assert_refused(path)


@pytest.mark.parametrize("name", ["head.bias", "blocks.1.token_mixing.w1", "stem.weight"])
def test_wrong_weights(path, good, name):
    content = members(good[0])
    key, bias = f"weights/{name}.npy", "weights/norm.bias.npy"
    value = np.load(io.BytesIO(content[key]))
    missing = {k: v for k, v in content.items() if k != key}
    assert_refused(pack(path, missing | {"weights/other.npy": content[key]}), match="missing|fit")
    shapes = (value.size, 1), (1, *value.shape), (1, 1, value.size)
    for wrong in (
        missing, content | {"weights/more.npy": content[key]},
        *[content | {key: npy(value.reshape(shape))} for shape in shapes],
        content | {key: npy(value[:-1])}, content | {key: content[bias], bias: content[key]},
    ):  # fmt: skip
        assert_refused(pack(path, wrong))


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights/head.bias", "optimizer/exp_avg_sq/stem.weight"])
def test_numbers_that_are_none_are_refused(path, good, name, value):
    content = members(good[0])
    array = np.load(io.BytesIO(content[f"{name}.npy"])).copy()
    array.reshape(-1)[-1] = value
    pack(path, content | {f"{name}.npy": npy(array)})
    assert_refused(path, match=f"{name} holds NaN or infinity")
    assert_changes_nothing(path, f"{name} holds NaN or infinity")


def test_the_same_in_another_form(path, good):
    """In another order of members and of bytes, deflated, in Fortran's order: the same meaning."""
    content, expected = members(good[0]), read_checkpoint(good[0])
    key = "weights/blocks.0.token_mixing.w1.npy"
    array = np.load(io.BytesIO(content[key]))
    for other in (array.astype(">f4"), np.asfortranarray(array)):
        changed = dict(reversed((content | {key: npy(other)}).items()))
        pack(path, changed, zipfile.ZIP_DEFLATED)
        assert npy(other) != content[key] and not read_or_refuse(path, expected)
    meta = json.loads(np.load(io.BytesIO(content["meta.npy"])).tobytes())
    spaced = json.dumps(meta, indent=3, sort_keys=True, ensure_ascii=False)
    assert not read_or_refuse(with_meta(path, good, spaced), expected)


@pytest.mark.parametrize("progress", [float("nan"), [float("inf")], 10**39, [[[]]] * 3])
def test_progress_comes_back(path, good, progress):
    save(path, *good[1:], progress)
    assert repr(read_checkpoint(path)[0]["progress"]) == repr(progress)


# ---- going on with what does not fit -------------------------------------------------------


def assert_changes_nothing(path, match=None, make=AdamW, **changes):
    """A model and its optimizer stay as they are."""
    model, optimizer = trained(steps=2, make=make, **{"seed": 1} | changes)
    before = everything(model, optimizer)
    assert_refused(path, lambda path: load_checkpoint(path, model, optimizer), match)
    assert_same(everything(model, optimizer), before)


@pytest.mark.parametrize("changes", [
    {"num_blocks": 3}, {"hidden_dim": 9}, {"tokens_mlp_dim": 6}, {"channels_mlp_dim": 8},
    {"approximate": "tanh"}, {"stochastic_depth": 0.2}, {"image_size": (4, 6)},
    {"num_classes": 4, "class_names": None}, {"num_blocks": 1, "hidden_dim": 4}, {"mean": 0.3},
    {"std": 0.9}, {"class_names": ["a", "b", "c"]}, {"dtype": "float64"}, {"norm": LikeLayerNorm},
], ids=lambda changes: " ".join(changes))  # fmt: skip
def test_another_model_is_named_and_changes_nothing(good, changes):
    """Other pixels, or rounded weights, would not be the same run either."""
    named = [name for name in changes if name != "class_names" or len(changes) == 1]
    assert_changes_nothing(good[0], ".*".join(["differs in", *named]), **changes)


@pytest.mark.parametrize("saved, loading, match", [
    (AdamW, SGD, "SGD"), (SGD, AdamW, "AdamW"), (Adam, AdamW, "AdamW"),
    (None, AdamW, "no state of AdamW"), (some_parameters, AdamW, "exp_avg"),
    (SGD, momentum, "set up in another way"),
])  # fmt: skip
def test_another_optimizer(path, saved, loading, match):
    save(path, *trained(steps=2, make=saved) if saved else [make_model()])
    assert_changes_nothing(path, match, loading)


BAD_STATES = {
    **{f"without {name}": {name: ...} for name in ("optimizer", "random", "progress", "config")},
    **{f"random {value}": {"random": value}
       for value in (None, 5, [], [7], [7, 0], [7, 0, 0, 0], ["7", 0, 0], [7, -1, 0], [7, 0.5, 0],
                     [7, 2**70, 0], [7, "x", 0], [None, 0, 0], [7, 0, float("nan")], {"a": 1})},
    **{f"optimizer {value}": {"optimizer": value}
       for value in (None, 5, [], "AdamW", {}, {"kind": "AdamW"}, {"step": 5}, {"kind": []})},
    **{f"step {value}": {"optimizer": {"kind": "AdamW", "step": value}}
       for value in (None, "x", -1, [], [5], 5.5, float("nan"), 10**400)},
    **{f"config {value}": {"config": value} for value in (None, [], 5, "x", {})},
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_STATES)
def test_bad_states_change_nothing(path, good, kind):
    assert_changes_nothing(with_meta(path, good, **BAD_STATES[kind]))


def test_wrong_arrays_change_nothing(path, good):
    content = members(good[0])
    for key in ("weights/head.bias.npy", "optimizer/exp_avg_sq/blocks.1.norm1.weight.npy"):
        assert_changes_nothing(pack(path, {k: v for k, v in content.items() if k != key}))
        value = np.load(io.BytesIO(content[key]))
        for wrong in (value[:-1], value[None], np.append(value, value)):
            assert_changes_nothing(pack(path, content | {key: npy(wrong)}))


# ---- models and layers of one's own --------------------------------------------------------


def named(name, kind, **changes):
    """The class by another name, as after an edit of the student's file."""
    return type(name, (kind,), changes)


@each_dtype
def test_a_norm_of_ones_own_comes_back_if_it_is_given(path, device, dtype):
    model, optimizer = trained(device, norm=RMSNorm, dtype=dtype)
    save(path, model, optimizer, 5)
    assert read_checkpoint(path)[0]["config"]["norm"] == "RMSNorm"
    loaded = Mixer.load(path, norm=RMSNorm)
    assert isinstance(loaded.blocks[1].norm2, RMSNorm)
    assert_loaded(loaded, model)
    other, its = trained(device, 0, norm=RMSNorm, seed=9, dtype=dtype)
    assert load_checkpoint(path, other, its) == 5
    for each in ((model, optimizer), (other, its)):
        train(*each, 5, 8)
    assert_same(everything(other, its), everything(model, optimizer))
    again = Mixer.from_pretrained(path, norm=RMSNorm, num_classes=5)
    assert isinstance(again.norm, RMSNorm) and again.head.weight.shape == (8, 5)


@pytest.mark.parametrize(
    "saved, given, match", [
        (RMSNorm, LayerNorm, "norm 'RMSNorm' is only a name: give the class"),
        (RMSNorm, named("Other", RMSNorm), "norm=Other was given, but the file says 'RMSNorm'"),
        (LayerNorm, RMSNorm, "norm=RMSNorm was given, but the file is of a model without one"),
        (LikeLayerNorm, LayerNorm, "norm 'LikeLayerNorm' is only a name"),
        (named("LayerNorm", RMSNorm), LayerNorm, "norm 'LayerNorm' is only a name"),
        (RMSNorm, "RMSNorm", "norm 'RMSNorm' is only a name"),
        (RMSNorm, named("RMSNorm", LayerNorm), r"blocks.0.norm1.bias is missing, not \(8,\)"),
        (LikeLayerNorm, named("LikeLayerNorm", RMSNorm), "blocks.0.norm1.bias is unexpected"),
    ], ids=str,
)  # fmt: skip
def test_another_norm_than_the_file_s_is_named(path, saved, given, match):
    make_model(norm=saved).save(path)
    for load in (Mixer.load, Mixer.from_pretrained):
        assert_refused(path, lambda path, load=load: load(path, norm=given), match)


def test_what_a_format_has_no_place_for_is_not_exported(path):
    for norm in (RMSNorm, LikeLayerNorm):
        for format in ("npz", "timm"):
            with pytest.raises(ValueError, match=f"{norm.__name__} has no place in the {format}"):
                make_model(norm=norm).export(path, format)
    assert not path.exists()
    model = make_model(mean=0.5, std=0.5, class_names=None, approximate="tanh", image_size=4)
    model.export(path, "npz")
    with pytest.raises(ValueError, match="for checkpoints of minimixer"):
        Mixer.from_pretrained(path, norm=RMSNorm)


class Network(Module):
    """All that can be saved and filled again."""

    def __init__(self, hidden=3, seed=0):
        self.config = {"hidden": hidden}
        self.first, self.second = Linear(4, hidden), Linear(hidden, 2)
        self.drop = Dropout(0.5)
        self.mean = lambda: "no setting of it"
        if seed is not None:
            self.initialize(seed)

    def forward(self, x):
        return self.second(self.drop(self.first(x)))


class Complete(Network):
    """And made again from a file."""

    @staticmethod
    def expected_shapes(config):
        hidden = config["hidden"]
        yield from [("first.weight", (4, hidden)), ("first.bias", (hidden,))]
        yield from [("second.weight", (hidden, 2)), ("second.bias", (2,))]


class Wide(Mixer):
    """A Mixer with something of its own."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.more = Linear(self.config["hidden_dim"], 2)

    @staticmethod
    def expected_shapes(config):
        yield from Mixer.expected_shapes(config)
        yield from [("more.weight", (config["hidden_dim"], 2)), ("more.bias", (2,))]


def steps(model, optimizer, count):
    x = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
    for _ in range(count):
        F.cross_entropy(model(to_device(x, model.first.weight.device)), [0, 1] * 3).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [Network, Complete])
def test_any_module_goes_on_as_if_it_had_not_stopped(path, device, kind):
    model, other = kind(seed=1).to(device), kind(seed=2).to(device)
    optimizer, its = AdamW(model.parameters(), lr=0.1), AdamW(other.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    save(path, model, optimizer, PROGRESS)
    before = {name: value.copy() for name, value in model.state_dict().items()}
    steps(model, optimizer, 3)
    assert load_checkpoint(path, other, its) == PROGRESS
    assert_same(other.state_dict(), before)
    steps(other, its, 3)  # with the same elements dropped
    assert_same(other.state_dict(), model.state_dict())
    if kind is Complete:
        loaded = load_model(path, kind=Complete)
        assert type(loaded) is Complete and not loaded.training
        assert_same(loaded.state_dict(), before)
    else:
        assert_refused(path, lambda path: load_model(path, kind), "has no expected_shapes")
    assert_refused(path, match=f"it holds a {kind.__name__}")
    assert_refused(path, lambda path: load_model(path, kind=named("Net", Complete)), "it holds a")
    for wrong in (kind(hidden=4), named("Net", kind)()):
        with pytest.raises(ValueError, match=r"differs in (hidden|kind)"):
            load_checkpoint(path, wrong.to(device), AdamW(wrong.parameters()))


def test_a_subclass_of_mixer_is_a_kind_of_its_own(path):
    model = redraw(Wide(**make_model().config, mean=0.25, std=0.75, class_names=["a", "b", "c"]))
    model.eval().save(path)
    assert_loaded(Wide.load(path), model)
    assert_refused(path, Mixer.load, "it holds a Wide")
    make_model().save(path)
    assert_refused(path, Wide.load, "it holds a Mixer")


KINDS = {f"kind {ascii(value)[:20]}": {"kind": value} for value in (
    None, 5, [], {}, "", "Other", "../Mixer", "os.system", "x" * 999, "\x1b[2J")}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_that_are_none(path, good, kind):
    assert_refused(with_meta(path, good, **KINDS[kind]))
    assert_changes_nothing(path)
    assert_taken(with_meta(path, good, kind=...), good)  # files without one are a Mixer's


def test_names_of_arrays_can_be_printed(path, good):
    """Or a message that repeats them clears the terminal. They are not written either."""
    content = members(good[0])
    arrays = sorted(["weights/\x1b[2J", *[k[:-4] for k in content if k != "meta.npy"]])
    content = members(with_meta(path, good, arrays=arrays))
    pack(path, content | {"weights/\x1b[2J.npy": content["weights/head.bias.npy"]})
    assert_refused(path, match="arrays is not what minimixer writes")
    model = Network()
    vars(model)["\x1b[2J"] = Linear(2, 2)
    with pytest.raises(ValueError, match="not saved: arrays is not what minimixer writes"):
        save(path, model)
    with pytest.raises(ValueError, match="Dropout has no weights"):
        save(path, Dropout(0.5))
    for kind in ("Complete", Complete.__init__, 5):
        with pytest.raises(TypeError, match="load_model: kind must be a class, got"):
            load_model(path, kind=kind)


def test_what_a_hostile_file_claims_is_not_made(path):
    good = path.with_name("good.npz")
    save(good, Complete())
    sizes = (10**12, 10**30, -1, 2.5, "x", None, [3], True)
    for given in (*[{"hidden": hidden} for hidden in sizes], {}, {"hidden": 3, "more": 1},
                  {"hidden": 3, "seed": 0}, {"self": 1}):  # fmt: skip
        with_meta(path, [good], config=given)
        assert_refused(path, lambda path: load_model(path, kind=Complete))
    make_model(norm=RMSNorm).save(good)
    known = read_checkpoint(good)[0]["config"]
    for changes in ({"norm": 5}, {"norm": None}, {"norm": ["RMSNorm"]}, {"norm": "os.system"},
                    {"hidden_dim": 10**12}, {"num_blocks": 10**12}):  # fmt: skip
        with_meta(path, [good], config=known | changes)
        for load in (Mixer.load, lambda path: Mixer.load(path, norm=RMSNorm)):
            assert_refused(path, load)


@pytest.mark.parametrize("change, said", [
    (lambda model: setattr(model.blocks[1], "norm1", RMSNorm(8)), "blocks.1.norm1.bias is missing"),
    (lambda model: setattr(model, "head", Linear(8, 5)), "replaced"),
    (lambda model: model.blocks.pop(), "replaced"),
    (lambda model: setattr(model, "class_names", [1, 2, 3]), "class.names"),
])  # fmt: skip
def test_a_model_that_could_not_be_loaded_is_not_saved(tmp_path, change, said):
    model = make_model()
    change(model)
    for write in (model.save, lambda path: model.export(path, "npz")):
        with pytest.raises((ValueError, UserWarning), match=said):  # export warns of names
            write(tmp_path / "out.npz")
    assert not os.listdir(tmp_path)
    assert model.to("float64").stem.weight.dtype == np.float64  # it moves all the same
