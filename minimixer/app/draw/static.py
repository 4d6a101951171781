"""The page's files, and the page without a server: it runs minimixer in the reader's browser.

    index.html, style.css, pad.js, ...   the page that the server shows
    example.js                           what is to be seen of the drawing it starts with
    package.js                           the package and the models: a zip archive as text

The browser fetches Python and NumPy for WebAssembly, from the address and of the version that
ask.js names, once the reader clicks; then `look.py` runs there as it does here. The zip archive is
in a script because a page that is opened from disk may load scripts, but no other files. It has the
rooms that a forward and a backward pass need: fast forms, other people's weights and several
processes stay at home.

    from pathlib import Path
    from minimixer.app.draw import load_models
    from minimixer.app.draw.static import write_page
    write_page(Path("site"), load_models(["digits"]))     # bytes written
"""

import base64
import io
import json
import tempfile
import zipfile
from importlib import resources
from pathlib import Path

from ...model.mixer import Mixer
from ..folder import check_folder, write_folder
from . import example
from .look import about, answer, ready

PACKAGE = Path(__file__).parents[2]
SCRIPTS = "pad.js", "ask.js", "pictures.js", "draw.js"
FILES = {
    "/": ("index.html", "text/html; charset=utf-8"),
    "/style.css": ("style.css", "text/css; charset=utf-8"),
    **{f"/{name}": (name, "text/javascript; charset=utf-8") for name in SCRIPTS},
}
SIDE = 140  # pixels of the example, each way: as many as the pad sends
ROOMS = "engine", "nn", "model", "training", "pictures", "app"


def write_page(folder: Path, models: dict[str, Mixer]) -> int:
    """Write the page into `folder`, which is made if need be; how many bytes it has. ValueError if
    others' files are there, OSError if the disk refuses."""
    check_folder(folder, "draw")
    files = page_files(models)
    write_folder(folder, "draw", files)
    return sum(map(len, files.values()))


def page_files(models: dict[str, Mixer], home: str = "") -> dict[str, bytes]:
    """{name: bytes} of the page that needs no server; with a link to `home`, the book's start."""
    files = {name: page_file(name) for name, _ in FILES.values()}
    here = b'data-where="server"'
    assert here in files["index.html"]
    files["index.html"] = files["index.html"].replace(here, b'data-where="browser"')
    if home:
        link = f'<header>\n  <p id="home"><a href="{home}">← minimixer, the book</a></p>'
        files["index.html"] = files["index.html"].replace(b"<header>", link.encode(), 1)
    ink = example.ink(SIDE)
    question = {"side": SIDE, "ink": base64.b64encode(ink.tobytes()).decode(),
                "model": len(models) - 1}  # fmt: skip
    shown = json.dumps({"about": about(models), "answer": answer(models, question)})
    files["example.js"] = f"const SHOWN = {shown};\n".encode()
    text = base64.b64encode(archive(models)).decode()
    files["package.js"] = f'var MINIMIXER_ZIP = "{text}";\n'.encode()
    return files


def page_file(name: str) -> bytes:
    """A file of the page, as it comes with the package."""
    return (resources.files(__package__) / "page" / name).read_bytes()


def archive(models: dict[str, Mixer]) -> bytes:
    """A zip archive of the package's .py files, and of the models for `read_models`."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as whole:
        paths = [*PACKAGE.glob("*.py"), *(p for r in ROOMS for p in (PACKAGE / r).rglob("*.py"))]
        for path in sorted(paths):
            whole.write(path, f"minimixer/{path.relative_to(PACKAGE).as_posix()}")
        whole.writestr("models/names.json", json.dumps(list(models)))
        with tempfile.TemporaryDirectory() as folder:
            for number, model in enumerate(models.values()):
                model.save(file := Path(folder, f"{number}.npz"))
                whole.write(file, f"models/{number}.npz")
    return buffer.getvalue()


def read_models(folder: str) -> dict[str, Mixer]:
    """In the browser: the models of the archive, unpacked here, by their names."""
    names = json.loads(Path(folder, "models", "names.json").read_text(encoding="utf-8"))
    return ready(
        {name: Mixer.load(Path(folder, f"models/{i}.npz")) for i, name in enumerate(names)}
    )
