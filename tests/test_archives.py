"""Archives of arrays, the .npz files of checkpoints and of others: how they are read, and what is
damaged or hostile in them."""

import contextlib
import itertools
import struct
import warnings
import zipfile

import numpy as np
import pytest
from files_help import assert_refused, header, members, npy, npy_with, pack

from minimixer import Mixer
from minimixer.training.checkpoint import load_model
from minimixer.training.files import open_file
from minimixer.training.npz import Npz


def read_npz(path) -> dict:
    with open_file(path) as file:
        return dict(Npz(file))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "checkpoint.npz"


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
@pytest.mark.parametrize("dtype", ["<f2", "<f4", "<f8", ">f2", ">f4", ">f8", "|u1"])
def test_arrays_of_other_machines_and_orders(path, dtype, method):
    array = np.arange(24).reshape(2, 3, 4).astype(dtype)
    wanted = {"c": array, "fortran": np.asfortranarray(array), "one": array[:1, 0, 0],
              "number": array[1, 1, 1], "empty": array[:0],
              "64 axes": array.reshape((1,) * 61 + (2, 3, 4))}  # fmt: skip
    found = read_npz(pack(path, {k: npy(a) for k, a in wanted.items()}, method))
    assert list(found) == list(wanted)
    for name, expected in wanted.items():
        assert found[name].dtype == np.dtype(dtype).newbyteorder("=") and found[name].dtype.isnative
        assert found[name].shape == np.shape(expected) and (found[name] == expected).all()


def test_members_are_read_when_they_are_asked_for(path):
    with open_file(pack(path, {"good": npy(np.ones(3)), "bad\x1b": b"nonsense"})) as file:
        arrays = Npz(file)
        assert len(arrays) == 2 and "good" in arrays and "other" not in arrays
        assert arrays["good"].tolist() == [1, 1, 1]
        with pytest.raises(ValueError, match=r"bad\\x1b: not an array of plain numbers"):
            arrays["bad\x1b"]
        with pytest.raises(KeyError):
            arrays["other"]
    methods = zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED
    for method, count in itertools.product(methods, (0, 3, 9999)):
        data = bytearray(pack(path, {"a": npy(np.arange(count) / 7)}, method).read_bytes())
        data[next(directory_entries(bytes(data))) + 16] ^= 1  # the checksum
        path.write_bytes(data)
        with pytest.raises(ValueError, match="a: Bad CRC"):
            read_npz(path)


def test_a_small_file_does_not_become_a_large_one(path):
    """Neither by what members claim, nor by what they hold and do not claim."""
    for size, packing, lies, said in (
        (50 << 20, zipfile.ZIP_BZIP2, True, "packed in another way"),
        (50 << 20, zipfile.ZIP_LZMA, True, "packed in another way"),
        (300 << 20, zipfile.ZIP_DEFLATED, False, "claim to hold"),
        (300 << 20, zipfile.ZIP_DEFLATED, True, "meta: "),
    ):
        content = pack(path, {"meta.npy": bytes(size)}, packing).read_bytes()
        claim = (100 if lies else size).to_bytes(4, "little")
        path.write_bytes(content.replace(size.to_bytes(4, "little"), claim))
        assert_refused(path, load_model, said, megabytes=4)


def test_a_list_of_members_without_an_end(path):
    with open(path, "wb") as file:
        file.write(b"PK\x03\x04")
        file.seek((1 << 32) - 100)
        file.write(end_record(65535, (1 << 32) - 200, 4))
    assert_refused(path, load_model, "list of members")


# ---- the archive itself --------------------------------------------------------------------------


def directory_entries(content):
    """Where each entry of the directory begins, in an archive without a comment."""
    start = content.index(b"PK\x01\x02")
    while content[start : start + 4] == b"PK\x01\x02":
        lengths = struct.unpack_from("<HHH", content, start + 28)
        yield start
        start += 46 + sum(lengths)


def end_record(entries, size, start):
    return struct.pack("<4s4H2IH", b"PK\x05\x06", 0, 0, entries, entries, size, start, 0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The members of a checkpoint, and of a file of the authors' layout."""
    folder, model = tmp_path_factory.mktemp("whole"), Mixer(4, 2, 1, 4, 2, 4, num_classes=3)
    model.save(folder / "own")
    model.export(folder / "authors", "npz")
    return members(folder / "own"), members(folder / "authors")


@pytest.fixture
def content(whole):
    return whole[0]


@pytest.mark.parametrize("field", ["both sizes", "size", "packed size", "offset"])
@pytest.mark.parametrize("claim", [10**6, 2**31 - 2, 2**32 - 2])
@pytest.mark.parametrize("which", [0, 1, -1])
def test_a_directory_that_lies(path, content, field, claim, which):
    """Members that claim to be larger than the file, or to begin elsewhere."""
    data = bytearray(pack(path, content).read_bytes())
    entry = list(directory_entries(bytes(data)))[which]
    for place in {"both sizes": [20, 24], "size": [24], "packed size": [20], "offset": [42]}[field]:
        struct.pack_into("<I", data, entry + place, claim)
    path.write_bytes(data)
    assert_refused(path)


@pytest.mark.parametrize("claim", [10**6, 2**40, 2**62, 2**63 - 1, 2**63, 2**64 - 1])
@pytest.mark.parametrize("field, place", [("size", 24), ("packed size", 20), ("offset", 42)])
def test_a_directory_that_lies_in_64_bits(path, field, place, claim):
    """The zip64 extension: 8-byte fields."""
    data = pack(path, {"meta.npy": npy(np.zeros(3, np.uint8))}).read_bytes()
    (start,) = directory_entries(data)
    entry = bytearray(data[start : data.index(b"PK\x05\x06")])
    struct.pack_into("<I", entry, place, 0xFFFFFFFF)
    struct.pack_into("<H", entry, 30, 12)
    entry += struct.pack("<HHQ", 1, 8, claim)
    path.write_bytes(data[:start] + entry + end_record(1, len(entry), start))
    assert_refused(path)


def assert_refused_with(path, entry, count=1):
    """The archive at that path, after the entry is added to its directory so many times."""
    data = path.read_bytes()
    entries = list(directory_entries(data))
    directory = data[entries[0] : data.rindex(b"PK\x05\x06")] + entry * count
    end = end_record(len(entries) + count, len(directory), entries[0])
    path.write_bytes(data[: entries[0]] + directory + end)
    assert_refused(path)


def last_entry(data):
    *_, start = directory_entries(data)
    return data[start : data.rindex(b"PK\x05\x06")]


def test_overlapping_members(path, content):
    """A thousand entries of the directory that all mean the same megabyte."""
    pack(path, content | {"weights/more.npy": npy(np.zeros(1 << 20, np.uint8))})
    assert_refused_with(path, last_entry(path.read_bytes()), 1000)


def test_members_within_members(path, content):
    """An entry that begins within the data of another one."""
    inner = pack(path, {"weights/inner.npy": npy(np.zeros(9, np.uint8))}).read_bytes()
    outer = {"outer.npy": npy(np.frombuffer(inner, np.uint8))}
    data, entry = pack(path, content | outer).read_bytes(), bytearray(last_entry(inner))
    struct.pack_into("<I", entry, 42, data.index(b"PK\x03\x04", data.index(b"outer.npy")))
    assert_refused_with(path, bytes(entry))


@pytest.mark.parametrize("name", ["meta.npy", "weights/head.bias.npy", "meta", "weights/head.bias"])
def test_names_that_come_twice(path, content, name):
    """Which of the two would count? With and without .npy they are the same name."""
    with zipfile.ZipFile(pack(path, content), "a") as archive, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # zipfile warns of what is done here on purpose
        archive.writestr(name, content[name.removesuffix(".npy") + ".npy"])
    for read in (load_model, Mixer.from_pretrained):
        assert_refused(path, read)


@pytest.mark.parametrize("name", ["../evil.npy", "/tmp/evil.npy", "weights/../../evil.npy", "/"])
def test_names_that_point_elsewhere(tmp_path, content, name, monkeypatch):
    below = tmp_path / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    path = pack(below / "checkpoint.npz", content | {name: npy(np.zeros(3, np.uint8))})
    before = sorted(tmp_path.rglob("*"))
    for read in (load_model, Mixer.from_pretrained):
        if name.startswith("weights/"):
            assert_refused(path, read)
        else:
            with contextlib.suppress(ValueError):
                read(path)
    assert sorted(tmp_path.rglob("*")) == before


# ---- arrays -------------------------------------------------------------------------------------


def claiming(shape, size=0, *rest, order="False", **options):
    """An array of that header, and so many bytes."""
    return npy_with(header(shape, *rest, order=order), bytes(size), **options)


def under(text):
    return npy_with(text, bytes(12))


BAD_ARRAYS = {
    "2^62 elements": claiming(f"({1 << 62},)", 12), "10^30 elements": claiming(f"({10**30}, )", 12),
    "10^30 times 0": claiming(f"({10**30}, 0)"), "2^62 times 0": claiming(f"({1 << 62}, 0)"),
    "2^62 times 2^62 times 0": claiming(f"({1 << 62}, {1 << 62}, 0)"),
    "-1": claiming("(-1,)", 12), "-3": claiming("(-3,)", 12),
    "-1 times -3": claiming("(-1, -3)", 12), "-1 times 0": claiming("(-1, 0)"),
    "65 dimensions": claiming("(" + "1, " * 64 + "3)", 12),
    "too short": claiming("(3,)", 11), "too long": claiming("(3,)", 13),
    "other shape": claiming("(4,)", 16), "2-dimensional": claiming("(3, 1)", 12),
    "0-dimensional": claiming("()", 4), "empty": claiming("(0,)"),
    "shape is a list": claiming("[3]", 12), "shape of strings": claiming("('3',)", 12),
    "shape of floats": claiming("(3.0,)", 12), "shape of lists": claiming("([3],)", 12),
    "shape is None": claiming("None", 12),
    "object": claiming("(3,)", 24, "'|O'"), "strings": claiming("(3,)", 12, "'<U1'"),
    "huge strings": claiming("(3,)", 12, "'<U999999999'"),
    "dates": claiming("(3,)", 24, "'<M8[ns]'"), "int64": claiming("(3,)", 24, "'<i8'"),
    "float16": claiming("(3,)", 6, "'<f2'"), "complex": claiming("(3,)", 24, "'<c8'"),
    "fields": claiming("(3,)", 12, "[('a', '<f4')]"),
    "fields with objects": claiming("(3,)", 24, "[('a', '|O')]"),
    "subarrays": claiming("(1,)", 12, "('<f4', (3,))"),
    "huge subarrays": claiming("(1,)", 12, f"('<f4', ({1 << 40},))"),
    "no such type": claiming("(3,)", 12, "'<f5'"), "type is None": claiming("(3,)", 24, "None"),
    "type is a number": claiming("(3,)", 24, "17"),
    "type is a dict": claiming("(3,)", 24, "{'names': 5}"),
    "type is an empty tuple": claiming("(3,)", 24, "()"),
    "type is an odd list": claiming("(3,)", 24, "[('a',)]"),
    "type is a call": claiming("(3,)", 12, "__import__('os')"),
    "Fortran order, too short": claiming("(3, 2)", 12, order="True"),
    "order is a word": claiming("(3,)", 12, order="'no'"),
    "version 2": claiming("(3,)", 12, version=(2, 0)),
    "version 3": claiming("(3,)", 12, version=(3, 0)),
    "version 9": claiming("(3,)", 12, version=(9, 9)),
    "no header": b"\x93NUMPY\x01\x00", "half a length": b"\x93NUMPY\x01\x00v", "nothing": b"",
    "other magic": b"\x93NUMPX" + npy(np.zeros(3, np.float32))[6:], "no array": b"hello",
    "header is longer": claiming("(3,)", 12, length=65535),
    "header is cut": claiming("(3,)", 12, length=20),
    "header is very long": under(header("(3,)") + " " * 20_000),
    "header is empty": under(""), "header is zeros": under(bytes(60)),
    "header is not closed": under("{'descr': '<f4', "),
    "header is not closed, a string": under("{'descr': '''<f4"),
    "header is indented": under("  {\n 1\n"),
    "header is indented oddly": under("if 1:\n    2\n  3\n"),
    "header is nested": under("(" * 150 + ")" * 150),
    "header is deeply nested": under("(" * 4900 + ")" * 4900),
    "header has many signs": under("-" * 9000 + "1"),
    "header has an unhashable key": under("{[]: 1}"),
    "header has mixed keys": under("{'descr': '<f4', 1: 2, None: 3}"),
    "header lacks a key": under("{'descr': '<f4', 'shape': (3,)}"),
    "header has a key more": under(header("(3,), 'x': 1")), "header is a list": under("[1]"),
    "header is a call": under("__import__('os').mkdir('called')"),
    "header of Python 2": under(header("(3L,)")), "header is latin-1": under("\xff\xfe"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD_ARRAYS)
def test_bad_arrays(path, whole, kind):
    content, authors = whole
    for name in ("weights/head.bias.npy", "meta.npy"):
        assert_refused(pack(path, content | {name: BAD_ARRAYS[kind]}))
    assert "head/bias.npy" in authors
    if kind != "float16":  # which only a checkpoint may not hold
        pack(path, authors | {"head/bias.npy": BAD_ARRAYS[kind]})
        assert_refused(path, Mixer.from_pretrained)
