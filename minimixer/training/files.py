"""Files: reading what somebody else made, writing so that nothing is half done, one user at a time.

A name from outside may be that of a pipe that nobody writes to, of a device without an end, or of
a file too large to be meant. `open_file` finds out before a byte is read. `replace_file` writes
beside the old file and renames: a kill at any moment leaves the old one or the new one, whole.
`Lock` keeps two processes from working in one place; it ends with its process, however that ends.

>>> import tempfile
>>> from minimixer.training.files import read_file, replace_file
>>> path = tempfile.mkdtemp() + "/names.txt"
>>> with replace_file(path) as file:
...     _ = file.write(b"cat")
>>> read_file(path)
b'cat'
>>> read_file(path, most=2)
Traceback (most recent call last):
ValueError: it has 3 bytes, more than the 2 that are read of such a file
"""

import contextlib
import errno
import json
import os
import re
import stat
import time
from collections.abc import Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO

from .names import printable

Place = str | os.PathLike[str]  # where a file is
MOST_BYTES = 1 << 36  # a larger file, or a claim of more, is taken for damage: 64 GiB
MOST_TEXT = 1 << 24  # bytes of what is read as text: 16 MiB
MOST_VALUES, MOST_NESTED = 1 << 20, 100  # of a JSON text: "[],[],[]" takes 20 times its size
PACKED, ROOM = 16, 64 << 20  # what unpacks to more than so many times its size, and so much more


def open_file(path: Place, most: int = MOST_BYTES) -> BufferedReader:
    """The file `path`, open for reading bytes. ValueError, whose text does not name it, if it is a
    pipe or a device or has more than `most` bytes; OSError, which names it, if it can't be opened.
    """
    _check_regular(path, os.stat(path))  # before opening, which alone can set a device to work
    file = open(path, "rb", opener=_at_once)  # noqa: SIM115  # the caller closes it
    try:
        status = os.fstat(file.fileno())  # of what was opened in the end
        _check_regular(path, status)
        if status.st_size > most:
            raise ValueError(
                f"it has {status.st_size} bytes, more than the {most} that are read of such a file"
            )
    except BaseException:
        file.close()
        raise
    return file


def read_file(path: Place, most: int = MOST_TEXT) -> bytes:
    """All bytes of the file `path`; errors as those of `open_file`."""
    with open_file(path, most) as file:
        return file.read(os.fstat(file.fileno()).st_size)


def parse_json(data: bytes) -> Any:
    """What a JSON text in UTF-8 says; NaN and Infinity are taken, as Python writes them.

    ValueError for any other text, for a name that comes twice in one object, and for what would
    take a memory or a stack: more than 2^20 values, 100 levels, or 40 digits of a whole number.
    """
    if len(data) > MOST_TEXT:
        raise ValueError(f"a JSON text of {len(data)} bytes, more than {MOST_TEXT}")
    level = 0
    for count, mark in enumerate(_MARKS.finditer(data)):
        level += (data[mark.start()] in b"[{") - (data[mark.start()] in b"]}")
        if level > MOST_NESTED or count > MOST_VALUES:
            most = f"{MOST_NESTED} levels" if level > MOST_NESTED else f"{MOST_VALUES} values"
            raise ValueError(f"a JSON text with more than {most}")
    try:
        return json.loads(data.decode("utf-8"), object_pairs_hook=_no_twins, parse_int=_whole)
    except UnicodeDecodeError:
        raise ValueError("it is no text in UTF-8") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"it is no JSON: {error}") from None


_MARKS = re.compile(rb'"(?:[^"\\]|\\.)*+(?:"|\Z)|[][{},]', re.DOTALL)  # strings hide others


def _no_twins(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in pairs:
        if name in found:
            raise ValueError(f"{printable(name, 80)!r} comes twice in a JSON text")
        found[name] = value
    return found


def _whole(digits: str) -> int:
    if len(digits) > 40:
        raise ValueError(f"a JSON text with a number of {len(digits)} digits")
    return int(digits)


def check_unpacked(claimed: int, packed: int) -> None:
    """ValueError if `packed` bytes claim to hold so many that they were made to fill a memory."""
    if claimed > PACKED * packed + ROOM:
        raise ValueError(
            f"{packed} bytes claim to hold {claimed}; if they should, unpack the file first"
        )


def _at_once(path: str, flags: int) -> int:
    """For open(): of a pipe it would wait for a writer."""
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _check_regular(path: Place, status: os.stat_result) -> None:
    if stat.S_ISDIR(status.st_mode):
        text = "it is a directory; give a file, perhaps one in it"
        raise IsADirectoryError(errno.EISDIR, text, os.fspath(path))
    kinds = {stat.S_ISFIFO: "a pipe", stat.S_ISCHR: "a device", stat.S_ISBLK: "a device",
             stat.S_ISSOCK: "a socket"}  # fmt: skip
    for is_kind, name in kinds.items():
        if is_kind(status.st_mode):
            raise ValueError(f"it is {name}, not a file")


# ---- writing ------------------------------------------------------------------------------------


@contextlib.contextmanager
def replace_file(path: Place) -> Iterator[BinaryIO]:
    """A file to write that takes the name `path` once it is whole; until then, and if the block
    raises, whatever had that name before stays as it was. A new one keeps the old one's mode.

    OSError, with the path, if the disk refuses or the old file may not be written; ValueError if
    the path is a pipe's or a device's.
    """
    path = Path(os.path.realpath(path))  # of a link, the file it leads to
    mode = _mode_of(path)
    temporary = ""
    try:
        with _beside(path) as file:
            temporary = file.name
            if mode is not None and hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), mode)
            yield file
            file.flush()
            os.fsync(file.fileno())  # else the new name can reach the disk before the bytes do
            if os.name != "nt":  # where an open file can't be renamed
                os.replace(temporary, path)
        if os.name == "nt":
            os.replace(temporary, path)
    except OSError as error:
        # A full disk doesn't say where, and nobody knows the temporary name.
        if error.filename is None or _TEMPORARY.search(str(error.filename)):
            raise OSError(error.errno, error.strerror or str(error), str(path)) from None
        raise
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)  # there only if it was not renamed


def _mode_of(path: Path) -> int | None:
    """Of the file that is to be replaced; None if there is none, an error if it may not be."""
    try:
        status = os.stat(path)
        _check_regular(path, status)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ValueError(f"{path} can't be written: {error}") from None
    if not os.access(path, os.W_OK):  # renaming over it would not ask
        raise PermissionError(errno.EACCES, "it may not be written", str(path))
    return stat.S_IMODE(status.st_mode)


_TEMPORARY = re.compile(r"[0-9a-f]{12}\.tmp$")


def _beside(path: Path) -> BinaryIO:
    """A new file beside `path`, as a rename stays on one disk, and of a name of its own, as others
    may write there, too. Held locked; what is not is left of a writer that was killed, and goes."""
    begin = f".{path.name[:40]}."  # 160 bytes at most: a file system takes 255
    with contextlib.suppress(OSError):  # if there is no such directory, opening says so
        for name in os.listdir(path.parent):
            if name.startswith(begin) and _TEMPORARY.fullmatch(name[len(begin) :]):
                _sweep(path.with_name(name))
    while True:
        file = open(path.with_name(f"{begin}{os.urandom(6).hex()}.tmp"), "xb")  # noqa: SIM115
        try:
            _lock(file.fileno())
        except BlockingIOError:  # it is being swept away, in the moment before it was locked
            file.close()
            continue
        except (OSError, ImportError):  # no locks here: then nobody sweeps either
            return file
        if os.path.exists(file.name):
            return file
        file.close()


def _sweep(left: Path) -> None:
    with contextlib.suppress(OSError, ImportError), open(left, "r+b", opener=_at_once) as file:
        _lock(file.fileno())
        left.unlink()


# ---- one at a time ------------------------------------------------------------------------------


class Lock:
    """This process's alone, until `release` or the process's end, even by a kill: the file `path`.

    Advisory: who does not ask for the lock is not kept out. The file stays; only the lock on it
    means anything. `refusal` is None, or why the system has no locks here: then nobody is kept out.
    BlockingIOError if another holds it and `wait` is False; OSError if the file can't be made.
    """

    def __init__(self, path: Place, wait: bool = False):
        self.refusal: str | None = None
        self._file = open(path, "ab", opener=_at_once)  # noqa: SIM115  # open while it is locked
        while True:
            try:
                _lock(self._file.fileno())
                return
            except (BlockingIOError, PermissionError):  # Windows says the second
                if not wait:
                    self._file.close()
                    raise BlockingIOError(f"{os.fspath(path)} is locked") from None
                time.sleep(0.1)
            except (OSError, ImportError) as error:  # some network file systems; some platforms
                self.refusal = str(error)
                return

    def release(self) -> None:
        """Ends it, also for processes that were forked meanwhile, which would go on holding it."""
        with contextlib.suppress(OSError, ImportError, ValueError):  # the last: a second time
            _lock(self._file.fileno(), False)
        self._file.close()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(self, *_: object) -> None:
        self.release()


def _lock(descriptor: int, lock: bool = True) -> None:
    try:
        import fcntl
    except ImportError:
        import msvcrt  # Windows

        mode = msvcrt.LK_NBLCK if lock else msvcrt.LK_UNLCK  # type: ignore[attr-defined]
        msvcrt.locking(descriptor, mode, 1)  # type: ignore[attr-defined]
    else:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB if lock else fcntl.LOCK_UN)
