"""What is in the book, and in which order.

The order of modules is the package's docstring: those of the path, then the appendices, then the
machinery room by room, then what is left. Two scripts come before, where the repository is there,
and essays stand before the page that their third line names: "Before: engine/autograd.py". At the
end of the path come the tasks, and questions with the pages that answer them.
"""

import ast
import re
from pathlib import Path
from typing import NamedTuple

PACKAGE = Path(__file__).parents[2]
SCRIPTS = ("examples/mixer_by_hand.py", "examples/tiny.py")
ESSAYS = "docs/book"
QUESTIONS = "docs/book/README.md"  # a table in it
# What stands at the end of the path, and what the start says of it.
AFTER_PATH = {
    "docs/tasks/README.md": "a hole to fill in each, and a test that says what is wrong",
    QUESTIONS: "what each shows, and before which page it stands",
}
HIDDEN = ("__pycache__", "_solved")
PARTS = {
    "before": "Before the first page", "path": "The path", "appendix": "Appendices",
    "machinery": "Machinery",
}  # fmt: skip
ROLES = {
    "before": "a script before the first page", "path": "a page of the path", "essay": "an essay",
    "after": "after the path",
    "appendix": "an appendix: to look up when you want to know more",
    "machinery": "machinery: the book runs without it",
}  # fmt: skip


class Page(NamedTuple):
    """A page of the book, and the file that it shows."""

    name: str  # such as engine/autograd.py
    file: Path
    part: str  # in PARTS
    kind: str  # the same, or "essay", or "after" the path
    says: str  # what it explains, in a few words
    title: str

    @property
    def href(self) -> str:
        return address(self.name)


def address(name: str) -> str:
    """The page of a file: all lie in one folder, so that every link is a name."""
    for ending in (".py", ".md"):
        name = name.removesuffix(ending)
    return name.replace("/", ".") + ".html"


def text_of(file: Path) -> str:
    """UTF-8 text. ValueError, OSError name the file."""
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file}: not UTF-8 text ({error.reason})") from None


def tree_of(file: Path) -> ast.Module:
    """ValueError names the file and the line of a source that does not parse."""
    try:
        return ast.parse(text_of(file))
    except SyntaxError as error:
        raise ValueError(
            f"{file}, line {error.lineno}: this is not Python ({error.msg}); mend it, then build "
            "the book again"
        ) from None


def first_sentence(file: Path) -> str:
    """Of a module's docstring, or of the comment that a CUDA file begins with."""
    if file.suffix == ".py":
        words = (ast.get_docstring(tree_of(file)) or "").split("\n\n")[0]
    else:
        words = re.sub(r"^// ?", "", text_of(file), flags=re.MULTILINE).split("\n\n")[0]
    return re.split(r"(?<=[A-Za-z)])\. (?=[A-Z`])", " ".join(words.split()))[0].rstrip(".:")


def modules(package: Path = PACKAGE) -> list[Page]:
    """Every module of the package, each once; and its CUDA kernels."""
    said = ast.get_docstring(tree_of(package / "__init__.py")) or ""
    path, _, rest = said.partition("Appendices")
    appendices, *_ = rest.partition("machinery")
    found = []
    for part, text in ("path", path), ("appendix", appendices):
        for name, says in re.findall(r"^    (\S+\.py) +(\S.*)$", text, re.MULTILINE):
            found.append(Page(name, package / name, part, part, says, name))
    files = []
    for room in rooms(package):
        files += _sources(package / room)
    files += _sources(package)
    known = {page.file for page in found}
    for file in files:
        if file not in known:
            known.add(file)
            name = file.relative_to(package).as_posix()
            found.append(Page(name, file, "machinery", "machinery", first_sentence(file), name))
    return found


def rooms(package: Path = PACKAGE) -> dict[str, str]:
    """Those of the machinery, and what the package's docstring says of each."""
    said = ast.get_docstring(tree_of(package / "__init__.py")) or ""
    machinery = said.partition("Appendices")[2].partition("machinery")[2]
    return dict(re.findall(r"^    (\w+)/ +(\S.*)$", machinery, re.MULTILINE))


def _sources(folder: Path) -> list[Path]:
    """Python, each room's __init__ first, and then CUDA; not what is hidden: solutions of tasks."""
    files = [*folder.rglob("*.py"), *folder.rglob("*.cu")]
    files = [file for file in files if file.parent.name not in HIDDEN]
    return sorted(
        files, key=lambda f: (f.parent, f.suffix == ".cu", f.name != "__init__.py", f.name)
    )


def book(package: Path = PACKAGE) -> list[Page]:
    """All pages in the order of reading."""
    root, pages = package.parent, modules(package)
    scripts = [
        Page(name, root / name, "before", "before", first_sentence(root / name), name)
        for name in SCRIPTS
        if (root / name).is_file()
    ]
    pages = scripts + pages
    for file in sorted((root / ESSAYS).glob("*.md")):
        essay, before = _essay(file)
        if essay is None:
            continue
        places = [i for i, page in enumerate(pages) if page.name == before]
        if not places:
            raise ValueError(f'{file}: its third line says "Before: {before}": no page\'s name')
        pages.insert(places[0], essay._replace(part=pages[places[0]].part))
    end = 1 + max(i for i, page in enumerate(pages) if page.part == "path")
    pages[end:end] = [
        Page(name, root / name, "path", "after", says, _title(root / name))
        for name, says in AFTER_PATH.items()
        if (root / name).is_file()
    ]
    return pages


def _title(file: Path) -> str:
    return text_of(file).partition("\n")[0].lstrip("# ")


def _essay(file: Path) -> tuple[Page | None, str]:
    """The essay, and the page before which it is read; None for what is none."""
    lines = text_of(file).splitlines()
    if len(lines) < 3 or not lines[2].startswith("Before: "):
        return None, ""
    title = _title(file)
    name = f"{ESSAYS}/{file.name}"
    return Page(name, file, "path", "essay", title, title), lines[2].removeprefix("Before: ")
