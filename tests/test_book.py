"""The essays of docs/book/ are true: blocks print what they say, figures are what the engine gives.

Each is short, names the page of the package before which it is read, and links to what is there.
`python docs/book/figures/draw.py` draws the figures again.
"""

import importlib
import re
import xml.etree.ElementTree as ET

import pytest
from pages import ROOT, blocks, run_blocks, without_blocks
from processes import quick

import minimixer

BOOK = ROOT / "docs" / "book"
FIGURES = BOOK / "figures"
ESSAYS = sorted(path for path in BOOK.glob("*.md") if path.name != "README.md")
PAGES = [*ESSAYS, BOOK / "README.md"]
SCRIPTS = sorted(path.stem.removeprefix("draw_") for path in FIGURES.glob("draw_*.py"))
PICTURES = sorted(FIGURES.glob("*.svg"))
LINK = re.compile(r"(!?)\[([^\]]+)\]\(([^)\s]+)\)")
NUMBER = re.compile(r"-?\d+\.?\d*(?:e-?\d+)?")
SVG = "{http://www.w3.org/2000/svg}"

each_essay = pytest.mark.parametrize("path", ESSAYS, ids=lambda path: path.stem)
each_page = pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
each_picture = pytest.mark.parametrize("path", PICTURES, ids=lambda path: path.stem)


def read(path):
    return path.read_text(encoding="utf-8")


def prose(path):
    return without_blocks(read(path))


def heading(path):
    """(title, the page before which it is read)"""
    title, blank, before = read(path).splitlines()[:3]
    assert title.startswith("# ") and blank == "" and before.startswith("Before: ")
    return title.removeprefix("# "), before.removeprefix("Before: ")


def place(before):
    """Where the package's docstring names a page, or its room."""
    found = re.search(rf"^    {re.escape(before)} ", minimixer.__doc__, re.MULTILINE)
    room = re.search(rf"^    {before.partition('/')[0]}/ ", minimixer.__doc__, re.MULTILINE)
    return (found or room).start()


@each_essay
def test_blocks_print_what_the_page_says(path, monkeypatch, capsys):
    run_blocks(path, monkeypatch, capsys)


@each_essay
def test_an_essay_is_short_and_says_where_it_belongs(path):
    assert 300 <= len(prose(path).split()) <= 600
    assert (ROOT / "minimixer" / heading(path)[1]).is_file()
    assert all(len(line) <= 110 for line in read(path).splitlines())


def test_the_table_names_every_essay_in_the_order_of_the_book():
    rows = re.findall(r"^\| \[(.+)\]\((\w+\.md)\) \| (\S+) \|", prose(BOOK / "README.md"), re.M)
    assert sorted(file for _, file, _ in rows) == [path.name for path in ESSAYS]
    assert all((title, before) == heading(BOOK / file) for title, file, before in rows)
    places = [place(before) for _, _, before in rows]
    assert places == sorted(places)


@each_page
def test_links_and_names_of_files_lead_somewhere(path):
    text = prose(path)
    for image, words, target in LINK.findall(text):
        target, _, part = target.partition("#")
        assert words and (path.parent / target).resolve().is_file(), target
        assert bool(image) == target.endswith(".svg")
        if part:
            titles = re.findall(r"^#+ (.+)", read(path.parent / target), re.MULTILINE)
            assert part in [title.lower().replace(" ", "-") for title in titles], part
    for name in re.findall(r"`(\w+/[\w/]+\.py)`", text):
        assert (ROOT / "minimixer" / name).is_file() or (ROOT / name).is_file(), name
    assert "://" not in text


@each_essay
def test_formulas_stand_by_themselves(path):
    """Between two lines of $$, with empty lines around them; or within a line, between two $."""
    paragraphs = prose(path).split("\n\n")
    for paragraph in paragraphs:
        if "$$" in paragraph:
            lines = paragraph.strip().splitlines()
            assert lines[0] == lines[-1] == "$$" and "$" not in "".join(lines[1:-1])
        else:
            assert all(line.count("$") % 2 == 0 for line in paragraph.splitlines()), paragraph
    assert not re.search(r"\\[,;:!{}]", prose(path))  # Markdown would take the backslash


@each_essay
def test_shares_are_those_of_its_figures_and_blocks(path):
    """A number in per cent comes from a run: it stands in a figure, or was printed."""
    said = " ".join(block for language, block in blocks(read(path)) if language != "python")
    shown = " ".join(read(path.parent / target)
                     for image, _, target in LINK.findall(prose(path)) if image)  # fmt: skip
    for share in re.findall(r"\d+%", prose(path)):
        assert share in said + shown


# ---- figures ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", quick(SCRIPTS, *{*SCRIPTS} - {"training", "resuming"}))
def test_figures_are_what_the_engine_gives(name, monkeypatch):
    monkeypatch.syspath_prepend(FIGURES)
    for file, svg in importlib.import_module(f"draw_{name}").draw().items():
        assert same(svg, read(FIGURES / file)), (
            f"python docs/book/figures/draw.py {name} draws {file} anew"
        )


def same(one, other):
    """The same but for rounding, of coordinates and of what is written on them."""
    if NUMBER.split(one) != NUMBER.split(other):
        return False
    pairs = zip(NUMBER.findall(one), NUMBER.findall(other), strict=True)
    return all(abs(float(a) - float(b)) <= 0.02 + 0.001 * abs(float(b)) for a, b in pairs)


def test_another_picture_is_noticed():
    text = read(FIGURES / "gradients.svg")
    assert same(text, text) and same(text, text.replace(' x="', ' x="0'))
    assert not same(text, text.replace("800 multi", "801 multi"))
    assert not same(text, text.replace("begun", "ended"))


@each_picture
def test_a_figure_is_small_has_words_for_who_cannot_see_it_and_letters_that_can_be_read(path):
    text = read(path)
    root = ET.fromstring(text)
    assert root.get("role") == "img" and len(root.find(f"{SVG}title").text) > 60
    assert len(text.encode()) <= 120_000 and float(root.get("viewBox").split()[2]) <= 440
    assert "prefers-color-scheme: dark" in text and root.find(f"{SVG}rect").get("class") == "page"
    sizes = re.findall(r"font(?:-size)?: (\d+)px", text)
    assert min(map(int, sizes)) >= 13  # 10.5 where a telephone shows 440 as 358


def test_every_figure_is_shown_once():
    shown = [target for path in PAGES for image, _, target in LINK.findall(prose(path)) if image]
    assert sorted(shown) == [f"figures/{path.name}" for path in PICTURES]
