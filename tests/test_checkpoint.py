"""Checkpoints: what is saved comes back bit for bit; what is damaged or hostile is refused."""

import doctest
import errno
import io
import json
import os
import pickle
import random
import resource
import struct
import subprocess
import sys
import time
import tracemalloc
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from minimixer.data import Batches

from minimixer import (
    GELU,
    SGD,
    Adam,
    AdamW,
    Dropout,
    LayerNorm,
    Linear,
    Mixer,
    Module,
    Parameter,
    Tensor,
    schedule,
)
from minimixer import functional as F
from minimixer.backend import to_numpy
from minimixer.training import checkpoint
from minimixer.training.checkpoint import (
    load_checkpoint,
    load_model,
    read_checkpoint,
    save_checkpoint,
)

PROGRESS = {"epoch": 3, "names": ["näh", None], "loss": 0.1 + 0.2, "big": 2**70, "deep": [[{}]]}


def make_model(**changes):
    config = dict(
        image_size=(6, 4), patch_size=2, in_channels=3, num_classes=3, num_blocks=2, hidden_dim=8,
        tokens_mlp_dim=5, channels_mlp_dim=16, stochastic_depth=0.3, approximate="none",
        mean=(0.1, 0.2, 0.7), std=(1 / 3, 0.5, 1.0), class_names=["cat", "dog", "ünit"], seed=7,
    )  # fmt: skip
    return Mixer(**config | changes)


def redraw(model, seed=0):
    """Every parameter at random, the zero head included."""
    rng = np.random.default_rng(seed)
    for parameter in model.parameters():
        parameter.data = rng.normal(size=parameter.shape)
    return model


def make_images(n=40):
    rng = np.random.default_rng(1)
    return rng.integers(0, 256, (n, 6, 4, 3), dtype=np.uint8), rng.integers(0, 3, n)


def train(model, optimizer, start, stop):
    batches = Batches(*make_images(), batch_size=16, seed=5, max_shift=1)
    model.train()
    for step in range(start, stop):
        images, labels = batches.batch(*divmod(step, len(batches)))
        F.cross_entropy(model(images), labels).backward()
        optimizer.lr_factor = schedule(step, 20, 4)
        optimizer.step()
        optimizer.zero_grad()


def trained(device="cpu", steps=5, optimizer_class=AdamW, **changes):
    model = make_model(**changes).to(device)
    optimizer = optimizer_class(model.parameters(), lr=0.01, weight_decay=0.05)
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


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A checkpoint of a trained model, not to be written; with its content."""
    path = tmp_path_factory.mktemp("good") / "checkpoint.npz"
    model, optimizer = trained()
    save_checkpoint(path, model, optimizer, PROGRESS)
    return path, model, optimizer


def test_worked_example():
    result = doctest.testmod(checkpoint)
    assert result.attempted >= 5 and not result.failed


# ---- what is saved comes back --------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_round_trip(tmp_path, device, dtype):
    path = tmp_path / "checkpoint.npz"
    model, optimizer = trained(device, dtype=dtype)
    before = everything(model, optimizer)
    assert any(before["exp_avg/0"].ravel()) and before["counters"].any()  # there is something
    save_checkpoint(str(path), model, optimizer, PROGRESS)
    assert_same(everything(model, optimizer), before)
    assert os.listdir(tmp_path) == ["checkpoint.npz"]

    other = redraw(make_model(seed=99, dtype=dtype).to(device))
    other_optimizer = AdamW(other.parameters(), lr=0.01, weight_decay=0.05)
    assert load_checkpoint(str(path), other, other_optimizer) == PROGRESS
    assert_same(everything(other, other_optimizer), before)

    loaded = Mixer.load(path)
    wanted = everything(model) | {"device": "cpu"}
    for name in ("seed", "counters"):  # these belong to training
        wanted.pop(name)
    assert_same({k: v for k, v in everything(loaded).items() if k in wanted}, wanted)
    assert not any(module.training for _, module in loaded.named_modules())


def test_going_on_is_as_if_it_had_not_stopped(tmp_path, device):
    path = tmp_path / "checkpoint.npz"
    straight = trained(device, steps=11)
    model, optimizer = trained(device, steps=4)
    for stop in (7, 8, 11):  # stopped three times, in the middle of epochs and between them
        save_checkpoint(path, model, optimizer, stop)
        model = redraw(make_model(seed=stop).to(device))
        optimizer = AdamW(model.parameters(), lr=0.01, weight_decay=0.05)
        start = {7: 4, 8: 7, 11: 8}[stop]
        assert load_checkpoint(path, model, optimizer) == stop
        train(model, optimizer, start, stop)
    assert_same(everything(model, optimizer), everything(*straight))
    fewer = everything(*trained(device, steps=10))
    assert (fewer["weights/head.weight"] != straight[0].state_dict()["head.weight"]).any()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_file_is_all_that_a_fresh_process_needs(tmp_path, device, dtype):
    model = redraw(make_model(dtype=dtype)).to(device)
    save_checkpoint(tmp_path / "checkpoint.npz", model)
    images, _ = make_images()
    np.save(tmp_path / "images.npy", images)
    code = """if True:
        import numpy as np
        from minimixer import Mixer
        model = Mixer.load("checkpoint.npz")
        assert not model.training and model.device == "cpu", model.device
        np.save("logits.npy", model(np.load("images.npy")).data)
    """
    path = os.pathsep.join([str(Path(checkpoint.__file__).parents[1]), *sys.path])
    environment = {**os.environ, "PYTHONPATH": path}
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True)
    logits = np.load(tmp_path / "logits.npy")
    expected = model.to("cpu").eval()(images).data
    assert logits.dtype == dtype and np.ptp(logits) > 0.1
    assert logits.tobytes() == expected.tobytes()


def test_a_model_of_the_gpu_is_loaded_on_the_cpu_and_back(tmp_path, device):
    path = tmp_path / "checkpoint.npz"
    model, optimizer = trained(device)
    save_checkpoint(path, model, optimizer)
    for there in {"cpu", device}:
        other = make_model(seed=1).to(there)
        other_optimizer = AdamW(other.parameters())
        load_checkpoint(path, other, other_optimizer)
        assert_same(
            everything(other, other_optimizer),
            everything(model, optimizer) | {"device": other.device},
        )


@pytest.mark.parametrize(
    "make",
    [
        lambda p: SGD(p, 0.1), lambda p: SGD(p, 0.1, momentum=0.9), Adam, AdamW,
        lambda p: AdamW(p[::2]),
    ],
    ids=["SGD", "momentum", "Adam", "AdamW", "some parameters"],
)  # fmt: skip
def test_every_optimizer(tmp_path, make):
    path = tmp_path / "checkpoint.npz"
    model = make_model()
    optimizer = make(model.parameters())
    train(model, optimizer, 0, 3)
    save_checkpoint(path, model, optimizer)
    other = make_model(seed=1)
    other_optimizer = make(other.parameters())
    assert load_checkpoint(path, other, other_optimizer) is None
    assert_same(everything(other, other_optimizer), everything(model, optimizer))


def test_numpy_integers_as_sizes_and_seed(tmp_path):
    """num_classes=labels.max() + 1 is an np.int64; so is any size out of a shape computation."""
    labels = np.array([0, 2, 1])
    model = make_model(
        num_classes=labels.max() + 1, image_size=(np.int64(6), np.int32(4)),
        hidden_dim=np.int64(8), seed=np.int64(3), stochastic_depth=np.float32(0.25),
    )  # fmt: skip
    save_checkpoint(tmp_path / "checkpoint.npz", model)
    assert_same(
        {"x": Mixer.load(tmp_path / "checkpoint.npz").state_dict()["stem.weight"]},
        {"x": model.state_dict()["stem.weight"]},
    )


# ---- what is on disk stays whole -----------------------------------------------------------


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_broken_weights_are_not_written(tmp_path, device, value):
    path = tmp_path / "checkpoint.npz"
    model, optimizer = trained(device)
    save_checkpoint(path, model, optimizer)
    before = path.read_bytes()
    for name, parameter in model.named_parameters():
        broken = to_numpy(parameter.data).copy()
        whole = broken.copy()
        broken.reshape(-1)[-1] = value
        parameter.data = broken
        with pytest.raises(ValueError, match=name):
            save_checkpoint(path, model, optimizer)
        parameter.data = whole
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.npz"]


@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_disk_that_refuses(tmp_path, good, monkeypatch, call):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, *good[1:])
    before = path.read_bytes()

    def refuse(*arguments):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, call, refuse)
    with pytest.raises(OSError, match="No space"):
        save_checkpoint(path, make_model())
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.npz"]


@pytest.mark.parametrize("room", [0, 100, 4096, 10_000, "all but one byte"])
def test_a_disk_that_is_full(tmp_path, good, room):
    """The limit on the size of a file makes the kernel refuse the write, as a full disk does."""
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, *good[1:])
    before = path.read_bytes()
    room = len(before) - 1 if isinstance(room, str) else room
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        with pytest.raises(OSError, match="too large"):
            save_checkpoint(path, *good[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.npz"]


def test_what_json_cannot_hold_is_not_written(tmp_path, good):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, *good[1:])
    before = path.read_bytes()
    with pytest.raises(TypeError):
        save_checkpoint(path, *good[1:], {"rng": object()})
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["checkpoint.npz"]


def test_flushed_to_disk_before_it_takes_the_name(tmp_path, good, monkeypatch):
    path = tmp_path / "checkpoint.npz"
    calls, replace = [], os.replace

    def fsync(descriptor):
        calls.append(("fsync", os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size))

    def rename(source, target):
        calls.append(("rename", os.stat(source).st_ino, os.stat(source).st_size))
        assert os.path.dirname(source) == os.path.dirname(target) and Path(target) == path
        replace(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "replace", rename)
    save_checkpoint(path, *good[1:])
    of_the_file = [call for call in calls if call[1] == path.stat().st_ino]
    size = path.stat().st_size  # all of it was flushed
    assert [(call[0], call[2]) for call in of_the_file] == [("fsync", size), ("rename", size)]


# ---- damaged and hostile files -------------------------------------------------------------


def assert_refused(path, call=load_model, match=None, seconds=1.0, megabytes=50):
    """ValueError that names the file, at once, and without memory for what is only claimed."""
    tracemalloc.start()
    begin = time.perf_counter()
    try:
        with pytest.raises(ValueError, match=match) as caught:
            call(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert str(path) in str(caught.value) and "\x1b" not in str(caught.value)
    assert time.perf_counter() - begin < seconds and peak < megabytes << 20


def members(path):
    with zipfile.ZipFile(path) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def pack(path, content, compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return path


def npy(array):
    file = io.BytesIO()
    np.save(file, array, allow_pickle=array.dtype == object)
    return file.getvalue()


def npy_with(header, data=b"", version=(1, 0), length=None):
    header = header.encode("latin1") if isinstance(header, str) else header
    length = len(header) if length is None else length
    size = struct.pack("<H" if version[0] == 1 else "<I", length)
    return b"\x93NUMPY" + bytes(version) + size + header + data


def with_meta(path, good, text=None, **changes):
    """The good checkpoint with another meta; `...` removes an entry."""
    content = members(good[0])
    meta = json.loads(np.load(io.BytesIO(content["meta.npy"])).tobytes()) | changes
    meta = {key: value for key, value in meta.items() if value is not ...}
    text = json.dumps(meta) if text is None else text
    content["meta.npy"] = npy_of_bytes(text.encode() if isinstance(text, str) else text)
    return pack(path, content)


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


def test_crafting_by_itself_is_harmless(tmp_path, good):
    """Else the refusals below could have another reason than the one that is meant."""
    path = with_meta(tmp_path / "checkpoint.npz", good)
    assert not read_or_refuse(path, read_checkpoint(good[0]))
    assert_same(everything(load_model(path))["config"], everything(good[1])["config"])
    assert_unchanged_but_loaded(path)


def assert_unchanged_but_loaded(path):
    model = make_model(seed=1)
    assert load_checkpoint(path, model, AdamW(model.parameters())) == PROGRESS


def test_truncated(tmp_path, good):
    path, content = tmp_path / "checkpoint.npz", good[0].read_bytes()
    directory = content.index(b"PK\x01\x02")
    lengths = {*range(0, len(content), 97), *range(directory - 40, directory + 120)}
    lengths |= set(range(len(content) - 100, len(content)))
    for length in sorted(lengths):
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match="checkpoint"):
            read_checkpoint(path)


@pytest.mark.parametrize("where", ["anywhere", "directory", "first header", "names", "end"])
def test_a_flipped_byte(tmp_path, good, where):
    path, content = tmp_path / "checkpoint.npz", good[0].read_bytes()
    expected = read_checkpoint(good[0])
    rng = random.Random(where)
    directory = content.index(b"PK\x01\x02")
    places = {
        "anywhere": [rng.randrange(len(content)) for _ in range(200)],
        "directory": [rng.randrange(directory, len(content)) for _ in range(200)],
        "first header": range(200),
        "names": range(directory, directory + 160),
        "end": range(len(content) - 100, len(content)),
    }[where]
    refused = 0
    for place in places:
        for flip in {0xFF, 1 << rng.randrange(8)}:
            damaged = bytearray(content)
            damaged[place] ^= flip
            path.write_bytes(damaged)
            refused += read_or_refuse(path, expected)
    assert refused > len(places)


@pytest.mark.parametrize("seed", range(3))
def test_several_damaged_bytes(tmp_path, good, seed):
    path, content = tmp_path / "checkpoint.npz", good[0].read_bytes()
    directory, rng = content.index(b"PK\x01\x02"), random.Random(seed)
    for _ in range(200):
        damaged = bytearray(content)
        for _ in range(rng.choice([2, 4, 30])):
            damaged[rng.randrange(directory, len(content))] = rng.choice(
                [0, 255, rng.randrange(256)]
            )
        path.write_bytes(damaged)
        try:
            meta, arrays = read_checkpoint(path)
        except ValueError:
            continue
        assert meta and set(arrays) <= set(read_checkpoint(good[0])[1])


@pytest.mark.parametrize(
    "content",
    [b"", b"PK", b"PK\x05\x06" + bytes(18), b"\x93NUMPY\x01\x00", bytes(10_000), b"\x80\x04N."],
    ids=["empty", "PK", "zip without members", "npy", "zeros", "pickle"],
)
def test_other_files(tmp_path, content):
    path = tmp_path / "checkpoint.npz"
    path.write_bytes(content)
    assert_refused(path, read_checkpoint, "checkpoint")


def test_other_archives(tmp_path):
    path = tmp_path / "other.npz"
    np.savez(path, a=np.zeros(3, np.float32))
    assert_refused(path, match="checkpoint")
    np.savez(path, meta=np.frombuffer(b'{"format": "other", "version": 1}', np.uint8))
    assert_refused(path, match="minimixer")
    with pytest.raises(FileNotFoundError):
        load_model(tmp_path / "none.npz")


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

    def refuse(*arguments, **options):
        pytest.fail("unpickled")

    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, refuse)
    for path in files:
        assert_refused(path)
    assert not (tmp_path / "unpickled").exists()
    assert_unchanged_but_loaded(good[0])
    load_model(good[0])


# The zip itself.


@pytest.mark.parametrize("method", [zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_compressed_members_and_bombs(tmp_path, good, method):
    path = pack(tmp_path / "checkpoint.npz", members(good[0]), method)
    if method == zipfile.ZIP_DEFLATED:
        assert not read_or_refuse(path, read_checkpoint(good[0]))
    else:
        assert_refused(path, match="packed in another way than stored or deflated")
    data = npy_with(f"{{'descr': '<f4', 'fortran_order': False, 'shape': ({60 << 18},)}}\n")
    path = pack(path, {"weights/a.npy": data + bytes(60 << 20)}, method)
    assert path.stat().st_size < 1 << 20
    assert_refused(path, megabytes=4)


def directory_entries(content):
    """Where each entry of the directory begins, in an archive without a comment."""
    start = content.index(b"PK\x01\x02")
    while content[start : start + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<HHH", content, start + 28)
        yield start
        start += 46 + sum(lengths)


def end_record(entries, size, start):
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, entries, entries, size, start, 0)


@pytest.mark.parametrize("field", ["both sizes", "size", "packed size", "offset"])
@pytest.mark.parametrize("claim", [10**6, 2**31 - 2, 2**32 - 2])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_directory_that_lies(tmp_path, good, field, claim, which):
    """Members that claim to be larger than the file, or to begin elsewhere."""
    path = pack(tmp_path / "checkpoint.npz", members(good[0]))
    content = bytearray(path.read_bytes())
    entry = list(directory_entries(bytes(content)))[which]
    for place in {"both sizes": [20, 24], "size": [24], "packed size": [20], "offset": [42]}[field]:
        struct.pack_into("<I", content, entry + place, claim)
    path.write_bytes(content)
    assert_refused(path)


@pytest.mark.parametrize("claim", [10**6, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field", ["size", "packed size", "offset"])
def test_a_directory_that_lies_in_64_bits(tmp_path, field, claim):
    """The zip64 extension: 8-byte fields."""
    path = pack(tmp_path / "checkpoint.npz", {"meta.npy": npy(np.zeros(3, np.uint8))})
    content = path.read_bytes()
    (start,) = directory_entries(content)
    entry = bytearray(content[start : content.index(b"PK\x05\x06")])
    struct.pack_into("<I", entry, {"size": 24, "packed size": 20, "offset": 42}[field], 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, 12)
    entry += struct.pack("<HHQ", 1, 8, claim)
    path.write_bytes(content[:start] + entry + end_record(1, len(entry), start))
    assert_refused(path)


def test_overlapping_members(tmp_path, good):
    """A thousand entries of the directory that all mean the same megabyte."""
    content = members(good[0]) | {"weights/more.npy": npy(np.zeros(1 << 20, np.uint8))}
    path = pack(tmp_path / "checkpoint.npz", content)
    content = path.read_bytes()
    entries = list(directory_entries(content))
    end = content.index(b"PK\x05\x06")
    directory = content[entries[0] : end] + content[entries[-1] : end] * 1000
    end = end_record(len(entries) + 1000, len(directory), entries[0])
    path.write_bytes(content[: entries[0]] + directory + end)
    assert_refused(path)


def test_members_within_members(tmp_path, good):
    """An entry that begins within the data of another one."""
    inner = pack(tmp_path / "inner.zip", {"weights/inner.npy": npy(np.zeros(9, np.uint8))})
    inner = inner.read_bytes()
    whole = pack(tmp_path / "checkpoint.npz", members(good[0]) | {"outer.npy": npy_of_bytes(inner)})
    content = whole.read_bytes()
    (entry,) = directory_entries(inner)
    entry = bytearray(inner[entry : inner.index(b"PK\x05\x06")])
    struct.pack_into("<I", entry, 42, content.index(b"PK\x03\x04", content.index(b"outer.npy")))
    entries = list(directory_entries(content))
    directory = content[entries[0] : content.rindex(b"PK\x05\x06")] + entry
    end = end_record(len(entries) + 1, len(directory), entries[0])
    whole.write_bytes(content[: entries[0]] + directory + end)
    assert_refused(whole)


def npy_of_bytes(data):
    return npy(np.frombuffer(data, dtype=np.uint8))


@pytest.mark.parametrize("name", ["meta.npy", "weights/head.bias.npy", "meta", "weights/head.bias"])
def test_names_that_come_twice(tmp_path, good, name):
    """Which of the two would count? With and without .npy they are the same name."""
    path = tmp_path / "checkpoint.npz"
    content = members(good[0])
    with zipfile.ZipFile(path, "w") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what is done here on purpose
        for other, data in content.items():
            archive.writestr(other, data)
        archive.writestr(name, content[name.removesuffix(".npy") + ".npy"])
    assert_refused(path)


@pytest.mark.parametrize("name", ["../evil.npy", "/tmp/evil.npy", "weights/../../evil.npy", "/"])
def test_names_that_point_elsewhere(tmp_path, good, name, monkeypatch):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    path = pack(below / "checkpoint.npz", members(good[0]) | {name: npy(np.zeros(3, np.uint8))})
    before = sorted(tmp_path.rglob("*"))
    if name.startswith("weights/"):
        assert_refused(path)
    else:
        try:
            load_model(path)
        except ValueError as error:
            assert str(path) in str(error)
    assert sorted(tmp_path.rglob("*")) == before


# Arrays.


def header(shape, descr="'<f4'", order="False"):
    return f"{{'descr': {descr}, 'fortran_order': {order}, 'shape': {shape}, }}\n"


BAD_ARRAYS = {
    "2^62 elements": npy_with(header(f"({1 << 62},)"), bytes(12)),
    "10^30 elements": npy_with(header("(10**15, )".replace("10**15", str(10**30))), bytes(12)),
    "10^30 times 0": npy_with(header(f"({10**30}, 0)")),
    "2^62 times 0": npy_with(header(f"({1 << 62}, 0)")),
    "2^62 times 2^62 times 0": npy_with(header(f"({1 << 62}, {1 << 62}, 0)")),
    "-1": npy_with(header("(-1,)"), bytes(12)),
    "-3": npy_with(header("(-3,)"), bytes(12)),
    "-1 times -3": npy_with(header("(-1, -3)"), bytes(12)),
    "-1 times 0": npy_with(header("(-1, 0)")),
    "65 dimensions": npy_with(header("(" + "1, " * 64 + "3)"), bytes(12)),
    "too short": npy_with(header("(3,)"), bytes(11)),
    "too long": npy_with(header("(3,)"), bytes(13)),
    "other shape": npy_with(header("(4,)"), bytes(16)),
    "2-dimensional": npy_with(header("(3, 1)"), bytes(12)),
    "0-dimensional": npy_with(header("()"), bytes(4)),
    "empty": npy_with(header("(0,)")),
    "shape is a list": npy_with(header("[3]"), bytes(12)),
    "shape of strings": npy_with(header("('3',)"), bytes(12)),
    "shape of floats": npy_with(header("(3.0,)"), bytes(12)),
    "shape of lists": npy_with(header("([3],)"), bytes(12)),
    "shape is None": npy_with(header("None"), bytes(12)),
    "object": npy_with(header("(3,)", "'|O'"), bytes(24)),
    "strings": npy_with(header("(3,)", "'<U1'"), bytes(12)),
    "huge strings": npy_with(header("(3,)", "'<U999999999'"), bytes(12)),
    "dates": npy_with(header("(3,)", "'<M8[ns]'"), bytes(24)),
    "int64": npy_with(header("(3,)", "'<i8'"), bytes(24)),
    "float16": npy_with(header("(3,)", "'<f2'"), bytes(6)),
    "complex": npy_with(header("(3,)", "'<c8'"), bytes(24)),
    "fields": npy_with(header("(3,)", "[('a', '<f4')]"), bytes(12)),
    "fields with objects": npy_with(header("(3,)", "[('a', '|O')]"), bytes(24)),
    "subarrays": npy_with(header("(1,)", "('<f4', (3,))"), bytes(12)),
    "huge subarrays": npy_with(header("(1,)", f"('<f4', ({1 << 40},))"), bytes(12)),
    "no such type": npy_with(header("(3,)", "'<f5'"), bytes(12)),
    "type is None": npy_with(header("(3,)", "None"), bytes(24)),
    "type is a number": npy_with(header("(3,)", "17"), bytes(24)),
    "type is a dict": npy_with(header("(3,)", "{'names': 5}"), bytes(24)),
    "type is an empty tuple": npy_with(header("(3,)", "()"), bytes(24)),
    "type is an odd list": npy_with(header("(3,)", "[('a',)]"), bytes(24)),
    "Fortran order, too short": npy_with(header("(3, 2)", order="True"), bytes(12)),
    "order is a word": npy_with(header("(3,)", order="'no'"), bytes(12)),
    "version 2": npy_with(header("(3,)"), bytes(12), version=(2, 0)),
    "version 3": npy_with(header("(3,)"), bytes(12), version=(3, 0)),
    "version 9": npy_with(header("(3,)"), bytes(12), version=(9, 9)),
    "no header": b"\x93NUMPY\x01\x00",
    "half a length": b"\x93NUMPY\x01\x00v",
    "nothing": b"",
    "other magic": b"\x93NUMPX" + npy(np.zeros(3, np.float32))[6:],
    "header is longer": npy_with(header("(3,)"), bytes(12), length=65535),
    "header is cut": npy_with(header("(3,)"), bytes(12), length=20),
    "header is very long": npy_with(header("(3,)") + " " * 20_000, bytes(12)),
    "header is empty": npy_with("", bytes(12)),
    "header is zeros": npy_with(bytes(60), bytes(12)),
    "header is not closed": npy_with("{'descr': '<f4', ", bytes(12)),
    "header is not closed, a string": npy_with("{'descr': '''<f4", bytes(12)),
    "header is indented": npy_with("  {\n 1\n", bytes(12)),
    "header is indented oddly": npy_with("if 1:\n    2\n  3\n", bytes(12)),
    "header is nested": npy_with("(" * 150 + ")" * 150, bytes(12)),
    "header is deeply nested": npy_with("(" * 4900 + ")" * 4900, bytes(12)),
    "header has many signs": npy_with("-" * 9000 + "1", bytes(12)),
    "header has an unhashable key": npy_with("{[]: 1}", bytes(12)),
    "header has mixed keys": npy_with("{'descr': '<f4', 1: 2, None: 3}", bytes(12)),
    "header lacks a key": npy_with("{'descr': '<f4', 'shape': (3,)}", bytes(12)),
    "header has a key more": npy_with(header("(3,), 'x': 1"), bytes(12)),
    "header is a list": npy_with("[1]", bytes(12)),
    "header is a call": npy_with("__import__('os').mkdir('called')", bytes(12)),
    "header of Python 2": npy_with(header("(3L,)"), bytes(12)),
    "header is latin-1": npy_with("\xff\xfe", bytes(12)),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(tmp_path, good, kind):
    content = members(good[0])
    for name in ("weights/head.bias.npy", "meta.npy"):
        assert_refused(pack(tmp_path / "checkpoint.npz", content | {name: BAD_ARRAYS[kind]}))


# Meta.

BAD_TEXTS = {
    "empty": "",
    "open": "{",
    "null": "null",
    "number": "5",
    "string": '"x"',
    "list": "[]",
    "list of names": '["format", "version"]',
    "zero byte": "\x00",
    "not UTF-8": b"\xff\xfe\x00",
    "nested lists": "[" * 100_000,
    "nested objects": '{"a":' * 100_000,
    "long number": f'{{"format": {"1" * 5000}}}',
    "format alone": '{"format": "minimixer checkpoint"}',
    "format in a list": '{"format": ["minimixer checkpoint"]}',
    "twice": '{"format": "minimixer checkpoint", "format": "minimixer checkpoint", "version": 1}',
    "deep within": '{"format": "minimixer checkpoint", "progress": ' + "[" * 200_000,
    "format and version": '{"format": "minimixer checkpoint", "version": 1}',
}


@pytest.mark.parametrize("kind", BAD_TEXTS)
def test_bad_meta_texts(tmp_path, good, kind):
    assert_refused(with_meta(tmp_path / "checkpoint.npz", good, BAD_TEXTS[kind]))


def config(**changes):
    config = json.loads(json.dumps(make_model().config)) | changes
    return {"config": {key: value for key, value in config.items() if value is not ...}}


SIZES = ("patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim",
         "in_channels", "num_classes", "image_size")  # fmt: skip
BAD_SIZES = (10**12, 10**9, 10**30, 7.5, 2.0, "8", True, 0, -8, None, [], [8, 8], {}, float("nan"))
BAD_META = {
    **{
        f"{size} {value if value.__class__ is not int else f'{value:.0e}'}": config(**{size: value})
        for size in SIZES
        for value in BAD_SIZES
        if size != "image_size" or value != [8, 8]
    },
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
       for name in ("mean", "std")
       for value in (..., None, [0.5, 0.5], [[0.5]] * 4, "x", {}, float("nan"), 10**400,
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
def test_bad_meta(tmp_path, good, kind):
    assert_refused(with_meta(tmp_path / "checkpoint.npz", good, **BAD_META[kind]))


def test_sizes_that_agree_by_accident(tmp_path, good):
    """12 num_blocks + 6 numbers in one array are not 12 num_blocks + 6 arrays."""
    path = tmp_path / "checkpoint.npz"
    large = config(num_blocks=1, hidden_dim=1_000_000, channels_mlp_dim=4)
    with_meta(path, good, **large)
    meta = members(path)["meta.npy"]
    pack(path, {"meta.npy": meta, "weights/a.npy": npy(np.zeros(18, np.uint8))})
    assert_refused(path)
    with_meta(path, good, **config(num_blocks=20_000))
    meta = members(path)["meta.npy"]
    pack(path, {"meta.npy": meta, "weights/a.npy": npy(np.zeros(240_006, np.uint8))})
    assert_refused(path)


@pytest.mark.parametrize("name", ["head.bias", "blocks.1.token_mixing.w1", "stem.weight"])
def test_wrong_weights(tmp_path, good, name):
    path, content = tmp_path / "checkpoint.npz", members(good[0])
    key = f"weights/{name}.npy"
    value = np.load(io.BytesIO(content[key]))
    assert_refused(pack(path, {k: v for k, v in content.items() if k != key}))
    renamed = {("weights/other.npy" if k == key else k): v for k, v in content.items()}
    assert_refused(pack(path, renamed), match="missing|fit")
    assert_refused(pack(path, content | {"weights/more.npy": content[key]}))
    for shape in ((value.size, 1), (1, *value.shape), (1, 1, value.size)):
        assert_refused(pack(path, content | {key: npy(value.reshape(shape))}))
    assert_refused(pack(path, content | {key: npy(value[:-1])}))
    swapped = content | {key: content["weights/norm.bias.npy"]}
    assert_refused(pack(path, swapped | {"weights/norm.bias.npy": content[key]}))


def test_another_version_says_so(tmp_path, good):
    path = with_meta(tmp_path / "checkpoint.npz", good, version=2)
    assert_refused(path, match="version 2, this minimixer reads version 1")


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("name", ["weights/head.bias", "optimizer/exp_avg_sq/stem.weight"])
def test_numbers_that_are_none_are_refused(tmp_path, good, name, value):
    content = members(good[0])
    array = np.load(io.BytesIO(content[f"{name}.npy"])).copy()
    array.reshape(-1)[-1] = value
    path = pack(tmp_path / "checkpoint.npz", content | {f"{name}.npy": npy(array)})
    assert_refused(path, match=f"{name} holds NaN or infinity")
    assert_changes_nothing(path, f"{name} holds NaN or infinity")


def test_the_same_in_another_form(tmp_path, good):
    """In another order of members and of bytes, deflated, in Fortran's order: the same meaning."""
    content = members(good[0])
    key = "weights/blocks.0.token_mixing.w1.npy"
    array = np.load(io.BytesIO(content[key]))
    expected = read_checkpoint(good[0])
    for other in (array.astype(">f4"), np.asfortranarray(array)):
        changed = dict(reversed((content | {key: npy(other)}).items()))
        path = pack(tmp_path / "checkpoint.npz", changed, zipfile.ZIP_DEFLATED)
        assert npy(other) != content[key] and not read_or_refuse(path, expected)
    text = np.load(io.BytesIO(content["meta.npy"])).tobytes().decode()
    spaced = json.dumps(json.loads(text), indent=3, sort_keys=True, ensure_ascii=False)
    assert not read_or_refuse(with_meta(path, good, spaced), expected)


@pytest.mark.parametrize("progress", [float("nan"), [float("inf")], 10**39, [[[]]] * 3])
def test_progress_comes_back(tmp_path, good, progress):
    path = tmp_path / "checkpoint.npz"
    save_checkpoint(path, *good[1:], progress)
    assert repr(read_checkpoint(path)[0]["progress"]) == repr(progress)


@pytest.mark.parametrize("progress, said", [(10**40, "41 digits"), (101, "100 levels")])
def test_what_could_not_be_read_is_not_written(tmp_path, good, progress, said):
    path = tmp_path / "checkpoint.npz"
    if progress == 101:
        progress = []
        for _ in range(101):
            progress = [progress]
    with pytest.raises(ValueError, match=f"not saved: .*{said}"):
        save_checkpoint(path, *good[1:], progress)
    assert not path.exists()


def test_save_is_a_method(tmp_path):
    model = redraw(make_model())
    model.save(tmp_path / "checkpoint.npz")
    assert_same(Mixer.load(tmp_path / "checkpoint.npz").state_dict(), model.state_dict())


# ---- going on with what does not fit -------------------------------------------------------


def assert_changes_nothing(path, match=None, **changes):
    model, optimizer = trained(steps=2, **changes)
    before = everything(model, optimizer)
    assert_refused(path, lambda path: load_checkpoint(path, model, optimizer), match)
    assert_same(everything(model, optimizer), before)


@pytest.mark.parametrize(
    "changes",
    [
        {"num_blocks": 3}, {"hidden_dim": 9}, {"tokens_mlp_dim": 6}, {"channels_mlp_dim": 8},
        {"approximate": "tanh"}, {"stochastic_depth": 0.2}, {"image_size": (4, 6)},
        {"num_classes": 4, "class_names": None}, {"num_blocks": 1, "hidden_dim": 4},
    ],
    ids=lambda changes: " ".join(changes),
)  # fmt: skip
def test_another_model_is_named_and_changes_nothing(good, changes):
    named = [name for name in changes if name != "class_names"]
    if "image_size" in changes:  # the same weights, but other images
        model = make_model(**changes)
        before = everything(model)
        optimizer = AdamW(model.parameters())
        with pytest.raises(ValueError, match="differs in image_size"):
            load_checkpoint(good[0], model, optimizer)
        assert_same(everything(model), before)
        return
    assert_changes_nothing(good[0], ".*".join(["differs in", *named]), **changes)


@pytest.mark.parametrize(
    "changes",
    [{"mean": 0.3}, {"std": 0.9}, {"class_names": ["a", "b", "c"]}, {"dtype": "float64"}],
    ids=lambda changes: " ".join(changes),
)
def test_normalisation_names_and_dtype_are_refused_or_taken_over(good, changes):
    """Going on with other pixels, or rounded weights, would not be the same run."""
    model = make_model(**changes)
    optimizer = AdamW(model.parameters())
    before = everything(model, optimizer)
    try:
        load_checkpoint(good[0], model, optimizer)
    except ValueError as error:
        assert next(iter(changes)) in str(error)
        assert_same(everything(model, optimizer), before)
    else:
        assert_same(everything(model, optimizer), everything(*good[1:]))


@pytest.mark.parametrize(
    "saved, loading, match",
    [
        (AdamW, SGD, "SGD"),
        (SGD, AdamW, "AdamW"),
        (Adam, AdamW, "AdamW"),
        (None, AdamW, "no state of AdamW"),
    ],
)
def test_another_kind_of_optimizer(tmp_path, saved, loading, match):
    path = tmp_path / "checkpoint.npz"
    model = make_model()
    save_checkpoint(path, model, saved and saved(model.parameters(), lr=0.1))
    assert_changes_nothing_with(path, loading, match)


def assert_changes_nothing_with(path, optimizer_class, match, **options):
    model = redraw(make_model(seed=1))
    optimizer = optimizer_class(model.parameters(), lr=0.1, **options)
    train(model, optimizer, 0, 2)
    before = everything(model, optimizer)
    assert_refused(path, lambda path: load_checkpoint(path, model, optimizer), match)
    assert_same(everything(model, optimizer), before)


def test_an_optimizer_of_fewer_parameters_or_without_momentum(tmp_path):
    path = tmp_path / "checkpoint.npz"
    model = make_model()
    optimizer = AdamW(model.parameters()[-2:])
    train(model, optimizer, 0, 2)
    save_checkpoint(path, model, optimizer)
    assert_changes_nothing(path, "exp_avg")
    save_checkpoint(path, model, SGD(model.parameters(), 0.1))
    assert_changes_nothing_with(path, SGD, "set up in another way", momentum=0.9)


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
def test_bad_states_change_nothing(tmp_path, good, kind):
    assert_changes_nothing(with_meta(tmp_path / "checkpoint.npz", good, **BAD_STATES[kind]))


def test_wrong_arrays_change_nothing(tmp_path, good):
    path, content = tmp_path / "checkpoint.npz", members(good[0])
    for key in ("weights/head.bias.npy", "optimizer/exp_avg_sq/blocks.1.norm1.weight.npy"):
        assert_changes_nothing(pack(path, {k: v for k, v in content.items() if k != key}))
        value = np.load(io.BytesIO(content[key]))
        for wrong in (value[:-1], value[None], np.append(value, value)):
            assert_changes_nothing(pack(path, content | {key: npy(wrong)}))


# ---- models and layers of one's own --------------------------------------------------------


class RMSNorm(Module):
    def __init__(self, channels, biased=False):
        self.weight = Parameter(np.ones(channels, "float32"))
        if biased:
            self.bias = Parameter(np.zeros(channels, "float32"))

    def forward(self, x):
        return x * (((x * x).mean(axis=-1, keepdims=True) + 1e-6) ** -0.5).to(x.dtype) * self.weight


class LikeLayerNorm(LayerNorm):
    """The same weights."""


def named(name, kind, **changes):
    """The class by another name, as after an edit of the student's file."""
    return type(name, (kind,), changes)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_a_norm_of_ones_own_comes_back_if_it_is_given(tmp_path, device, dtype):
    path = tmp_path / "checkpoint.npz"
    model, optimizer = trained(device, norm=RMSNorm, dtype=dtype)
    save_checkpoint(path, model, optimizer, 5)
    assert read_checkpoint(path)[0]["config"]["norm"] == "RMSNorm"
    loaded = Mixer.load(path, norm=RMSNorm)
    assert isinstance(loaded.blocks[1].norm2, RMSNorm) and not loaded.training
    assert_same(loaded.state_dict(), model.state_dict())
    other = make_model(norm=RMSNorm, seed=9, dtype=dtype).to(device)
    other_optimizer = AdamW(other.parameters(), lr=0.01, weight_decay=0.05)
    assert load_checkpoint(path, other, other_optimizer) == 5
    for each in ((model, optimizer), (other, other_optimizer)):
        train(*each, 5, 8)
    assert_same(everything(other, other_optimizer), everything(model, optimizer))
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
def test_another_norm_than_the_file_s_is_named(tmp_path, saved, given, match):
    path = tmp_path / "checkpoint.npz"
    make_model(norm=saved).save(path)
    assert_refused(path, lambda path: Mixer.load(path, norm=given), match)
    assert_refused(path, lambda path: Mixer.from_pretrained(path, norm=given), match)


def test_a_model_with_another_norm_is_another_model(tmp_path):
    path = tmp_path / "checkpoint.npz"
    model, optimizer = trained(norm=LikeLayerNorm)
    save_checkpoint(path, model, optimizer)
    assert_changes_nothing(path, "differs in norm")


def test_what_a_format_has_no_place_for_is_not_exported(tmp_path):
    for norm in (RMSNorm, LikeLayerNorm):
        for format in ("npz", "timm"):
            with pytest.raises(ValueError, match=f"{norm.__name__} has no place in the {format}"):
                make_model(norm=norm).export(tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
    model = make_model(mean=0.5, std=0.5, class_names=None, approximate="tanh", image_size=4)
    model.export(tmp_path / "out.npz", "npz")
    with pytest.raises(ValueError, match="for checkpoints of minimixer"):
        Mixer.from_pretrained(tmp_path / "out.npz", norm=RMSNorm)


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
        for block in self.blocks:
            block.channel_mixing = Linear(self.config["hidden_dim"], self.config["hidden_dim"])
        self.initialize(self.random.seed)

    @staticmethod
    def expected_shapes(config):
        c = config["hidden_dim"]
        for name, shape in Mixer.expected_shapes(config):
            if name.endswith("channel_mixing.w1"):
                yield name.replace("w1", "weight"), (c, c)
            elif name.endswith("channel_mixing.b1"):
                yield name.replace("b1", "bias"), (c,)
            elif "channel_mixing" not in name:
                yield name, shape


def steps(model, optimizer, count):
    x = np.random.default_rng(0).standard_normal((6, 4)).astype("float32")
    for _ in range(count):
        F.cross_entropy(model(Tensor(x, device=model.first.weight.device)), [0, 1] * 3).backward()
        optimizer.step()
        optimizer.zero_grad()


@pytest.mark.parametrize("kind", [Network, Complete])
def test_any_module_goes_on_as_if_it_had_not_stopped(tmp_path, device, kind):
    path = tmp_path / "checkpoint.npz"
    model, other = kind(seed=1).to(device), kind(seed=2).to(device)
    optimizer, its = AdamW(model.parameters(), lr=0.1), AdamW(other.parameters(), lr=0.1)
    steps(model, optimizer, 3)
    save_checkpoint(path, model, optimizer, PROGRESS)
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


def test_a_subclass_of_mixer_is_a_kind_of_its_own(tmp_path):
    path = tmp_path / "checkpoint.npz"
    model = redraw(Wide(**make_model().config, mean=0.25, std=0.75, class_names=["a", "b", "c"]))
    model.save(path)
    loaded = Wide.load(path)
    assert type(loaded) is Wide
    wanted = everything(model) | {"seed": loaded.random.seed}
    assert_same(everything(loaded), wanted)
    assert loaded.mean[0] == 0.25 and loaded.class_names == ["a", "b", "c"]
    assert_refused(path, Mixer.load, "it holds a Wide")
    make_model().save(path)
    assert_refused(path, Wide.load, "it holds a Mixer")


def test_files_without_a_kind_are_a_mixer_s(tmp_path, good):
    path = with_meta(tmp_path / "checkpoint.npz", good, kind=...)
    assert_same(everything(load_model(path)), everything(load_model(good[0])))
    assert_unchanged_but_loaded(path)


@pytest.mark.parametrize(
    "kind", [None, 5, [], {}, "", "Other", "../Mixer", "os.system", "x" * 999, "\x1b[2J"], ids=ascii
)
def test_kinds_that_are_none(tmp_path, good, kind):
    path = with_meta(tmp_path / "checkpoint.npz", good, kind=kind)
    assert_refused(path)
    assert_changes_nothing(path)


def test_names_of_arrays_can_be_printed(tmp_path, good):
    """Or a message that repeats them clears the terminal. They are not written either."""
    path, content = tmp_path / "checkpoint.npz", members(good[0])
    arrays = sorted(["weights/\x1b[2J", *[k[:-4] for k in content if k != "meta.npy"]])
    content = members(with_meta(path, good, arrays=arrays))
    pack(path, content | {"weights/\x1b[2J.npy": content["weights/head.bias.npy"]})
    assert_refused(path, match="arrays is not what minimixer writes")
    model = Network()
    vars(model)["\x1b[2J"] = Linear(2, 2)
    with pytest.raises(ValueError, match="not saved: arrays is not what minimixer writes"):
        save_checkpoint(path, model)


@pytest.mark.parametrize("kind", ["Complete", Complete.__init__, 5])
def test_a_kind_is_a_class(good, kind):
    with pytest.raises(TypeError, match="load_model: kind must be a class, got"):
        load_model(good[0], kind=kind)


def test_what_a_hostile_file_claims_is_not_made(tmp_path):
    path, good = tmp_path / "checkpoint.npz", tmp_path / "good.npz"
    save_checkpoint(good, Complete())
    for hidden in (10**12, 10**30, -1, 2.5, "x", None, [3], True):
        with_meta(path, [good], config={"hidden": hidden})
        assert_refused(path, lambda path: load_model(path, kind=Complete))
    for config in ({}, {"hidden": 3, "more": 1}, {"hidden": 3, "seed": 0}, {"self": 1}):
        with_meta(path, [good], config=config)
        assert_refused(path, lambda path: load_model(path, kind=Complete))
    make_model(norm=RMSNorm).save(good)
    for changes in ({"norm": 5}, {"norm": None}, {"norm": ["RMSNorm"]}, {"norm": "os.system"},
                    {"hidden_dim": 10**12}, {"num_blocks": 10**12}):  # fmt: skip
        with_meta(path, [good], **config_of(good, **changes))
        for load in (Mixer.load, lambda path: Mixer.load(path, norm=RMSNorm)):
            assert_refused(path, load)


def config_of(path, **changes):
    return {"config": read_checkpoint(path)[0]["config"] | changes}


def test_what_has_no_weights_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="GELU has no weights"):
        save_checkpoint(tmp_path / "checkpoint.npz", GELU())


def test_a_layer_that_was_replaced_is_named(tmp_path):
    model = make_model()
    model.blocks[1].norm1 = RMSNorm(8)
    with pytest.raises(ValueError, match=r"blocks.1.norm1.bias is missing"):
        model.save(tmp_path / "checkpoint.npz")
    with pytest.raises(ValueError, match=r"blocks.1.norm1.bias is missing"):
        model.export(tmp_path / "out.npz", "npz")
    assert not os.listdir(tmp_path)
