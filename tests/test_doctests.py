"""Every docstring's examples run when they are pasted into a fresh Python.

Usually doctest lends an example all names of its module; here it gets none, and must import what it
uses, as a reader must.
"""

import doctest
import importlib
import pkgutil
import re
import traceback
from pathlib import Path

import pytest

import minimixer

ROOMS = pkgutil.walk_packages(minimixer.__path__, "minimixer.")
MODULES = [
    importlib.import_module(name)
    for name in ["minimixer", *sorted(room.name for room in ROOMS)]
    if not name.endswith("__main__")
]
EXAMPLES = [
    test
    for module in MODULES
    for test in doctest.DocTestFinder().find(module, globs={"__name__": "__main__"})
    if test.examples
]


@pytest.mark.parametrize("test", EXAMPLES, ids=lambda test: test.name)
def test_examples_run_in_a_fresh_python(test):
    """Skipped is what needs a package that is not installed."""
    try:
        doctest.DebugRunner().run(test, clear_globs=False)
    except doctest.DocTestFailure as failure:
        pytest.fail(f"{failure.example.source}is\n{failure.got}not\n{failure.example.want}")
    except doctest.UnexpectedException as failure:
        error = failure.exc_info[1]
        name = getattr(error, "name", None) or "minimixer"
        if isinstance(error, ModuleNotFoundError) and not name.startswith("minimixer"):
            pytest.skip(f"needs {name}")
        pytest.fail("".join(traceback.format_exception(error)))


def test_no_example_is_left_out():
    sources = [Path(module.__file__).read_text(encoding="utf-8") for module in MODULES]
    there = sum(len(re.findall(r"^ *>>> ", source, flags=re.MULTILINE)) for source in sources)
    assert sum(len(test.examples) for test in EXAMPLES) == there > 300
