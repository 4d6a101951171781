"""Files: what is opened, how a text of JSON and an archive are read, writers that race, locks."""

import errno
import functools
import importlib.util
import itertools
import multiprocessing
import os
import resource
import socket
import stat
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir
from pathlib import Path

import mutations
import numpy as np
import pytest
from files_help import assert_refused
from help import raises
from minimixer.data import load_directory

from minimixer import Mixer
from minimixer.kernels.gpu import plans
from minimixer.training import files
from minimixer.training.files import Lock, check_unpacked, open_file, read_file, replace_file
from minimixer.training.idx import read_idx, write_idx

fcntl = pytest.importorskip("fcntl", reason="pipes, devices and locks as Unix has them")


# ---- what is opened -----------------------------------------------------------------------------

NO_FILES = ("pipe", "endless device", "socket", "directory", "gone", "dangling", "loop",
            "in a file")  # fmt: skip


def make_no_file(folder: Path, kind: str) -> Path:
    """Something that is no regular file."""
    path = folder / "x"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "endless device":
        path.symlink_to("/dev/zero")
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as listening, chdir(folder):
            listening.bind("x")  # its name has 107 bytes at most
    elif kind == "directory":
        path.mkdir()
    elif kind == "dangling":
        path.symlink_to(folder / "nothing")
    elif kind == "loop":
        path.symlink_to(path)
    elif kind == "in a file":
        path.write_bytes(b"")
        path = path / "y"
    return path


READERS = {
    "open_file": open_file, "read_file": read_file, "read_idx": read_idx, "load": Mixer.load,
    "from_pretrained": Mixer.from_pretrained, "class names": mutations.read_names,
    "ReaL": mutations.read_real, "cifar": mutations.read_cifar,
}  # fmt: skip


@pytest.mark.parametrize("reader", READERS)
@pytest.mark.parametrize("kind", NO_FILES)
def test_only_regular_files_are_read(tmp_path, kind, reader):
    path = make_no_file(tmp_path, kind)
    began = time.perf_counter()
    with pytest.raises((ValueError, OSError)) as caught:
        READERS[reader](path)
    assert time.perf_counter() - began < 2
    said = {"pipe": "a pipe", "endless device": "a device", "socket": "a socket"}.get(kind)
    assert isinstance(caught.value, ValueError if said else OSError)
    assert said is None or f"it is {said}, not a file" in str(caught.value)
    assert str(path) in str(caught.value) or reader in ("open_file", "read_file")


@pytest.mark.parametrize("kind", ["pipe", "endless device", "directory"])
def test_data_sets_are_of_regular_files(tmp_path, kind):
    path, folder = make_no_file(tmp_path, kind), tmp_path / "set"
    folder.mkdir()
    for split, part in itertools.product(("train", "t10k"), ("images-idx3", "labels-idx1")):
        (folder / f"{split}-{part}-ubyte").symlink_to(path)
    with pytest.raises((ValueError, OSError), match=r"train-(images|labels)"):
        load_directory(folder)


def test_a_file_at_the_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"12345")
    assert read_file(tmp_path / "x", most=5) == b"12345"
    with pytest.raises(ValueError, match="it has 5 bytes, more than the 4"):
        read_file(tmp_path / "x", most=4)
    with open(tmp_path / "large", "wb") as file:
        file.truncate(files.MOST_BYTES + 1)  # a hole: it takes no disk
    with pytest.raises(ValueError, match="more than the 68719476736"):
        Mixer.load(tmp_path / "large")
    assert check_unpacked(files.PACKED * 7 + files.ROOM, 7) is None
    with pytest.raises(ValueError, match="7 bytes claim to hold"):
        check_unpacked(files.PACKED * 7 + files.ROOM + 1, 7)


def test_a_link_and_names_of_any_bytes(tmp_path):
    link = tmp_path / "link"
    for name in ("a", "n" * 255, os.fsdecode(b"caf\xe9 \xff"), "🐚" * 63, "\x1b[31m", " "):
        link.symlink_to(tmp_path / name)
        for content in (name.encode(errors="surrogateescape"), b"new"):  # the first makes it
            with replace_file(link) as file:
                file.write(content)
            assert link.is_symlink() and read_file(tmp_path / name) == read_file(link) == content
        link.unlink()
    assert len(os.listdir(tmp_path)) == 6
    with pytest.raises(OSError) as caught, replace_file(tmp_path / ("n" * 256)):
        pass
    assert caught.value.errno == errno.ENAMETOOLONG and "n" * 256 in str(caught.value)
    with replace_file(Path(os.fsdecode(os.fsencode(tmp_path) + b"/\xff"))) as file:
        file.write(b"x")


# ---- texts of JSON ------------------------------------------------------------------------------


@pytest.mark.parametrize("text, value", [
    ('{"a": [1, 2.5, "\\"[[[[", null, true]}', {"a": [1, 2.5, '"[[[[', None, True]}),
    ("[" * 100 + "]" * 100, None), (str(10**39), 10**39), ("[1e999, -Infinity]", None),
    ('"' + "[" * 1000 + '"', "[" * 1000), ('{"a": {"a": 1}}', {"a": {"a": 1}}),
    ("[" + "0," * (files.MOST_VALUES - 1) + "0]", None),
])  # fmt: skip
def test_texts_of_json(text, value):
    found = files.parse_json(text.encode())
    assert value is None or found == value


@pytest.mark.parametrize("text, said", [
    ("[" * 101 + "]" * 101, "more than 100 levels"), ("[" * 200_000, "more than 100 levels"),
    ('{"a":' * 101 + "1" + "}" * 101, "more than 100 levels"),
    ("[" + "0," * files.MOST_VALUES + "0]", "more than 1048576 values"),
    (" " * (files.MOST_TEXT + 1), "bytes, more than 16777216"),
    (str(10**40), "41 digits"), ("-" + "1" * 5000, "5001 digits"),
    ('{"a": 1, "b": 2, "a": 1}', "'a' comes twice"),
    ('{"\\u001b": 1, "\\u001b": 1}', r"x1b' comes twice"), ('[{"a": 1, "a": 1}]', "comes twice"),
    ("", "no JSON"), ("{", "no JSON"), ('"\\', "no JSON"), ("[1] 2", "no JSON"),
    ("\x00", "no JSON"), (b"\xff", "UTF-8"), (b'"\xed\xa0\x80"', "UTF-8"),
])  # fmt: skip
def test_other_texts(text, said):
    with pytest.raises(ValueError, match=said):
        files.parse_json(text if isinstance(text, bytes) else text.encode())


@pytest.mark.slow
def test_a_text_that_would_fill_a_memory_or_take_for_ever():
    for text in (
        b"[" + b"[]," * 2_500_000 + b"0]", b'"' + b'\\"' * 4_000_000, b'{"a":' * 1_500_000,
        b"{" + b",".join(b'"%d":0' % n for n in [*range(250_000), 249_999]) + b"}",
    ):  # fmt: skip
        began = time.process_time()
        with pytest.raises(ValueError):
            files.parse_json(text)
        assert time.process_time() - began < 2
        read = functools.partial(files.parse_json, text)  # of no file
        assert_refused("", lambda path, read=read: read(), seconds=60, megabytes=100)


@pytest.mark.parametrize("text", [
    "", "{", "[]", "5", "null", "\xff", "[" * 200_000, '{"a": 0, "a": 1}', '{"a": ' + "9" * 5000,
    '{"a": [0], "b": "1", "c": -1, "d": 99, "e": true, "f": 1e999, "g": null}',
])  # fmt: skip
def test_choices_of_cublas(tmp_path, text, monkeypatch):
    """A damaged file is as none: they are timed anew, and written over it."""
    path = tmp_path / "choices"
    path.write_text(text, encoding="latin-1")
    assert plans.read_choices(path) == {}
    (tmp_path / "pipe").symlink_to("/dev/zero")
    assert plans.read_choices(tmp_path / "pipe") == plans.read_choices(tmp_path) == {}
    path.write_text('{"a": 1, "b": "x"}', encoding="utf-8")
    for place in (path, path / "none"):  # the second without a word
        monkeypatch.setattr(plans, "choices", lambda device, place=place: (place, {"c": 2}))
        assert plans.remember(0, "d", 3) == 3
    assert plans.read_choices(path) == {"a": 1, "c": 2, "d": 3}
    monkeypatch.setattr(plans, "choices", lambda device: (path, {}))  # of a process beside it
    assert plans.remember(0, "d", 5) == 3 and plans.remember(0, "e", 5) == 5
    assert plans.read_choices(path) == {"a": 1, "c": 2, "d": 3, "e": 5}


# ---- writers ------------------------------------------------------------------------------------


def write_often(path: Path, who: int, times: int) -> None:
    for number in range(times):
        with replace_file(path) as file:
            file.write(f"{who} {number}\n".encode() * 2000)


def check_whole(content: bytes) -> None:
    lines = content.splitlines()
    assert len(lines) == 2000 and set(lines) == {lines[0]}


def test_threads_and_processes_save_to_one_path(tmp_path, monkeypatch):
    """Each time the file is one writer's, whole; nobody's temporary file is taken away by another,
    although each of them looks for what killed ones have left."""
    path = tmp_path / "checkpoint"
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=write_often, args=(path, 100 + n, 30)) for n in range(3)]
    for process in processes:
        process.start()
    with ThreadPoolExecutor(8) as pool:
        written = [pool.submit(write_often, path, who, 30) for who in range(8)]
        while not all(w.done() for w in written) or any(p.is_alive() for p in processes):
            if path.exists():
                check_whole(read_file(path))
    for process in processes:
        process.join()
    assert not any(w.exception() for w in written) and not any(p.exitcode for p in processes)
    assert os.listdir(tmp_path) == ["checkpoint"]
    check_whole(read_file(path))


def test_what_is_swept_is_ours_and_dead(tmp_path):
    path = tmp_path / "a"
    others = [".a.notes.tmp", ".a.0123456789ab.tmp.txt", ".ab.0123456789ab.tmp", "a.tmp", "a.0.tmp"]
    for name in [*others, ".a.0123456789ab.tmp"]:
        (tmp_path / name).write_bytes(b"x")
    with replace_file(path) as file:
        file.write(b"outer")
        file.flush()
        with replace_file(path) as other:  # which leaves the first one's alone
            other.write(b"inner")
        assert read_file(path) == b"inner"
    assert read_file(path) == b"outer"
    assert sorted(os.listdir(tmp_path)) == sorted([*others, "a"])


@pytest.mark.parametrize("mode", [0o600, 0o644, 0o640, 0o755])
def test_the_mode_is_kept(tmp_path, mode):
    (tmp_path / "a").touch()
    (tmp_path / "a").chmod(mode)
    old = os.umask(0o027)
    try:
        for name, wanted in (("a", mode), ("fresh", 0o640)):
            with replace_file(tmp_path / name):
                pass
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == wanted
    finally:
        os.umask(old)


def test_a_file_that_may_not_be_written_is_not_replaced(tmp_path, monkeypatch):
    path = tmp_path / "a"
    path.write_bytes(b"old")
    path.chmod(0o444)
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # as of everyone but root
    with pytest.raises(PermissionError) as caught, replace_file(path):
        pass
    assert str(path) in str(caught.value) and read_file(path) == b"old"
    for device in ("/dev/null", "/dev/full", "/dev/zero"):
        with pytest.raises(ValueError, match=f"{device} can't be written: it is a device"):
            mutations.small_model().save(device)
        assert stat.S_ISCHR(os.stat(device).st_mode)


WRITERS = (
    Mixer.save, lambda model, path: model.export(path, "npz"),
    lambda model, path: model.export(path, "timm"),
    lambda model, path: write_idx(path, np.zeros(300_000, "uint8")),
)  # fmt: skip


@pytest.mark.filterwarnings("ignore:loaders of", "ignore:.*GELU")
@pytest.mark.parametrize("kind", [k for k in NO_FILES if k not in ("gone", "dangling")])
def test_nothing_but_files_is_replaced(tmp_path, kind):
    path, before = make_no_file(tmp_path, kind), sorted(os.listdir(tmp_path))
    for write in WRITERS:
        with pytest.raises((ValueError, OSError)) as caught:
            write(mutations.small_model(), path)
        real = os.path.realpath(path)
        assert str(path) in str(caught.value) or real in str(caught.value)
    assert sorted(os.listdir(tmp_path)) == before


def test_a_directory_that_is_not_there_or_vanishes(tmp_path):
    path = tmp_path / "gone" / "checkpoint.npz"
    for there in (False, True):
        if there:
            path.parent.mkdir()
        with pytest.raises(FileNotFoundError) as caught, replace_file(path) as file:
            os.unlink(file.name)
            path.parent.rmdir()
        assert str(path) in str(caught.value) and ".tmp" not in str(caught.value)


@pytest.mark.filterwarnings("ignore:loaders of", "ignore:.*GELU")
@pytest.mark.parametrize("room", [0, 100, 4096, "all but a byte"])
def test_a_full_disk_is_named(tmp_path, room):
    """The limit on the size of a file makes the kernel refuse the write, as a full disk does."""
    path, model = tmp_path / "a", mutations.small_model()
    model.save(path)
    before = path.read_bytes()
    _, hard = limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    for write in WRITERS:
        write(model, path)
        most = room if isinstance(room, int) else path.stat().st_size - 1
        path.write_bytes(before)
        resource.setrlimit(resource.RLIMIT_FSIZE, (most, hard))
        try:
            with pytest.raises(OSError, match="too large") as caught:
                write(model, path)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        assert caught.value.errno == errno.EFBIG and str(path) in str(caught.value)
        assert path.read_bytes() == before and os.listdir(tmp_path) == ["a"]


# ---- locks --------------------------------------------------------------------------------------


def hold(path, connection):
    with Lock(path):
        connection.send("held")
        time.sleep(60)


def test_a_lock_keeps_others_out_and_dies_with_its_process(tmp_path):
    path, (ours, theirs) = tmp_path / ".lock", multiprocessing.Pipe()
    holder = multiprocessing.get_context("spawn").Process(target=hold, args=(path, theirs))
    holder.start()
    try:
        assert ours.recv() == "held"
        for _ in range(2):
            with pytest.raises(BlockingIOError, match=r"\.lock is locked"):
                Lock(path)
    finally:
        holder.kill()
        holder.join()
    with Lock(path) as lock:
        assert lock.refusal is None
        with pytest.raises(BlockingIOError):  # from this process, too
            Lock(path)
    Lock(path).release()
    assert path.exists()


def test_waiting_for_a_lock(tmp_path):
    first = Lock(tmp_path / "lock")
    timer = threading.Timer(0.3, first.release)
    began = time.perf_counter()
    timer.start()
    with Lock(tmp_path / "lock", wait=True):
        assert 0.25 < time.perf_counter() - began < 20
    timer.join()
    first.release()  # a second time is no harm
    with pytest.raises(FileNotFoundError):
        Lock(tmp_path / "gone" / "lock")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError):  # and not for ever
        Lock(tmp_path / "pipe")


def test_a_released_lock_is_not_held_by_forked_processes(tmp_path):
    lock = Lock(tmp_path / "lock")
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(30,))
    child.start()
    try:
        lock.release()
        Lock(tmp_path / "lock").release()
    finally:
        child.kill()
        child.join()


@pytest.mark.parametrize("who, refusal", [("file system", "No locks"), ("platform", "msvcrt")])
def test_without_locks(tmp_path, monkeypatch, who, refusal):
    """Files are written as ever, and nobody is kept out; what killed writers leave stays."""
    if who == "platform":
        for module in ("fcntl", "msvcrt"):
            monkeypatch.setitem(sys.modules, module, None)
    else:
        refusal_of_all = OSError(errno.ENOLCK, "No locks available")
        monkeypatch.setattr(fcntl, "flock", lambda *arguments: raises(refusal_of_all))
    (tmp_path / ".a.0123456789ab.tmp").write_bytes(b"somebody's, perhaps")
    write_often(tmp_path / "a", 1, 3)
    check_whole(read_file(tmp_path / "a"))
    assert sorted(os.listdir(tmp_path)) == [".a.0123456789ab.tmp", "a"]
    with Lock(tmp_path / "lock") as one, Lock(tmp_path / "lock") as other:
        assert refusal in one.refusal and refusal in other.refusal


# ---- mutants ------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [50, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.parametrize("part", range(3))  # to start a process takes longer than 50 mutants
def test_mutants_load_or_are_refused(part, count):
    every = list(mutations.KINDS)[part::3]
    kinds = [kind for kind in every if has_library(kind)]
    for kind, found in zip(kinds, mutations.in_a_process(kinds, count, seed=0), strict=True):
        assert found["failures"] == [] and found["peak"] < mutations.MOST_MEGABYTES, kind
        assert found["loaded"] + found["refused"] == count, kind
    if len(kinds) < len(every):
        pytest.skip(f"no library for {', '.join(kind for kind in every if kind not in kinds)}")


def has_library(kind):
    library = "PIL" if "picture" in kind else "safetensors" if kind == "safetensors" else "numpy"
    return importlib.util.find_spec(library) is not None


def test_the_tool_notices(monkeypatch):
    """Else its silence would mean nothing."""

    def read(path):
        data = path.read_bytes()
        if data[:1] == b"b":
            raise KeyError("b")
        if data[:1] == b"c":
            raise ValueError("it does not say which file")
        return data[:1]

    kind = mutations.Kind(lambda: b"aaaa", read, lambda whole, rng: rng.choice([b"b", b"c"]), True)
    monkeypatch.setitem(mutations.KINDS, "wrong", kind)
    failures = " ".join(wrong for _, wrong in mutations.run_kind("wrong", 200, 0)["failures"])
    assert "KeyError" in failures and "not named" in failures and "something else" in failures
