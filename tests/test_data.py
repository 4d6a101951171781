"""Data: hostile IDX files, the embedded MNIST, shifts, and batches that can be found again."""

import functools
import gc
import gzip
import hashlib
import os
import re
import signal
import struct
import subprocess
import sys
import threading
import time
import timeit
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from files_help import assert_refused
from help import by_kernels_and_plainly, close, functions, raises, same
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from minimixer.data import Batches, load_directory, num_classes, pixel_mean_std, shift_images
from processes import ENVIRONMENT, forked, needs_fork

from minimixer import data
from minimixer.backend import device_of, to_device, to_numpy
from minimixer.training import gpu_batches
from minimixer.training.files import replace_file
from minimixer.training.gpu_batches import GpuBatches
from minimixer.training.idx import read_idx, write_idx

DTYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]
MNIST = Path(data.__file__).with_name("mnist")


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """A busy disk takes its time. That what is written is flushed is seen in test_checkpoint.py."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


# ---- IDX files -----------------------------------------------------------------------------

arrays = st.sampled_from(DTYPES).flatmap(
    lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=1, max_dims=4, max_side=5))
)


@given(array=arrays, end=st.sampled_from(["", ".gz"]), swapped=st.booleans())
def test_round_trip(tmp_path, array, end, swapped):
    path = tmp_path / f"file{end}"
    write_idx(path, array.astype(array.dtype.newbyteorder()) if swapped else array)
    assert (path.read_bytes()[:2] == b"\x1f\x8b") == bool(end)
    result = read_idx(path)
    assert (result.dtype, result.shape) == (array.dtype, array.shape)
    assert result.dtype.isnative and result.flags.writeable
    same(result, array)


def test_layout_and_content_decides(tmp_path):
    path = tmp_path / "named.gz"  # plain content under a name that says gzip
    content = b"\0\0\x0b\x02" + struct.pack(">II6h", 2, 3, 1, -2, 3, -4, 5, 256)
    same(read_idx_from(path, content), [[1, -2, 3], [-4, 5, 256]])
    plain = tmp_path / "plain"
    write_idx(plain, read_idx(path))
    assert plain.read_bytes() == content
    two = gzip.compress(content[:9]) + gzip.compress(content[9:])  # members of one stream
    for packed in (*[gzip.compress(content, level) for level in (0, 1, 9)], two):
        same(read_idx_from(plain, packed), read_idx(path))


def test_the_same_array_makes_the_same_file_which_an_error_leaves_whole(tmp_path, monkeypatch):
    path = tmp_path / "file.gz"
    write_idx(path, np.arange(3, dtype="int32"))
    first = path.read_bytes()
    monkeypatch.setattr(time, "time", lambda: 1e9)  # gzip would write the time of day
    write_idx(path, np.arange(3, dtype="int32"))
    assert path.read_bytes() == first
    with pytest.raises(RuntimeError), replace_file(path) as file:
        file.write(b"half")
        raise RuntimeError
    assert path.read_bytes() == first and os.listdir(tmp_path) == ["file.gz"]


def test_a_killed_writer_leaves_one_file_that_the_next_one_sweeps_away(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"whole")
    code = """if True:
        import os, signal, sys
        from minimixer.training.files import replace_file
        with replace_file(sys.argv[1]) as file:
            file.write(b"half" * 100_000)
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)
    """
    for _ in range(2):  # again and again: junk does not accumulate
        killed = subprocess.run([sys.executable, "-c", code, str(path)], env=ENVIRONMENT)
        assert killed.returncode == -signal.SIGKILL
        assert path.read_bytes() == b"whole"
        assert len(os.listdir(tmp_path)) == 2
    with replace_file(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new" and os.listdir(tmp_path) == ["file"]


def test_write_refuses_what_idx_cannot_hold(tmp_path):
    huge = [np.broadcast_to(np.uint8(1), shape) for shape in ((1 << 32,), (2, 1 << 33))]
    for array in (np.zeros(2, "int64"), np.zeros(2, "bool"), np.array(1, "u1"),
                  np.zeros((2, 0), "u1"), *huge):  # fmt: skip
        with pytest.raises(ValueError, match="write_idx"):
            write_idx(tmp_path / "file", array)
    assert not os.listdir(tmp_path)


def header(*shape, code=8):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


in_gzip = functools.partial(gzip.compress, mtime=0)  # the same bytes at any time
PLAIN = header(2, 3, code=0x0C) + struct.pack(">6i", *range(6))
SMALL_FILES = {"plain": PLAIN, "gzip": in_gzip(PLAIN)}


@pytest.mark.parametrize("content", SMALL_FILES.values(), ids=SMALL_FILES)
def test_every_truncation_and_trailing_byte_is_refused(tmp_path, content):
    path = tmp_path / "file"
    damaged = [content[:length] for length in range(len(content))] + [content + b"x"]
    for content in damaged:
        path.write_bytes(content)
        with pytest.raises(ValueError, match=f"{re.escape(str(path))}.*fetch it again"):
            read_idx(path)


@pytest.mark.parametrize("kind", SMALL_FILES)
def test_every_corrupt_byte_is_refused_or_consistent(tmp_path, kind):
    """Any byte of the plain header, any byte of the whole gzip file, to any other value."""
    path, content = tmp_path / "file", SMALL_FILES[kind]
    expected = read_idx_from(path, content)
    for position in range(len(content) if kind == "gzip" else 12):
        for value in range(256) if kind == "plain" else (0, 1, 2, 4, 8, 16, 127, 255):
            damaged = bytearray(content)
            damaged[position] = value
            try:
                array = read_idx_from(path, damaged)
            except ValueError as error:
                assert str(path) in str(error)
                continue
            if kind == "gzip":  # which does not check the time stamp and the like in its header
                same(array, expected)
            else:  # another type of the same size
                assert array.nbytes == 24 and 4 + 4 * array.ndim + 24 == len(content)


def read_idx_from(path, content):
    path.write_bytes(content)
    return read_idx(path)


def test_sizes_at_the_limit(tmp_path):
    """64 dimensions are read; 65, or more bytes than a file may have, are not. No bomb explodes."""
    path = tmp_path / "file"
    assert read_idx_from(path, header(*[1] * 64) + b"x").shape == (1,) * 64
    most, bomb = 1 << 36, gzip.compress(header(10, 28, 28) + bytes(200 << 20), 1)
    assert len(bomb) < 2 << 20
    for content, said in (
        (header(1 << 16, 1 << 20), f"needs {most} bytes, but only 0 follow"),
        (header((1 << 16) + 1, 1 << 20), f"{most + (1 << 20)} bytes, not 1 to {most}"),
        (gzip.compress(header(1, 17 << 20)), "only 0 follow"),
        (gzip.compress(header(1, 65 << 20)), "claim to hold"), (bomb, "more follow"),
    ):  # fmt: skip
        path.write_bytes(content)
        assert_refused(path, read_idx, said, megabytes=4)


@pytest.mark.parametrize("content, said", [
    (b"", "begins with"), (b"\x89PNG\r\n\x1a\n", "begins with '89 50 4e 47'"),
    (header(3, code=0x0A) + bytes(3), "begins with"), (header(), "0 dimensions"),
    (b"\0\0\x08\x41" + struct.pack(">I", 1) * 65 + b"x", "65 dimensions"),
    (header(0, 28, 28), "shape .0, 28, 28."),
    (header(2, 3) + bytes(5), "needs 6 bytes, but only 5 follow"),
    (header(2, 3) + bytes(7), "needs 6 bytes, but more follow"),
    (in_gzip(PLAIN + b"x"), "more follow"),
    *[(pack(header(*shape) + bytes(1000)), "bytes") for pack in (bytes, in_gzip)
      for shape in ((1 << 20, 1 << 20), (1 << 31, 8), (4, 1 << 28), ((1 << 32) - 1,) * 64)],
    (in_gzip(header(2) + b"ab")[:-8] + bytes(8), "damaged gzip data .CRC"),
])  # fmt: skip
def test_messages_say_what_was_met(tmp_path, content, said):
    path = tmp_path / "file"
    path.write_bytes(content)
    assert "fetch it again" in assert_refused(path, read_idx, said, megabytes=4)


# ---- data sets -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def mnist():
    return data.load_mnist()


def test_mnist_is_what_it_says(mnist):
    assert [(a.dtype.name, a.shape) for a in mnist] == [
        ("uint8", (60000, 28, 28, 1)), ("int64", (60000,)),
        ("uint8", (10000, 28, 28, 1)), ("int64", (10000,)),
    ]  # fmt: skip
    assert num_classes(mnist[1]) == num_classes(mnist[3]) == 10
    assert mnist[1][:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    tracemalloc.start()
    (mean,), (std,) = pixel_mean_std(mnist[0])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert (round(mean, 4), round(std, 4)) == (0.1307, 0.3081)  # the well-known pair
    assert type(mean) is type(std) is float and peak < 20 << 20


def test_mnist_checksums(mnist):
    text = (MNIST / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"\| (\S+-ubyte) \| (\d+) \| \w{32} \| (\w{64}) \|", text)
    assert len(rows) == 4
    for (name, size, checksum), array in zip(rows, mnist, strict=True):
        content = gzip.decompress((MNIST / f"{name}.gz").read_bytes())
        assert len(content) == int(size) and hashlib.sha256(content).hexdigest() == checksum
        shape = array.shape[: 3 if "images" in name else 1]
        assert content == header(*shape) + array.astype("uint8").tobytes()


def make_directory(path, names="{}-idx{}-ubyte", test="t10k", channels=(), train=5, tests=3):
    """A small data set under `path`; returns the paths of its four files."""
    files = []
    for split, count in (("train", train), (test, tests)):
        for kind, shape in (("images", (count, 4, 6, *channels)), ("labels", (count,))):
            files.append(path / names.format(f"{split}-{kind}", len(shape)))
            write_idx(files[-1], np.arange(np.prod(shape), dtype="uint8").reshape(shape))
    return files


@pytest.mark.parametrize(
    "names", ["{}-idx{}-ubyte", "{}-idx{}-ubyte.gz", "{}.idx{}-ubyte", "{}.idx{}-ubyte.gz"]
)
@pytest.mark.parametrize("test", ["t10k", "test"])
@pytest.mark.parametrize("channels", [(), (3,)])
def test_directory_names(tmp_path, names, test, channels):
    make_directory(tmp_path, names, test, channels)
    train_images, train_labels, test_images, test_labels = load_directory(str(tmp_path))
    c = channels[0] if channels else 1
    assert train_images.shape == (5, 4, 6, c) and test_images.shape == (3, 4, 6, c)
    assert train_images.ravel()[:200].tolist() == [i % 256 for i in range(5 * 24 * c)][:200]
    assert train_labels.tolist() == [0, 1, 2, 3, 4] and test_labels.dtype == np.int64


def test_incomplete_directories(tmp_path):
    with pytest.raises(NotADirectoryError, match="none is not a directory"):
        load_directory(tmp_path / "none")
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "none")
    with pytest.raises(ValueError, match="train-images, train-labels, t10k-images, t10k-labels;"):
        load_directory(tmp_path)
    files = make_directory(tmp_path)
    with pytest.raises(NotADirectoryError):
        load_directory(files[0])
    for file in files:
        content = file.read_bytes()
        file.unlink()
        kind = file.name.partition("-idx")[0]
        with pytest.raises(ValueError, match=f"no file for {kind}; recognised names: train-im"):
            load_directory(tmp_path)
        file.write_bytes(content)
    load_directory(tmp_path)
    files[0].write_bytes(header(0, 4, 6))
    files[1].write_bytes(header(0))
    with pytest.raises(ValueError, match=re.escape(str(files[1])) + r".*shape \(0,\)"):
        load_directory(tmp_path)


@pytest.mark.parametrize("which, array, match", [
    (0, np.zeros((4, 4, 6), "u1"), "4 images, but .*train-labels-idx1-ubyte has 5 labels"),
    (0, np.zeros((5, 4, 6), "f4"), "must be uint8 .*float32"),
    (0, np.zeros((5, 24), "u1"), r"\(5, 24\)"),
    (1, np.zeros((5,), "f4"), "labels must be integers .*float32"),
    (1, np.zeros((5, 1), "u1"), r"\(5, 1\)"), (1, np.array([0, 1, -3, 1, 2], "i1"), "from -3"),
    (2, np.zeros((3, 6, 4), "u1"), r"\(4, 6, 1\) .*\(6, 4, 1\)"),
    (3, np.zeros((2,), "u1"), "3 images, but .* 2 labels"),
])  # fmt: skip
def test_inconsistent_directories(tmp_path, which, array, match):
    files = make_directory(tmp_path)
    write_idx(files[which], array)
    with pytest.raises(ValueError, match=match) as caught:
        load_directory(tmp_path)
    assert str(files[which]) in str(caught.value)


@given(images=hnp.arrays("uint8", hnp.array_shapes(min_dims=4, max_dims=4, max_side=6)))
def test_pixel_mean_std(images):
    mean, std = pixel_mean_std(images)
    pixels = images / 255.0
    close(np.array(mean), pixels.mean(axis=(0, 1, 2)), rtol=1e-12, atol=1e-14)
    close(np.array(std), pixels.std(axis=(0, 1, 2)), rtol=1e-12, atol=1e-14)


def test_statistics_refuse():
    for images in (np.zeros((2, 4, 4), "u1"), np.zeros((2, 4, 4, 1)), np.zeros((0, 4, 4, 1), "u1")):
        with pytest.raises(ValueError, match="pixel_mean_std"):
            pixel_mean_std(images)
    for labels in (np.zeros(0, int), np.array([0.5]), np.array([1, -1])):
        with pytest.raises(ValueError, match="num_classes"):
            num_classes(labels)
    with pytest.warns(UserWarning, match="begin at 1: of 27 classes, .* subtract 1 from all"):
        assert num_classes(np.arange(1, 27)) == 27  # as EMNIST's letters
    assert num_classes(np.array([0, 26])) == 27


# ---- shifts --------------------------------------------------------------------------------


def shift_by_loop(images, shifts):
    result = np.zeros_like(images)
    batch, height, width, _ = images.shape
    for b, y, x in np.ndindex(batch, height, width):
        from_y, from_x = y - int(shifts[b, 0]), x - int(shifts[b, 1])
        if 0 <= from_y < height and 0 <= from_x < width:
            result[b, y, x] = images[b, from_y, from_x]
    return result


@given(
    dtype=st.sampled_from(["uint8", "int16", "float32", "float64", "bool"]),
    shape=st.tuples(*[st.integers(0, 5)] * 4),
    shift_dtype=st.sampled_from(["int8", "int64", "uint16"]),
    seed=st.integers(0, 1000),
)
def test_shift_equals_loop(dtype, shape, shift_dtype, seed):
    rng = np.random.default_rng(seed)
    images = rng.integers(1, 100, shape).astype(dtype)
    shifts = rng.integers(0 if shift_dtype == "uint16" else -6, 7, (shape[0], 2))
    before = images.copy()
    result = shift_images(images, shifts.astype(shift_dtype))
    same(images, before)
    assert result.dtype == images.dtype and not np.shares_memory(result, images)
    same(result, shift_by_loop(images, shifts))


def test_shift_far_and_refusals():
    images = np.ones((4, 28, 28, 1), "uint8")
    limits = np.iinfo(np.int64)
    far = np.array([[28, 0], [0, -28], [limits.max, 0], [0, limits.min]])
    assert not shift_images(images, far).any()
    assert shift_images(images, np.array([[27, -27]] * 4)).sum() == 4
    for shifts in (np.zeros((4, 3), int), np.zeros((3, 2), int), np.zeros(4, int)):
        with pytest.raises(ValueError, match="shift_images"):
            shift_images(images, shifts)
    for dtype in ("float64", "bool", "uint64"):
        with pytest.raises(TypeError, match=dtype):
            shift_images(images, np.zeros((4, 2), dtype))


def test_shift_is_fast(mnist):
    shifts = np.random.default_rng(0).integers(-2, 3, (128, 2))
    work = functools.partial(shift_images, mnist[0][:128], shifts)
    assert min(timeit.repeat(work, number=1, repeat=20)) < 1e-3


# ---- batches -------------------------------------------------------------------------------


def numbered(n, size=6):
    """n images, each full of ones but for its number in the middle pixels; labels number them."""
    images = np.ones((n, size, size, 1), "uint16")
    images[:, 2:4, 2:4, 0] = np.arange(n)[:, None, None]
    return images, np.arange(n)


def assert_same(one, other):
    for x, y in zip(one, other, strict=True):
        same(x, y)
        assert x.dtype == y.dtype


@given(
    n=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1), shuffle=st.booleans(),
)  # fmt: skip
def test_an_epoch_covers_every_example_once(n, batch_size, seed, epoch, shuffle):
    images, labels = numbered(n)
    batches = Batches(images, labels, batch_size, seed=seed, shuffle=shuffle)
    met = list(batches.epoch(epoch))
    assert len(met) == len(batches) == -(-n // batch_size)
    assert [len(y) for _, y in met[:-1]] == [batch_size] * (len(met) - 1)
    order = np.concatenate([y for _, y in met])
    assert sorted(order.tolist()) == list(range(n))
    assert order.tolist() == batches.order(epoch).tolist()
    assert shuffle or order.tolist() == list(range(n))
    for x, y in met:
        same(x, images[y])


def test_batches_are_found_again_in_any_order():
    images, labels = numbered(50)
    batches = Batches(images, labels, 7, seed=3, max_shift=1)
    places = [(epoch, index) for epoch in range(3) for index in range(len(batches))]
    first = {place: batches.batch(*place) for place in places}
    fresh = Batches(images, labels, 7, seed=3, max_shift=1)
    for i in np.random.default_rng(0).permutation(len(places)):
        assert_same(fresh.batch(*places[i]), first[places[i]])
    for epoch in (2, 0, 1):
        for start in (0, 3, len(batches)):
            met = list(fresh.epoch(epoch, start))
            assert len(met) == len(batches) - start
            for index, batch in enumerate(met, start):
                assert_same(batch, first[epoch, index])
    assert batches.order(1) is batches.order(1)
    with pytest.raises(ValueError):
        batches.order(1)[0] = 0
    x, y = batches.batch(0, 0)
    x[:], y[:] = 0, 0  # a batch is the caller's own
    assert batches.labels.tolist() == list(range(50)) and batches.images.any()


@given(
    n=st.integers(1, 30), batch_size=st.integers(1, 40), seed=st.integers(0, 2**64 - 1),
    epoch=st.integers(0, 2**64 - 1), shuffle=st.booleans(), max_shift=st.integers(0, 8),
    start=st.floats(0, 1), at_once=st.integers(1, 3), dtype=st.sampled_from(DTYPES),
)  # fmt: skip
@by_kernels_and_plainly
def test_batches_made_on_a_gpu_are_the_same(
    n, batch_size, seed, epoch, shuffle, max_shift, start, at_once, dtype, kind, device
):
    images = np.random.default_rng(n).integers(1, 100, (n, 5, 4, 3)).astype(dtype)
    batches = Batches(images, np.arange(n), batch_size, seed, max_shift, shuffle)
    made = GpuBatches(batches, to_device(images, device))
    start = round(start * len(batches))
    with functions(kind), pytest.MonkeyPatch.context() as patch:
        patch.setattr(gpu_batches, "AT_ONCE", at_once * batch_size * images[0].nbytes)
        found = made.epoch(epoch, start)
        assert len(found) == len(batches) - start
        for index, batch in enumerate(found, start):
            assert {device_of(array) for array in batch} == {device_of(made.labels)}
            assert_same([to_numpy(array) for array in batch], batches.batch(epoch, index))
            assert_same(
                [to_numpy(array) for array in made.batch(epoch, index)], map(to_numpy, batch)
            )
    assert made.order(epoch) is made.order(epoch)
    assert repr(made) == repr(batches)


def test_data_too_large_for_a_gpu_stay_where_they_are(gpu, monkeypatch):
    batches = Batches(*numbered(40), 7)
    assert gpu_batches.on_device(batches, "cpu") is batches
    assert isinstance(gpu_batches.on_device(batches, gpu), GpuBatches)
    monkeypatch.setattr(gpu_batches, "SHARE", 1 << 60)
    assert gpu_batches.on_device(batches, gpu) is batches


def test_shifts_belong_to_the_example_not_to_its_place():
    """Nor do they or the order depend on the batch size."""
    make = functools.partial(Batches, *numbered(50), seed=3, max_shift=2)
    whole = make(50)
    for batch_size in (1, 7, 49, 1000):
        for epoch in (0, 5):
            parts = zip(*make(batch_size).epoch(epoch), strict=True)
            assert_same(map(np.concatenate, parts), whole.batch(epoch, 0))
    x, y = whole.batch(4, 0)
    assert_same((x[np.argsort(y)], np.sort(y)), make(50, shuffle=False).batch(4, 0))


def test_seeds_and_epochs_differ():
    images, labels = numbered(200)
    orders = {
        tuple(Batches(images, labels, 8, seed=seed).order(epoch).tolist())
        for seed in (0, 1, 2**63, 2**64 - 1)
        for epoch in (0, 1, 2)
    }
    assert len(orders) == 12
    shifted = Batches(images, labels, 200, max_shift=2, shuffle=False)
    assert (shifted.batch(0, 0)[0] != shifted.batch(1, 0)[0]).any()


def test_orders_and_shifts_are_uniform():
    n, epochs, reach = 400, 25, 2
    images = np.zeros((n, 9, 9, 1), "uint8")
    images[:, 4, 4] = 1  # one lit pixel shows where the image went
    batches = Batches(images, np.arange(n), n, seed=11, max_shift=reach)
    counts = np.zeros((9, 9), int)
    first_half = np.zeros(n, int)  # how often an example came in the first half of an epoch
    for epoch in range(epochs):
        counts += batches.batch(epoch, 0)[0].sum(axis=0, dtype=int)[:, :, 0]
        first_half[batches.order(epoch)[: n // 2]] += 1
    inner = counts[2:7, 2:7]
    assert inner.sum() == counts.sum() == n * epochs
    expected = n * epochs / 25
    assert ((inner - expected) ** 2 / expected).sum() < 52  # chi-square, 24 degrees: p = 0.001
    assert abs(first_half.var() / (epochs / 4) - 1) < 0.25  # binomial: no example is favoured


@pytest.mark.parametrize("change, error", [
    *[({"batch_size": size}, ValueError) for size in (0, -3)],
    *[({"batch_size": size}, TypeError) for size in (2.0, True, None)],
    ({"max_shift": -1}, ValueError), ({"max_shift": 0.5}, TypeError), ({"seed": -1}, ValueError),
    ({"seed": 2**64}, ValueError), ({"seed": "7"}, TypeError),
    ({"labels": np.arange(9)}, ValueError), ({"labels": np.array(3)}, ValueError),
    ({"images": np.zeros((10, 6, 6))}, ValueError),
    ({"images": np.zeros((0, 6, 6, 1)), "labels": np.zeros(0, int)}, ValueError),
])  # fmt: skip
def test_refused_arguments(change, error):
    images, labels = numbered(10)
    with pytest.raises(error, match=f"Batches|{next(iter(change))}"):
        Batches(**({"images": images, "labels": labels, "batch_size": 4} | change))


def test_refused_places():
    batches = Batches(*numbered(10), np.int64(4))
    for name, error, call in (
        ("index", ValueError, lambda: batches.batch(0, -1)),
        ("index", ValueError, lambda: batches.batch(0, 3)),
        ("epoch", ValueError, lambda: batches.order(-1)),
        ("epoch", ValueError, lambda: batches.epoch(-1)),  # at the call, not at the first batch
        ("epoch", TypeError, lambda: batches.order(0.0)),
        ("epoch", TypeError, lambda: batches.epoch(0.0)),
        ("start", ValueError, lambda: batches.epoch(0, 4)),
        (r"which epoch.*batches\.epoch\(0\)", TypeError, lambda: list(batches)),
    ):
        with pytest.raises(error, match=name):
            call()
    epoch = batches.epoch(0)  # for progress bars: of all that comes from its start on
    assert iter(epoch) is epoch and len(epoch) == len(list(epoch)) == 3
    with pytest.raises(ValueError, match=r"over.*batches\.epoch"):  # not silence
        list(epoch)
    assert len(batches.epoch(0, 2)) == 1


# ---- the thread ----------------------------------------------------------------------------


@pytest.fixture
def no_thread_left():
    before = set(threading.enumerate())
    yield before
    gc.collect()
    assert set(threading.enumerate()) <= before


class Watched(Batches):
    """Notes who prepared which batch; can be slow, and fail at one index."""

    def __init__(self, *arguments, fail_at=None, seconds=0.0, **options):
        super().__init__(*arguments, **options)
        self.fail_at, self.seconds, self.prepared, self.threads = fail_at, seconds, [], set()

    def batch(self, epoch, index):
        self.threads.add(threading.current_thread())
        self.prepared.append(index)
        time.sleep(self.seconds)
        if index == self.fail_at:
            raise OSError("the disk is gone")
        return super().batch(epoch, index)


def labels_of(epoch):
    return [labels.tolist() for _, labels in epoch]


def test_one_thread_at_most_two_ahead(no_thread_left):
    batches = Watched(*numbered(40), 4)
    for index, (_, labels) in enumerate(batches.epoch(0)):
        deadline = time.monotonic() + 10
        while len(batches.prepared) < min(index + 3, 10) and time.monotonic() < deadline:
            time.sleep(0.001)  # it works ahead while the caller is busy
        time.sleep(0.002)
        assert len(labels) == 4 and len(batches.prepared) == min(index + 3, 10)
    assert batches.prepared == list(range(10)) and len(batches.threads) == 1
    assert threading.current_thread() not in batches.threads


@pytest.mark.parametrize("fail_at", [0, 1, 4, 9])
def test_an_exception_is_raised_in_its_place(no_thread_left, fail_at):
    met = []
    with pytest.raises(OSError, match="the disk is gone"):
        for _, labels in Watched(*numbered(40), 4, fail_at=fail_at).epoch(0):
            met.append(labels)
    assert len(met) == fail_at
    assert set(threading.enumerate()) == no_thread_left


@pytest.mark.parametrize("how", ["close", "throw", "forget", "unused", "several"])
def test_no_thread_outlives_its_iterator(no_thread_left, how):
    batches = Watched(*numbered(400), 4, seconds=0.01)
    iterators = [batches.epoch(epoch) for epoch in range(4 if how == "several" else 1)]
    if how != "unused":
        list(map(next, iterators))
        assert len(set(threading.enumerate()) - no_thread_left) == len(iterators)
    if how == "throw":
        with pytest.raises(KeyboardInterrupt):
            iterators[0].throw(KeyboardInterrupt)
    elif how == "close":
        iterators[0].close()
    else:
        iterators.clear()
    assert set(threading.enumerate()) == no_thread_left
    assert len(batches.prepared) < 20  # of 100: it did not run to the end first


def test_what_has_not_begun_is_dropped(no_thread_left):
    gate = threading.Event()

    class Gated(Watched):
        def batch(self, epoch, index):
            result = super().batch(epoch, index)
            if index == 1:
                gate.wait(10)
            return result

    batches = Gated(*numbered(40), 4)
    iterator = batches.epoch(0)
    next(iterator)
    opener = threading.Timer(0.3, gate.set)
    opener.start()
    iterator.close()  # waits for batch 1, which is in the making, and drops batch 2
    opener.join()
    assert gate.is_set() and 2 not in batches.prepared


def test_waiting_costs_no_processor_time(no_thread_left):
    iterator = Batches(*numbered(40), 4).epoch(0)
    next(iterator)
    time.sleep(0.02)
    begin = time.process_time()
    time.sleep(0.2)
    assert time.process_time() - begin < 0.05
    iterator.close()


def test_where_no_thread_can_be_started(monkeypatch):
    """As in a browser: a plain loop, in the thread of who asks."""
    expected = labels_of(Batches(*numbered(40), 4).epoch(3))
    refusal = RuntimeError("can't start new thread")
    monkeypatch.setattr(threading.Thread, "start", lambda thread: raises(refusal))
    batches = Watched(*numbered(40), 4)
    assert labels_of(batches.epoch(3)) == expected
    assert batches.prepared == list(range(10))
    assert batches.threads == {threading.current_thread()}


@needs_fork
def test_a_forked_process_goes_on_with_an_epoch():
    batches = Batches(*numbered(40), 4)
    expected, epoch = labels_of(batches.epoch(0)), batches.epoch(0)
    found = [next(epoch)[1].tolist()]

    def rest():
        return found + labels_of(epoch) == expected

    assert forked(rest) == 1 and rest()
