"""The rooms: who may import whom, the order of reading, and what can be taken away."""

import ast
import graphlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import minimixer
from minimixer import Tensor, kernels

ROOT = Path(__file__).parents[1]
BOOK = ("engine", "nn", "model", "training")  # each may import itself and those before it
MACHINERY = ("kernels", "graph", "weights", "pictures", "parallel", "app")
PACKAGE = ROOT / "minimixer"
PAGES, APPENDICES = (
    re.findall(r"^    (\w+/\w+)\.py ", part, flags=re.MULTILINE)
    for part in ast.get_docstring(ast.parse((PACKAGE / "__init__.py").read_text(encoding="utf-8")),
                                  clean=False).split("Appendices")
)  # fmt: skip


def imports_of(name, inside=False):
    """What a page, "engine/ops", imports of the package: "engine/backend", or "kernels" of a room
    as a whole; with `inside`, within functions too."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree) if inside else tree.body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = name.split("/")[: -node.level]
            base += node.module.split(".") if node.module else []
            several = [alias.name for alias in node.names] if len(base) < 2 else [""]
            found.update("/".join([*base, one]).rstrip("/") for one in several)
    return found


def test_the_order_of_reading_is_stated_once_and_holds():
    """Each file of the book is in one of two lists. One of the first, a page, ends by naming the
    next, and imports only those before it, or appendices; of a later one what a comment explains.
    """
    there = [f"{room}/{p.stem}" for room in BOOK for p in (PACKAGE / room).glob("*.py")]
    assert sorted(PAGES + APPENDICES) == sorted(n for n in there if not n.endswith("__init__"))
    for position, name in enumerate(PAGES):
        source = (PACKAGE / f"{name}.py").read_text(encoding="utf-8")
        if position + 1 < len(PAGES):
            room, _, page = PAGES[position + 1].partition("/")
            page = page if name.startswith(f"{room}/") else f"{room}/{page}"
            assert f"Next: `{page}.py`" in source, name
        for later in imports_of(name) & set(PAGES[position:]):
            assert re.search(rf"^from \.{later.split('/')[1]} import \w+  # ", source, re.M), name


@pytest.mark.parametrize("room", BOOK)
def test_imports_go_down(room):
    """A room of the book imports itself and those before it. In functions, Mixer's methods may hand
    over to a room above; and what a model costs depends on the kernels that run."""
    for page in (PACKAGE / room).glob("*.py"):
        name = f"{room}/{page.stem}"
        known = BOOK[: BOOK.index(room) + 1]
        assert {i for i in imports_of(name) if i.partition("/")[0] not in known} == set(), name
        above = {i for i in imports_of(name, inside=True) if i.partition("/")[0] not in known}
        assert above <= UPWARDS.get(name, set()), name


def test_who_imports_commands_and_what_they_import():
    """A command imports another room of the machinery when it runs, so that all others run without
    that room; and nothing but `python -m minimixer` imports commands."""
    for path in PACKAGE.rglob("*.py"):
        name = "/".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if name.startswith("app/"):
            assert {i.partition("/")[0] for i in imports_of(name)} <= {*BOOK, "app"}, name
        elif name != "__main__":
            assert "app" not in {i.partition("/")[0] for i in imports_of(name, inside=True)}, name
    assert imports_of("__main__") == {"app/main"}


UPWARDS = {
    "model/trained": {
        "training/checkpoint", "training/summary", "weights/higher_resolution",
        "weights/pretrained",
    },
    "training/summary": {"kernels/kept"},
}  # fmt: skip


def test_no_imports_in_a_circle():
    graph = {
        "/".join(p.relative_to(PACKAGE).with_suffix("").parts)
        for p in PACKAGE.rglob("*.py") if p.name != "__init__.py"
    }  # fmt: skip
    graph = {name: imports_of(name) for name in graph}
    graphlib.TopologicalSorter(graph).prepare()


TRAINING = """
import numpy as np, minimixer
from minimixer import *
assert "COPY" in minimixer.__file__
model = minimixer.Mixer(4, 2, 1, 8, 4, 16, in_channels=1, num_classes=3)
optimizer = minimixer.AdamW(model.parameters(), lr=0.01)
images, labels = np.random.default_rng(0).random((6, 4, 4, 1), "float32"), [0, 1, 2, 0, 1, 2]
losses = []
for _ in range(2):
    loss = minimixer.functional.cross_entropy(model(images), labels)
    loss.backward()
    optimizer.clip_grad_norm(1.0)
    optimizer.step()
    optimizer.zero_grad()
    losses.append(loss.item())
assert losses[1] < losses[0]
"""
DOCTESTS = """
import doctest, importlib
names = ["minimixer." + page.replace("/", ".") for page in sys.argv[1:]]
fresh = {"__name__": "__main__"}  # see test_doctests.py
results = [doctest.testmod(importlib.import_module(name), globs=fresh) for name in names]
assert sum(r.attempted for r in results) > 100 and not any(r.failed for r in results)
"""
COPY_ALONE = """
import sys
sys.meta_path = [finder for finder in sys.meta_path if "editable" not in repr(finder)]
"""


@pytest.mark.parametrize("code", [TRAINING, pytest.param(DOCTESTS, marks=pytest.mark.slow)],
                         ids=["training", "doctests"])  # fmt: skip
@pytest.mark.parametrize("gone", [*MACHINERY, "all"])
def test_the_book_needs_nothing_of_what_comes_after_it(tmp_path, gone, code):
    """A copy of the package without a room, or without all of them, is imported and trains; and the
    book's examples run."""
    leave = ["__pycache__"] + ["mnist"] * (code == TRAINING)
    shutil.copytree(PACKAGE, tmp_path / "minimixer", ignore=shutil.ignore_patterns(*leave))
    for room in MACHINERY if gone == "all" else [gone]:
        shutil.rmtree(tmp_path / "minimixer" / room)
    (tmp_path / "run.py").write_text(
        COPY_ALONE + code.replace("COPY", tmp_path.name), encoding="utf-8"
    )
    strict = ["-W", "error"] if code == TRAINING else []
    command = [sys.executable, *strict, "run.py", *PAGES, *APPENDICES]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, encoding="utf-8")
    assert run.returncode == 0, run.stdout + run.stderr


@pytest.mark.parametrize("face, name, use", [
    ("ops", "exp", lambda: Tensor([1.0]).exp()),
    ("ops", "add", lambda: Tensor([1.0]) + 1),
    ("rearrange", "sum", lambda: Tensor([1.0]).sum()),
    ("rearrange", "max", lambda: Tensor([1.0]).max()),
])  # fmt: skip
def test_what_gathers_names_replaces_them_where_they_are(monkeypatch, face, name, use):
    module = getattr(minimixer, face)
    assert name in dir(module) and isinstance(use(), Tensor)
    with monkeypatch.context() as patch:
        patch.setattr(module, name, lambda *inputs, **options: "patched")
        assert use() == "patched"
    assert isinstance(use(), Tensor) and kernels.status() == "kernels: fast"
    with pytest.raises(AttributeError, match=f"minimixer.{face}.*'nothing'"):
        module.nothing  # noqa: B018
