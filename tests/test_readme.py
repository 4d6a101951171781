"""README is true: its Python blocks run in order, its commands are ones that the scripts accept."""

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
from scripts import EXAMPLES, Runner

import minimixer

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
COMMANDS = [
    re.sub(r"^mpirun -n \d+ ", "", part.strip())  # what it starts
    for language, block in BLOCKS
    if language == "bash"
    for line in block.splitlines()
    for part in line.split("&&")
]
SCRIPTS = [command for command in COMMANDS if command.startswith("python examples/")]


def test_python_blocks(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = "--limit-train 300 --epochs 1 --hidden-dim 8 --num-blocks 1 --out runs/mnist"
    Runner(tmp_path)(*small.split())
    names: dict = {"__name__": "readme"}
    blocks = [block for language, block in BLOCKS if language == "python"]
    assert len(blocks) >= 4
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)
    assert len(names["predicted"]) == 5 and names["loss"].item() < 3


def test_the_function_that_readme_defines_is_right_everywhere():
    block = next(b for _, b in BLOCKS if "class Softplus" in b)
    names: dict = {}
    exec(compile(block, "README.md", "exec"), names)
    for dtype in ("float32", "float64", "float16"):
        x = np.array([-np.inf, -60000, -100, -1, 0, 1, 100, 60000, np.inf], dtype)
        t = minimixer.Tensor(x, requires_grad=True)
        y = names["Softplus"].apply(t)
        y.backward(np.ones_like(x))
        with np.errstate(over="ignore"):
            slope = 1 / (1 + np.exp(-x.astype("float64")))
        np.testing.assert_allclose(y.numpy(), np.logaddexp(x.astype("float64"), 0), 1e-3, 1e-6)
        np.testing.assert_allclose(t.grad, slope, rtol=1e-3, atol=1e-6)


def test_the_benchmark_measures(tmp_path):
    short = ["--runs=1", "--warm-up=1", "--steps=1", "--batch-size=4"]
    said = Runner(tmp_path, EXAMPLES / "benchmark.py")(*short, apart=True).stdout
    for work in ("train", "inference"):
        assert re.search(rf"^ *{work} +minimixer +[\d.]+ ms .* images/s", said, re.MULTILINE), said


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
    monkeypatch.setattr(sys, "argv", [script, *arguments])
    monkeypatch.syspath_prepend(ROOT / "examples")  # as Python does for a script
    with pytest.raises(Parsed):
        runpy.run_path(str(ROOT / script), run_name="__main__")


def test_every_command_is_understood():
    assert len(SCRIPTS) >= 4
    for command in COMMANDS:
        assert command in SCRIPTS or re.match(r"pip install -e|pytest", command), command


def test_files_that_readme_names_are_there():
    for name in re.findall(r"`((?:examples|minimixer)/[\w/.]+)`", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"!\[.*?\]\((.*?)\)", README):
        assert (ROOT / name).exists(), name


def test_names_in_the_text_are_there():
    text = re.sub(r"```.*?```", "", README, flags=re.DOTALL)
    roots = "minimixer|kernels|functional|weights|data|optim|backend"
    found = {name for code in re.findall(r"`([^`\n]+)`", text)
             for name in re.findall(rf"(?<![\w./])(?:{roots})(?:\.\w+)+", code)}  # fmt: skip
    assert len(found) > 3
    for name in found:
        functools.reduce(getattr, name.removeprefix("minimixer.").split("."), minimixer)


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
        r"([\d,]+) lines of code,\s+([\d,]+) with\s+docstrings.*?at most (\d+)", README, re.S
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
