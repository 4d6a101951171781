"""What a student reads: no machinery in it, no detours, and not much of it."""

import ast
import pickle
import re
import subprocess
import sys
from pathlib import Path

import pytest
import what_runs
from what_runs import MATHEMATICS, PACKAGE, count, pages

PAGES = pages()

# Names of the machinery that a page may not know: two-byte numbers, a GPU's affairs, fast forms,
# memory that is lent, recorded steps.
MACHINERY = {
    "two bytes": "float16 bfloat16 is_half HALF_DTYPES wide widen rounded low refresh read_low "
                 "scaled unscaled loss_scale update_if_finite FINITE",
    "a GPU": "tf32 cupy cuda is_capturing use_device_of synchronize check_not_recorded "
             "several_gpus same_device check_precision",
    "fast forms": "forms form_of current_form unchanged kernels suits destination",
    "lent memory": "join join_later aside",
    "recorded steps": "recorded record_step fingerprint staging capture",
}  # fmt: skip
# One call each into an appendix, and what the calls are for.
EXCEPTIONS = {
    "nn/parameters": {
        "low",  # a second window, bound with the others
        "loss_scale", "unscaled",  # gradients that arrive scaled
        "aside", "join",  # a gradient that is being written while somebody asks for it
    },
    "training/optimizer": {
        "loss_scale", "scaled", "update_if_finite", "FINITE",  # a step that may be put back
        "low", "refresh",  # the copy that follows an update
        "use_device_of",  # once a step
    },
    "training/optim": {"FINITE"},  # where it was before
}  # fmt: skip


def names_in(name):
    """Every name, attribute and word in quotes that a page's code uses."""
    tree = ast.parse((PACKAGE / f"{name}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.alias):
            yield from (node.name.rpartition(".")[2], node.asname)
        elif isinstance(node, ast.ImportFrom):
            yield from (node.module or "").split(".")
        elif isinstance(node, ast.Constant) and str(node.value).isidentifier():
            yield node.value


@pytest.mark.parametrize("name", PAGES)
def test_a_page_knows_no_machinery(name):
    """What an operation needs of it is arranged around it, in appendices; the exceptions are
    needed, and few."""
    forbidden = {word for words in MACHINERY.values() for word in words.split()}
    assert set(names_in(name)) & forbidden == EXCEPTIONS.get(name, set()) & forbidden


@pytest.fixture(scope="module")
def found():
    """In a process of its own, where no other test has left a thread or a trace."""
    code = "import pickle, sys, what_runs; sys.stdout.buffer.write(pickle.dumps(what_runs.trace()))"
    here = {"cwd": Path(what_runs.__file__).parent, "capture_output": True, "check": True}
    return pickle.loads(subprocess.run([sys.executable, "-c", code], **here).stdout)


def test_a_step_runs_through_few_lines_of_few_files(found):
    """The limits are what is; DESIGN's are 3,000 lines, 60 lines of appendices, 4,500 events."""
    assert len(PAGES) <= 25 and len(found.lines) <= 28
    assert sum(found.whole.values()) <= 3480
    assert found.executed_outside(set(PAGES)) <= 150
    if sys.version_info < (3, 12):  # from where on a comprehension is no call
        assert found.outside(MATHEMATICS) <= 5100
        assert sum(found.calls.values()) <= 1520 and found.moves <= 600


def test_what_a_step_runs_is_named_to_be_read(found):
    """No page in the path but those of what is not part of a step, none of the machinery runs."""
    unused = {"engine/grad_mode", "engine/gradcheck", "nn/initial", "training/schedules",
              "training/loop"}  # fmt: skip
    assert set(PAGES) - set(found.lines) == unused
    assert {name.partition("/")[0] for name in found.lines} == {"engine", "nn", "model", "training"}


def test_how_soon_a_reader_gets_there():
    """Lines from the engine's first, to the end of the page where it is."""
    ends, line = {}, 0
    for name in PAGES:
        line += count(name)
        ends[name] = line
    first = re.search(r"x\.grad", (PACKAGE / "engine/backward.py").read_text(encoding="utf-8"))
    assert first  # a doctest prints a gradient
    assert ends["engine/autograd"] + 30 <= 350
    assert ends["engine/tensor"] <= 950
    assert ends["model/block"] <= 2150 and ends["training/loop"] <= 2895
