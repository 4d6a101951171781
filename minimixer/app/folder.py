"""A folder that a command writes: nothing of others in it is overwritten.

A file in it, MARK, says which command wrote it. The same command may write it again; every other
folder that is not empty is refused, whatever is in it. So is a link where a file or a folder is to
be written: it may lead out of the folder, to what is somebody's.

>>> import tempfile
>>> from pathlib import Path
>>> from minimixer.app.folder import check_folder, write_folder
>>> with tempfile.TemporaryDirectory() as folder:
...     write_folder(Path(folder, "site"), "book", {"index.html": b"<p>"})
...     check_folder(Path(folder, "site"), "book")            # again: no error
...     print(sorted(path.name for path in Path(folder, "site").iterdir()))
['.minimixer-book', 'index.html']
"""

from pathlib import Path

from ..training.files import replace_file
from ..training.names import printable


def mark(command: str) -> str:
    """The name of the file that says so."""
    return f".minimixer-{command}"


def check_folder(out: Path, command: str) -> None:
    """ValueError unless `out` is new, empty, or a folder that this command wrote."""
    if out == Path():
        raise ValueError("--out needs the name of a folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"--out {printable(out)} is a file; name a folder")
    if out.is_dir() and any(out.iterdir()) and not (out / mark(command)).is_file():
        raise ValueError(
            f"--out {printable(out)} holds other things; name a new or an empty folder"
        )


def write_folder(out: Path, command: str, files: dict[str, bytes]) -> None:
    """All files, each whole or not at all: {name, "draw/index.html" say: its bytes}. Errors of
    check_folder; ValueError if a link is in the way, OSError if the disk refuses."""
    check_folder(out, command)
    files = {mark(command): f"python -m minimixer {command}\n".encode(), **files}
    names = {part for name in map(Path, files) for part in (name, *name.parents)} - {Path()}
    for path in (out / name for name in sorted(names)):
        if path.is_symlink():
            raise ValueError(
                f"{printable(path)} is a link, which may lead to others' files; remove it first"
            )
    for name, data in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as file:
            file.write(data)
