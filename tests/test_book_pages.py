"""`python -m minimixer book`: all of the package is there, every link leads somewhere, every
formula is set, and nothing is asked of anybody. What the pages do in a browser is in
test_book_in_browser.py; whether the essays are true, in test_book.py."""

import ast
import doctest
import html
import itertools
import json
import posixpath
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

import pytest

import minimixer
from minimixer import app
from minimixer.app import book
from minimixer.app.book import cut, finding, formulas, frame, order, searched, tasks
from minimixer.app.book.notes import Notes
from minimixer.app.book.pages import SHIPPED, Site
from minimixer.app.draw.static import FILES
from minimixer.app.folder import mark, write_folder
from minimixer.training.checkpoint import find_weights

pytest.importorskip("markdown_it", reason="pip install markdown-it-py, for the book")
pytest.importorskip("mdit_py_plugins", reason="pip install mdit-py-plugins, for the book")
pytest.importorskip("latex2mathml", reason="pip install latex2mathml, for the book")

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "minimixer"
TASKS_AT = "docs.tasks.README.html"
VOID = {"meta", "link", "input", "img", "br", "hr", "mspace"}


class Page(HTMLParser):
    """A page's links and anchors; every element is closed where it should be."""

    def __init__(self, text):
        super().__init__()
        self.links, self.ids, self.open, self.tags = [], [], [], set()
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        found = dict(attributes)
        self.tags.add(tag)
        self.links += [found[name] for name in ("href", "src") if name in found]
        self.ids += [found["id"]] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in VOID:
            assert self.open.pop() == tag


@pytest.fixture(scope="module")
def site():
    made = Site()
    made.build()
    return made


@pytest.fixture(scope="module")
def pages(site):
    names = [name for name in site.files if name.endswith(".html")]
    return {name: Page(site.files[name].decode()) for name in names}


def text_of(site, name):
    """What a reader sees on a page, in one line."""
    without = re.sub(r"<[^>]+>", "", site.files[name].decode())
    return " ".join(html.unescape(without).split())


def copy_of_the_package(tmp_path):
    """minimixer/ by itself, as a wheel has it."""
    ignored = shutil.ignore_patterns("__pycache__", "*.npz", "*.gz")
    return shutil.copytree(PACKAGE, tmp_path / "there" / "minimixer", ignore=ignored)


# ---- what is there ------------------------------------------------------------------------------


def test_every_module_is_there_in_the_order_of_reading(site):
    there = sorted(p.relative_to(PACKAGE).as_posix() for p in PACKAGE.rglob("*.??")
                   if p.suffix in (".py", ".cu") and p.parent.name != "_solved")  # fmt: skip
    modules = [page.name for page in site.pages if page.file.is_relative_to(PACKAGE)]
    assert sorted(modules) == there and len(site.pages) > 160
    said = re.findall(r"^    (\S+\.py) ", minimixer.__doc__, re.MULTILINE)
    assert modules[: len(said)] == said
    parts = [page.part for page in site.pages]
    assert [part for part, before in zip(parts, [None, *parts], strict=False) if part != before] \
        == list(order.PARTS)  # fmt: skip
    assert [page.name for page in site.pages[:2]] == list(order.SCRIPTS)


def test_essays_stand_before_the_page_that_they_name(site):
    names = [page.name for page in site.pages]
    essays = [page for page in site.pages if page.kind == "essay"]
    assert len(essays) == len(list((ROOT / order.ESSAYS).glob("*.md"))) - 1 >= 10
    for page in essays:
        before = page.file.read_text(encoding="utf-8").splitlines()[2].removeprefix("Before: ")
        assert names[names.index(page.name) + 1] == before
        assert "Before:" not in text_of(site, page.href)
    figures = {file.name for file in (ROOT / order.ESSAYS / "figures").glob("*.svg")}
    assert figures <= set(site.files)


def test_tasks_come_after_the_path_and_are_linked_both_ways(site, pages):
    names, address = [page.name for page in site.pages], TASKS_AT
    assert names.index("training/loop.py") + 1 == names.index(tasks.PAGE)
    assert address in pages["index.html"].links and "_solved" not in text_of(site, address)
    there = {(page.name, task) for page in site.pages for task in tasks.TASKS
             if f"{address}#{tasks.anchor(task)}" in pages[page.href].links
             and 'class="tasks"' in site.files[page.href].decode()}  # fmt: skip
    named = {(name, task) for task in tasks.TASKS for name in tasks.read_first(task)}
    assert named <= there and {task for _, task in named} == {*tasks.TASKS}
    for name, task in named:
        assert order.address(name) in pages[address].links
        assert f"{task.number}: {task.title}" in text_of(site, address)
        assert task.title in text_of(site, order.address(name))


def test_what_comes_next_is_called_by_its_title(site):
    """An essay that no module names is named before the module's own Next."""
    for page, after in itertools.pairwise(site.pages):
        if after.kind in ("essay", "after"):
            assert f"<small>Next</small><b>{html.escape(after.title)}" \
                in site.files[page.href].decode()  # fmt: skip
            assert after.title == order.text_of(after.file).splitlines()[0].removeprefix("# ")
    shown = text_of(site, "nn.loss.html")
    assert "Next: LayerNorm: a point on a sphere, an essay; then layer_norm.py" in shown
    questions = text_of(site, "docs.book.README.html")
    assert "LayerNorm: a point on a sphere" in questions and ".md" not in questions


def test_what_is_not_in_the_book_is_said_to_be_in_the_repository(site, pages):
    assert "docs/performance.md (in the repository)" in text_of(site, TASKS_AT)
    assert "performance.md (in the repository)" in text_of(site, "docs.book.launches.html")
    titles = dict(re.findall(r'<td><a href="#(task\d+)">(.*?)<', site.files[TASKS_AT].decode()))
    assert titles == {tasks.anchor(task): html.escape(task.title, quote=False)
                      for task in tasks.TASKS}  # fmt: skip
    files = [task.file for task in tasks.TASKS]
    assert not re.search(rf">({'|'.join(files)})</code></a>", site.files[TASKS_AT].decode())


def test_the_page_for_drawing_goes_along(site, pages):
    assert "draw/index.html" in pages["index.html"].links
    assert {f"draw/{name}" for name, _ in FILES.values()} < set(site.files)
    assert "../index.html" in pages["draw/index.html"].links
    faces = [re.findall(r"--(?:serif|sans): [^;]+", site.files[name].decode())
             for name in ("style.css", "draw/style.css")]  # fmt: skip
    assert faces[0] == faces[1] and len(faces[0]) == 2


def test_the_start_names_every_page_and_what_it_explains(site, pages):
    start, links = text_of(site, "index.html"), pages["index.html"].links
    for page in site.pages:
        assert page.href in links and page.title in start and page.says
        assert html.unescape(re.sub("<.*?>", "", frame.said(page))) in start
        assert not re.search(r"[\^`]|->|:$| al$", html.unescape(frame.said(page))), page.name
    assert "[w1;b1]⊤" in start.replace(" ", "") and "Tolstikhin et al. 2021) from scratch" in start
    machinery = [page for page in site.pages if page.part == "machinery"]
    counts = re.findall(r"</code> .*? \((\d+) pages\)</summary>|gathers names \((\d+) pages",
                        site.files["index.html"].decode())  # fmt: skip
    assert sum(int(a or b) for a, b in counts) == len(machinery) and len(counts) == 7


def test_the_start_says_how_to_get_it_and_has_the_questions(site, pages):
    start, links = text_of(site, "index.html"), pages["index.html"].links
    assert "pip install -e . python examples/train_mnist.py" in " ".join(start.split())
    assert "#questions" in links and "questions" in pages["index.html"].ids
    asked = re.findall(r"^\| (.+\?) \| ", order.text_of(ROOT / order.QUESTIONS), re.MULTILINE)
    plain = [question for question in asked if "$" not in question]
    assert len(asked) > 10 and all(question in start for question in plain)
    for page in site.pages:  # what does not run without the repository's folder
        if page.kind == "essay" and "import" in order.text_of(page.file):
            outside = "baselines" in order.text_of(page.file)
            assert (page.title in start.partition("With the pages go")[0]) == outside
    for name, said in site.files.items():  # and nothing for authors
        if name.startswith("docs."):
            assert "in its third line" not in said.decode() and "<code>$$" not in said.decode()


def test_next_goes_through_all_pages_and_previous_back(site):
    hrefs = ["index.html", *(page.href for page in site.pages)]
    for here, after in itertools.pairwise(hrefs):
        assert f'rel="next" href="{after}"' in site.files[here].decode()
        if here != "index.html":
            assert f'rel="prev" href="{here}"' in site.files[after].decode()
    assert 'rel="next"' not in site.files[hrefs[-1]].decode()


def test_nothing_of_a_source_is_lost(site):
    """Each line of code is there, and each longer word of a note."""
    for page in site.pages:
        if page.file.suffix == ".md":
            continue
        source, shown = page.file.read_text(encoding="utf-8"), text_of(site, page.href)
        apart = re.sub(r"<[^>]+>", " ", site.files[page.href].decode())
        lines, words = source.split("\n"), set(re.findall(r"\w+", apart))
        tree = ast.parse(source) if page.file.suffix == ".py" else None
        found = [*cut.docstrings(tree), *cut.comments(source)] if tree else []
        said = {n for _, first, last, _ in found for n in range(first, last + 1)}
        for number, line in enumerate(lines, 1):
            if number not in said and not (tree is None and line.lstrip().startswith("//")):
                assert " ".join(line.split()) in shown, (page.name, number)
        for row in cut.rows(source, tree):
            for word in re.findall(r"\b[A-Za-z]{5,}\b", row.note + row.heading):
                forms = {word, word.removeprefix("d")}  # dmean is set as d and mean
                assert forms & (words | formulas.GREEK.keys()), (page.name, word)


def test_sessions_are_shown_with_what_they_print(site):
    count = 0
    for page in site.pages:
        if page.file.suffix == ".py":
            for example in doctest.DocTestParser().get_examples(
                "\n\n".join(note for *_, note in cut.docstrings(order.tree_of(page.file)))
            ):
                shown = text_of(site, page.href)
                typed = ">>> " + "\n... ".join(example.source.splitlines())
                assert " ".join(typed.split()) in shown, page.name
                assert " ".join(example.want.split()) in shown, page.name
                count += 1
    assert count > 300


# ---- links --------------------------------------------------------------------------------------


def test_every_link_and_anchor_leads_somewhere(site, pages):
    for name, page in pages.items():
        assert len(page.ids) == len(set(page.ids)), name
        for link in page.links:
            if link == "data:,":  # no icon, and no request for one
                continue
            file, _, anchor = unquote(link).partition("#")
            assert file or anchor, name
            file = file and posixpath.normpath((PurePosixPath(name).parent / file).as_posix())
            assert not file or file in site.files, (name, link)
            assert not anchor or anchor in pages[file or name].ids, (name, link)
    index = json.loads(site.files["index.js"].decode().removeprefix("const INDEX = ").rstrip(";\n"))
    for title, link, said in index:
        file, _, anchor = link.partition("#")
        assert title and (not anchor or anchor in pages[file].ids), link
        assert not re.search(r"`|\]\([\w/]+\.(?:md|svg)|^#|\|--|<math", said), link
    assert searched.CALLED.keys() <= {page.name for page in site.pages}


def test_every_public_name_has_an_anchor_and_is_linked_where_it_is_used(site, pages):
    linked = {link for name, page in pages.items() for link in
              (link if "#" not in link[:1] else name + link for link in page.links)}  # fmt: skip
    for name in minimixer.__all__:
        home = getattr(getattr(minimixer, name), "__module__", "").removeprefix("minimixer.")
        found = site.names.find(name) or site.names.find(
            f"{home}.{name}"
        )  # or found when asked for
        assert found, name
        if found[1]:
            file, _, anchor = site.names.href(found).partition("#")
            assert anchor in pages[file].ids and f"{file}#{anchor}" in linked, name


def test_names_are_followed_to_where_they_are_made(site):
    layers = site.names.modules["nn.layers"].page
    text = site.files[layers.href].decode()
    assert re.search(r'<a href="nn.module.html#Module">Module</a>', text)
    assert site.link("Module.forward", layers) in ("nn.module.html#Module.forward", "")
    assert site.link("block.py", layers) == "model.block.html"  # the only one of that name
    assert site.link("layer_norm.py", layers) == "nn.layer_norm.html"  # of the same room
    assert site.link("nothing_of_that_name", layers) == ""


def test_a_name_that_a_function_binds_itself_is_no_link(tmp_path):
    package = copy_of_the_package(tmp_path)
    path = package / "engine" / "habits.py"
    path.write_text(path.read_text(encoding="utf-8") + """

def hidden(missing):
    return missing.x


seen = missing
""", encoding="utf-8")  # fmt: skip
    made = Site(package)
    page = made.names.modules["engine.habits"].page
    lines = path.read_text(encoding="utf-8").split("\n")
    links = made.names.links(page)
    inside, outside = len(lines) - 4, len(lines) - 1
    assert lines[inside - 1].endswith("missing.x") and lines[outside - 1] == "seen = missing"
    assert not any(line == inside for line, _ in links)
    assert links[outside, 7] == "#missing"


# ---- nothing is asked of anybody ----------------------------------------------------------------


def test_no_page_makes_a_request(site, pages):
    for name, data in site.files.items():
        if name.endswith((".html", ".css", ".js", ".svg")):
            text = data.decode().replace("http://www.w3.org/2000/svg", "")
            if name == "draw/ask.js":  # which asks once it is told to: test_draw.py has that
                continue
            loads = re.findall(r"(?:src|href|url|@import|fetch)[=(\s\"']+(?:https?:)?//", text)
            assert not loads, name
            if not name.endswith(("index.js", ".svg")):
                assert not re.search(r"<[^>]*https?://", text), name
    assert all(not page.tags & {"iframe", "object", "embed"} for page in pages.values())
    assert set(SHIPPED) <= set(site.files)


def test_it_is_small(site):
    digits = 4 / 3 * find_weights("digits").stat().st_size  # in base 64, for drawing
    assert sum(map(len, site.files.values())) - digits < 6e6
    assert max(len(data) for name, data in site.files.items() if name != "draw/package.js") < 1e6


# ---- formulas -----------------------------------------------------------------------------------


# Lines that are set off and have a relation in them: what they begin with if they are Python.
PYTHON = {
    "graph/recorded.py": ("loss = F.cross_entropy(", "step = record(", "loss = step("),
    "pictures/loader.py": ("with Loader(",),
    "pictures/reading.py": ("paths, failures = ", "for numbers, images, failed in", "failures +="),
}


def test_no_formula_that_is_set_off_is_left_as_text(site):
    left = [line.split(": ", 1) for line in site.left]
    assert [f"{page}: {line}" for page, line in left if not line.startswith(PYTHON.get(page, ()))] \
        == []  # fmt: skip
    assert len(left) == sum(map(len, PYTHON.values())) and len(site.set_off) > 40


HALF = re.compile(r"(?:[=+*/^@~[]|\w [-<]) ?\0|\0 ?[=+*/^@~_[]|\0 [-<] ")


def test_formulas_side_by_side_both_stand_and_a_condition_is_none():
    notes = Notes(lambda name: "")
    for line, cells in (("m <- a m      n' = m / a", 3), ("x <= 1      y = x     and so on", 3)):
        shown = notes.parts(f"    {line}")[0].html
        assert shown.count("<td>") == cells and notes.left == []
    assert 'class="where"' in shown  # with a gap behind it
    assert [text for text, _ in notes.set_off] == ["m <- a m", "y = x"]


def text_and_formulas(note):
    """The HTML of a note's parts, each formula as its plain text between signs."""
    notes = Notes(lambda name: "")
    shown = [part.html for part in notes.parts(note)]
    return shown, [text for text, _ in [*notes.set_off, *notes.among_words]]


def test_an_article_at_the_end_of_a_line_is_none_of_its_formulas():
    rows = "    a < 2   y = a x     even: the ratio is a\n                        correction of a."
    (shown,), found = text_and_formulas(rows)
    assert "the ratio is a correction of <" in shown and found == ["y = a x", "a < 2", "a"]


def test_columns_are_a_table_and_a_sentence_goes_on_after_a_formula():
    lines = ("rows:    w1, w2 (S, D_S),         b1 (D_S,)",
             "columns: w1 (C, D_C), w2 (D_C,),  b1 (D_C,)")  # fmt: skip
    (shown,), found = text_and_formulas("\n".join(lines))
    assert shown.count("<tr>") == 2 and shown.count("<td>") == 6 and "D_" not in shown
    assert {"(S, D_S)", "(D_C,)"} < set(found)
    (shown,), _ = text_and_formulas("y = x z  with  z = 2,\n\nand the mean of each. A sentence.")
    assert shown.startswith("<p>") and "and the mean" in shown
    assert len(text_and_formulas("One.\n\nTwo.")[0]) == 2


def test_what_would_touch_has_a_gap_and_bars_are_no_higher_than_letters():
    gap = '<mspace width="0.167em"/>'
    chain = formulas.mathml(r"\frac{dz}{dy} \frac{dy}{dx}")
    assert f"</mfrac>{gap}<mfrac>" in chain and gap in formulas.mathml(r"\frac{dz}{dy} e_i")
    assert f"log</mi>{gap}<mfrac>" in formulas.mathml(r"-\log \frac{1}{10}")
    assert "log</mi><mo" in formulas.mathml(r"\log (x)")
    bars = formulas.mathml(r"\lVert \hat{x} \rVert")
    assert bars.count('<mo stretchy="false" lspace="0" rspace="0">‖') == 2
    assert formulas.mathml("X^T W_1^T") == formulas.mathml(r"X^{\top} W_1^{\top}")
    assert formulas.mathml(formulas.latex("(S, C,)")).count('<mo rspace="0">&#x0002C;') == 1
    assert "<mo>&#x02026" not in formulas.mathml(formulas.latex("X + ..."))


def test_no_formula_is_set_by_half(site):
    """No operator and no relation is left as text beside a formula: all of it is read, or none."""
    for page in site.pages:
        text = re.sub(r"<pre.*?</pre>", "", site.files[page.href].decode(), flags=re.DOTALL)
        text = re.sub('<span class="shape.*?</span>', "(shape)", text)  # says what a name is
        text = re.sub("<math.*?</math>", "\0", text, flags=re.DOTALL)
        text = html.unescape(re.sub("</?(?:span|a|code|b|i|em|strong)[^>]*>", "", text))
        halves = [text[max(0, m.start() - 40) : m.end() + 40] for m in HALF.finditer(text)]
        assert halves == [], page.name
    assert len(site.among_words) > 800


@pytest.mark.parametrize("text, latex", [
    ("dx = dy W^T", r"{dx} = {dy} \, W^{\top}"),
    ("dW[i, j] = sum_m x[m, i] dy[m, j]", r"{dW}_{i,j} = \sum_{m} x_{m,i} \, {dy}_{m,j}"),
    ("p[k] = e^z[k] / sum_j e^z[j]", r"p_{k} = \frac{e^{z_{k}}}{\sum_{j} e^{z_{j}}}"),
    ("x_hat = (x - mean) / sigma", r"\hat{x} = \frac{x - \text{mean}}{\sigma}"),
    ("d_hat - mean(d_hat x_hat)", r"\hat{d} - \text{mean}(\hat{d} \, \hat{x})"),
    ("Phi(x) = (1 + erf(x / sqrt 2)) / 2",
     r"\Phi(x) = \frac{1 + \text{erf}(x/\sqrt{2})}{2}"),
    ("w <- w - lr g", r"w \leftarrow w - \text{lr} \cdot g"),
    ("-log p[k]", r"- \text{log}\, p_{k}"),
    ("(L(x + h) - L(x - h)) / 2h", r"\frac{L(x + h) - L(x - h)}{2h}"),
    ("|x| >> 2^-24", r"|x| \gg 2^{-24}"),
    ("d_x_hat = d_y", r"{d\hat{x}} = {dy}"),
    ("6e-8", r"6 \cdot 10^{-8}"),
    ("S x (B*C)", r"S \times (B \cdot C)"),
    ("E[x^2] - E[x]^2", "E[x^{2}] - E[x]^{2}"),
    ("dL/dx", r"\frac{{dL}}{{dx}}"),
    ("d sigma / d x[i]", r"\frac{d\sigma}{dx_{i}}"), ("y' = d x + e y", "y'=dx+ey"),
    ("[j = k] - 1 / C", r"[j = k] - \frac{1}{C}"),
    ("dmean/dx_k", r"\frac{{d\text{mean}}}{{dx}_{k}}"),
    ("y_j = x_i weight_ij", r"y_{j} = x_{i} \, {\text{weight}}_{ij}"),
    ("-log p_label", r"- \text{log} \, p_{\text{label}}"), ("p - one_hot", r"p-\text{one_hot}"),
    ("e^-2v", "e^{-2v}"), ("max(1, |x|)", r"\text{max}(1,\,|x|)"), ("m x n", r"m \times n"),
    ("[w1; b1]^T [x; 1]", r"[w_{1};\,b_{1}]^{\top}\,[x;1]"), ("g . d", r"g \cdot d"),
    ("mean(x^2) - mean(x)^2", r"\text{mean}(x^{2}) - \text{mean}(x)^{2}"),
    ("lr weight_decay w", r"\text{lr} \cdot \text{weight_decay} \cdot w"),
    ("(x - 1) (1, lr)", r"(x - 1) \, (1,\,\text{lr})"),
    ("a ~ Beta(p, p)", r"a \sim \text{Beta}(p,\,p)"), ("c0 x + c_n", r"c_{0} \, x + c_{n}"),
])  # fmt: skip
def test_formulas_are_read(text, latex):
    assert re.sub(r"\s|\\,", "", formulas.latex(text)) == re.sub(r"\s|\\,", "", latex)
    assert "<math" in formulas.mathml(formulas.latex(text))


@pytest.mark.parametrize(
    "text",
    ["", "x =", "(x", "x)", "x / / y", "the end", "x[", "x^", "+ x", "D_S 32", "weight'", "[j = k"],
)
def test_what_is_no_formula_is_refused(text):
    with pytest.raises(formulas.NoFormulaError):
        formulas.latex(text)


@pytest.mark.parametrize("text", [
    "It is what it is: a matrix, I think.", "p.data and x.grad", "the x-axis", "a 0-d array",
    "what we do", "--prepare none", "W4 mean this", "LayerNorm gives numbers of one size",
    "e.g. 3 of 4", "in C++", "mixer_b16", "and/or", "float32", "(see below)", "out=a", "in 24 s",
    "Mixer-B/16 (B/16, say)", "the C library", "bias -> bias", "scale (of all)",
])  # fmt: skip
def test_words_are_left_alone(text):
    found = [part for part, formula in finding.spans(text) if formula]
    assert found in ([], ["W4"])


@pytest.mark.parametrize("text, found", [
    ("where mean >> sigma. It is", ["mean >> sigma"]), ("z's numbers, for z", ["z", "z"]),
    ("With m = max z nothing", ["m = max z"]), ("gives log K.", ["log K"]),
    ("x -> y -> z. Each", ["x -> y -> z"]), ("of P x P pixels", ["P x P"]),
    ("db = dy a. Then x = y a time", ["db = dy a", "x = y"]), ("(S 16, D_S 32)", ["S", "D_S"]),
    ("as a's or b's", ["a", "b"]), ("A row. With factors A known", ["A"]),
    ("the gradient plus weight_decay w, as", ["weight_decay w"]),
    ("with decay it is a strength", []), ("where [j = k] is 1", ["[j = k]"]),
])  # fmt: skip
def test_formulas_are_found_among_words(text, found):
    assert [part for part, formula in finding.spans(text) if formula] == found


# ---- sources that are not as they should be -----------------------------------------------------


@pytest.mark.slow
def test_what_looks_like_html_is_shown_and_does_nothing(tmp_path):
    package = copy_of_the_package(tmp_path)
    evil = "<script>alert(1)</script> & <img src=x onerror=alert(1)>"
    (package / "engine" / "evil.py").write_text(f'''"""{evil}

    y = x </math>{evil}

{evil}  {evil}

>>> print("{evil}")
{evil}
"""

# {evil}
NAME = "{evil}"  # {evil}
''', encoding="utf-8")  # fmt: skip
    essay = package.parent / order.ESSAYS / "evil.md"
    essay.parent.mkdir(parents=True)
    link = f"[{evil}](javascript:alert)"
    text = f"# {evil}\n\nBefore: engine/evil.py\n\n{evil} $<b>$ {link}\n"
    essay.write_text(text, encoding="utf-8")
    made = Site(package)
    made.build()
    for name in "index.html", "docs.book.evil.html":
        assert "<script>alert" not in made.files[name].decode() and "<b>" not in re.sub(
            "<footer>.*", "", made.files[name].decode())  # fmt: skip
        assert "<img" not in made.files[name].decode()
        assert 'href="javascript' not in made.files[name].decode()
        Page(made.files[name].decode())
    text = made.files["engine.evil.html"].decode()
    assert "<script>alert" not in text and "<img" not in text and "</math>&" not in text
    assert text.count("&lt;script&gt;alert(1)") >= 7
    Page(text)
    assert (
        "<script" in made.files["index.js"].decode()
        and "innerHTML" not in made.files["search.js"].decode()
    )  # it is text there, and stays text


def test_a_source_that_is_not_python_is_one_clear_error(tmp_path, monkeypatch, capsys):
    package = copy_of_the_package(tmp_path)
    path = package / "nn" / "loss.py"
    for text, said in ("x = (\n", "nn/loss.py, line 1: this is not Python"), (None, "not UTF-8"):
        path.write_bytes(b"# \xff\n" if text is None else text.encode())
        with pytest.raises(ValueError, match=said):
            Site(package)


@pytest.mark.slow
def test_without_the_repository_there_are_the_modules_only(tmp_path, monkeypatch, capsys):
    package = copy_of_the_package(tmp_path)
    monkeypatch.setattr(book, "Site", lambda: Site(package))
    assert app.main(["book", "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "modules only" in said
    start = (tmp_path / "out" / "index.html").read_text(encoding="utf-8")
    assert "Before the first page" not in start and "engine.autograd.html" in start


def test_an_essay_that_belongs_nowhere_is_named(tmp_path):
    package = copy_of_the_package(tmp_path)
    essay = package.parent / order.ESSAYS / "lost.md"
    essay.parent.mkdir(parents=True)
    essay.write_text("# Lost\n\nBefore: nn/nowhere.py\n\nText.\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"lost\.md.*nn/nowhere\.py"):
        Site(package)


# ---- where it goes ------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["book", "draw"])
def test_a_folder_of_others_is_not_touched(tmp_path, capsys, command):
    (tmp_path / "index.html").write_text("mine", encoding="utf-8")
    (tmp_path / mark("draw" if command == "book" else "book")).touch()
    assert app.main([command, "--out", str(tmp_path)]) == 2
    assert "holds other things" in capsys.readouterr().err
    assert len(list(tmp_path.iterdir())) == 2
    assert app.main([command, "--out", ""]) == 2
    assert "needs the name of a folder" in capsys.readouterr().err
    assert app.main([command, "--out", str(tmp_path / "index.html")]) == 2
    assert (tmp_path / "index.html").read_text(encoding="utf-8") == "mine"
    assert "is a file" in capsys.readouterr().err


def test_a_book_may_be_built_again_and_leaves_what_else_is_there(tmp_path, site):
    out = tmp_path / "new" / "book"
    write_folder(out, "book", site.files)
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    write_folder(out, "book", site.files)
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()}
    assert there == {*site.files, mark("book"), "notes.txt"}


@pytest.mark.parametrize("link", ["index.html", mark("book"), "draw", "draw/index.html"])
def test_no_link_is_followed_out_of_the_folder(tmp_path, link):
    files = {"index.html": b"new", "draw/index.html": b"new"}
    out, others = tmp_path / "book", tmp_path / "others"
    write_folder(out, "book", files)
    others.mkdir()
    (others / "index.html").write_text("mine", encoding="utf-8")
    if link == "draw":
        (out / "draw" / "index.html").unlink()
        (out / "draw").rmdir()
        (out / "draw").symlink_to(others)
    else:
        (out / link).unlink()
        (out / link).symlink_to(others / "index.html")
    with pytest.raises(ValueError, match=rf"{re.escape(link)} is a link.*remove it first"):
        write_folder(out, "book", files | {"index.html": b"newer"})
    assert [path.read_text(encoding="utf-8") for path in others.iterdir()] == ["mine"]
    assert link == "index.html" or (out / "index.html").read_bytes() == b"new"


def test_it_says_what_to_install(tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "latex2mathml", None)
    assert app.main(["book", "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert "pip install pygments markdown-it-py mdit-py-plugins latex2mathml" in said
    assert not (tmp_path / "out").exists()


def test_out_must_be_given(capsys):
    assert app.main(["book"]) == 2
    assert "--out" in capsys.readouterr().err
