"""README and docs/ are true: their Python blocks run in order, their commands are ones that the
scripts accept, what they link to is there.
"""

import argparse
import ast
import functools
import re
import runpy
import shlex
import sys
import tokenize
from pathlib import Path

import numpy as np
import pytest
from help import small_mixer
from scripts import EXAMPLES, Runner

import minimixer
from benchmarks import step_profile
from minimixer import kernels
from minimixer.engine import forms
from support.kernels import using

ROOT = Path(__file__).parent.parent
FILES = ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))
PAGES = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in FILES}
README = PAGES["README.md"]
BLOCKS = {
    name: re.findall(r"```(\w+)\n(.*?)```", text, flags=re.DOTALL) for name, text in PAGES.items()
}
COMMANDS = sorted({
    re.sub(r"^mpirun -n \d+ ", "", part.strip())  # what it starts
    for blocks in BLOCKS.values()
    for language, block in blocks
    if language == "bash"
    for line in block.splitlines()
    for part in line.split("&&")
})  # fmt: skip
SCRIPTS = [c for c in COMMANDS if c.startswith(("python examples/", "python -m minimixer "))]


def python_blocks(page):
    return [block for language, block in BLOCKS[page] if language == "python"]


ELSEWHERE = "docs/video.md", "CONTRIBUTING.md"  # test_video.py runs it; what files are to get


@pytest.mark.parametrize("page", [p for p in PAGES if p not in ELSEWHERE and python_blocks(p)])
def test_python_blocks(page, tmp_path, monkeypatch):
    """Each page is one session."""
    monkeypatch.chdir(tmp_path)
    if page == "README.md":
        small = "--limit-train 300 --epochs 1 --hidden-dim 8 --num-blocks 1 --out runs/mnist"
        Runner(tmp_path)(*small.split())
    names: dict = {"__name__": "page"}
    for block in python_blocks(page):
        exec(compile(block, page, "exec"), names)
    if page == "README.md":
        assert len(names["predicted"]) == 5 and names["loss"].item() < 3


def test_the_function_that_the_docs_define_is_right_everywhere():
    block = next(b for b in python_blocks("docs/extending.md") if "class Softplus" in b)
    names: dict = {}
    exec(compile(block, "extending.md", "exec"), names)
    for dtype in ("float32", "float64", "float16"):
        x = np.array([-np.inf, -60000, -100, -1, 0, 1, 100, 60000, np.inf], dtype)
        t = minimixer.Tensor(x, requires_grad=True)
        y = names["Softplus"].apply(t)
        y.backward(np.ones_like(x))
        with np.errstate(over="ignore"):
            slope = 1 / (1 + np.exp(-x.astype("float64")))
        np.testing.assert_allclose(y.numpy(), np.logaddexp(x.astype("float64"), 0), 1e-3, 1e-6)
        np.testing.assert_allclose(t.grad, slope, rtol=1e-3, atol=1e-6)


def test_the_benchmark_measures_and_tells_where_the_time_goes(tmp_path):
    """Of the code that runs, in both kinds of work: to look at it changes nothing."""
    short = ["--runs=1", "--warm-up=1", "--steps=1", "--batch-size=32", "--profile"]
    said = Runner(tmp_path, EXAMPLES / "benchmark.py")(*short, apart=True).stdout
    for work in ("train", "inference"):
        assert re.search(rf"^ *{work} +minimixer +[\d.]+ ms .* images/s", said, re.MULTILINE), said
    train, _, inference = said.partition("\n  inference ")
    for operation in ("FastMLP forward", "FastAddLayerNorm forward", "all else"):
        line = rf"^ *{operation}.* \d+ +[\d.]+ +[\d.]+%"
        assert re.search(line, train, re.MULTILINE) and re.search(line, inference, re.MULTILINE)
    for operation in ("FastMLP backward", "FastAddLayerNorm backward", "what was put aside"):
        assert re.search(rf"^ *{operation}", train, re.MULTILINE), said
    assert not re.search(r"^ *(GELU|LayerNorm|LinearFirst)", said, re.MULTILINE), said


def test_to_look_at_a_step_changes_nothing():
    """Neither which kernels are chosen, nor whether the plain code is what they stand for."""
    model, images = small_mixer(), np.zeros((2, 8, 8, 1), np.uint8)
    for which in ("auto", "reference"):  # whose table of forms is empty
        with using(which):
            before = {plain: forms.unchanged(plain) for plain in forms.table}
            step_profile.time_products(lambda: model(images), "cpu")
            step_profile.profile(lambda: model(images), "cpu")
            assert kernels.chosen() == which
            assert {plain: forms.unchanged(plain) for plain in forms.table} == before


class Parsed(BaseException):
    pass


@pytest.mark.parametrize("command", SCRIPTS)
def test_scripts_accept_their_commands(command, monkeypatch):
    _, script, *arguments = shlex.split(command)
    parse = argparse.ArgumentParser.parse_args

    def only_parse(self, *given):
        parse(self, *given)
        raise Parsed

    monkeypatch.setattr(argparse.ArgumentParser, "parse_args", only_parse)
    if script == "-m":
        script, *arguments = arguments
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(ROOT / "examples")  # as Python does for a script
    with pytest.raises(Parsed):
        if script == "minimixer":
            monkeypatch.delitem(sys.modules, "minimixer.__main__", raising=False)
            runpy.run_module("minimixer", run_name="__main__", alter_sys=False)
        else:
            runpy.run_path(str(ROOT / script), run_name="__main__")


def test_every_command_is_understood():
    """A script's, or what every reader has: installing, testing, fetching the repository."""
    assert len(SCRIPTS) >= 15
    others = (
        r"pip install -e|pytest|git clone <address>$|cd minimixer$|python docs/|ruff|mypy|pyright|"
        r"pip install matplotlib|python -m venv .venv$|\. .venv/bin/activate$|bash \.ci/run$|"
        r"python -m minimixer\.kernels|apt-get download|for package in"
    )
    for command in COMMANDS:
        assert command in SCRIPTS or re.match(others, command), command


@pytest.mark.parametrize("page", PAGES)
def test_what_a_page_names_is_there(page):
    text = PAGES[page]
    for name in re.findall(r"`((?:examples|minimixer|docs|tests)/[\w/.]+)`", text):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", text):
        assert ((ROOT / page).parent / name).exists(), name
    text = re.sub(r"```.*?```", "", text, flags=re.DOTALL)
    roots = "minimixer|kernels|functional|weights|data|optim|backend"
    for code in re.findall(r"`([^`\n]+)`", text):
        for name in re.findall(rf"(?<![\w./])(?:{roots})(?:\.\w+)+", code):
            functools.reduce(getattr, name.removeprefix("minimixer.").split("."), minimixer)


PLAN = "docs/comparison-plan.md"  # was written before there was an answer


def test_readme_is_short_and_others_open_with_their_answer():
    assert len(README.split()) <= 1100
    results = README.split("## Results")[1].split("\n## ")[0]
    assert results.count("\n|") - 2 <= 12
    for page, text in PAGES.items():
        if page.startswith("docs/") and page != PLAN:
            title, answer = text.split("\n\n")[:2]
            assert title.startswith("# ") and len(answer.splitlines()) == 3, page
    linked = set(re.findall(r"\((docs/\w+\.md)\)", README))
    assert linked == {page for page in PAGES if page.startswith("docs/") and page != PLAN}
    assert f"({PLAN.removeprefix('docs/')})" in PAGES["docs/comparison.md"]


def test_the_drawing_is_what_its_script_draws(tmp_path, monkeypatch):
    pytest.importorskip("PIL")
    import importlib.util

    spec = importlib.util.spec_from_file_location("draw_mixer", ROOT / "docs" / "draw_mixer.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(module, "FILE", tmp_path / "mixer.svg")
    module.main()
    drawn, there = (path.read_text(encoding="utf-8")
                    for path in (tmp_path / "mixer.svg", ROOT / "docs" / "mixer.svg"))  # fmt: skip
    pixels = r"base64,[^\"]+"  # which may differ by a rounding
    assert re.sub(pixels, "", drawn) == re.sub(pixels, "", there)
    assert drawn.count("base64") == there.count("base64") == 5


def count_lines(path):
    """(lines, lines of code): those of a docstring, of comments alone and blank ones are none."""
    source = path.read_text(encoding="utf-8")
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docs = [node.body[0] for node in ast.walk(ast.parse(source))
            if isinstance(node, documented) and ast.get_docstring(node) is not None]  # fmt: skip
    no_code = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT}
    code: set[int] = set()
    for token in tokenize.generate_tokens(iter(source.splitlines(keepends=True)).__next__):
        if token.type not in no_code and token.string:
            code.update(range(token.start[0], token.end[0] + 1))
    code.difference_update(n for doc in docs for n in range(doc.lineno, doc.end_lineno + 1))
    return len(source.splitlines()), len(code)


def test_the_package_is_as_short_as_readme_says():
    said = re.search(
        r"([\d,]+) lines of code,\s+([\d,]+) with\s+docstrings.*?at\s+most (\d+)", README, re.S
    )
    code, lines, most = (int(number.replace(",", "")) for number in said.groups())
    counts = {
        path: count_lines(path)
        for room in ("engine", "nn", "model", "training")
        for path in (ROOT / "minimixer" / room).glob("*.py")
    }
    assert sum(count for count, _ in counts.values()) == pytest.approx(lines, rel=0.03)
    assert sum(count for _, count in counts.values()) == pytest.approx(code, rel=0.03)
    everything = [*(ROOT / "minimixer").rglob("*.py"), *(ROOT / "examples").rglob("*.py")]
    assert {p.name: n for p in everything if (n := count_lines(p)[0]) > most} == {}
