"""The notebooks of docs/notebooks/ run, and hold what running them gave.

    python docs/notebooks/run.py

runs them and writes what their cells put out. Pictures and numbers may differ from one machine to
another; the kinds of outputs, and the words in them, may not.
"""

import copy
import json
import re
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "docs" / "notebooks"
NAMES = ["a_first_mixer", "inside_a_mixer"]
NUMBERS = re.compile(r"[-\d.,%:\s]+")  # with what stands around them: columns move with them
TRACES = re.compile(
    r"(?<![\w.<])(/[\w.-]+/|[A-Z]:\\)"  # a path from the root
    r"|://|\bpypi|site-packages|localhost|@[\w-]+\.|\b0x[0-9a-f]{6}"
    r"|\d ?(ms|us|s|seconds|it/s)\b|\b20\d\d-\d\d-\d\d"  # a time, a date
)
each_notebook = pytest.mark.parametrize("name", NAMES)


def load(name: str) -> dict:
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def joined(text) -> str:
    return text if isinstance(text, str) else "".join(text)


def texts(output: dict) -> dict[str, str]:
    """What a reader sees of an output as text, by its kind; of a picture, nothing."""
    found = {output.get("name", output["output_type"]): joined(output.get("text", ""))}
    for kind, data in output.get("data", {}).items():
        found[kind] = "" if kind.startswith("image/png") else joined(data)
    return found


def shown(cell: dict) -> list[dict[str, str]]:
    """All outputs of a cell, without their numbers."""
    return [
        {kind: NUMBERS.sub(" ", text).strip() for kind, text in texts(output).items()}
        for output in cell["outputs"]
    ]


def faults(notebook: dict) -> list[str]:
    """What is wrong with a notebook that was run: cells left out or out of order, errors, and what
    stands on stderr, where warnings go."""
    found = []
    for number, cell in enumerate(code_cells(notebook), 1):
        if cell["execution_count"] != number:
            found.append(f"{cell['id']}: ran as {cell['execution_count']}, is number {number}")
        for output in cell["outputs"]:
            if output["output_type"] == "error" or output.get("name") == "stderr":
                found.append(f"{cell['id']}: {output}")
    return found


def stale(committed: dict, ran: dict) -> list[str]:
    """The cells of which another run says something else, numbers apart."""
    pairs = zip(code_cells(committed), code_cells(ran), strict=True)
    return [f"{a['id']}: {shown(a)} != {shown(b)}" for a, b in pairs if shown(a) != shown(b)]


def traces(notebook: dict) -> list[str]:
    """Paths, addresses, times and dates in what was put out."""
    found = []
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            for text in texts(output).values():
                text = text.replace('xmlns="http://www.w3.org/2000/svg"', "").replace("</", "<")
                found += [f"{cell['id']}: {match[0]}" for match in TRACES.finditer(text)]
    return found


def test_these_are_all_and_each_is_small():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES
    for name in NAMES:
        assert 50_000 < (FOLDER / f"{name}.ipynb").stat().st_size < 300_000


@each_notebook
def test_what_is_committed_was_run_in_order_and_names_no_machine(name):
    notebook = load(name)
    assert len(code_cells(notebook)) > 10
    assert faults(notebook) == [] and traces(notebook) == []
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert all(cell["metadata"] == {} for cell in notebook["cells"])
    ids = [cell["id"] for cell in notebook["cells"]]
    assert len(set(ids)) == len(ids) and all(re.fullmatch(r"[a-z]+(-[a-z]+)*", i) for i in ids)


@each_notebook
def test_the_text_names_files_that_are_there_and_no_address(name):
    cells = load(name)["cells"]
    written = "".join(joined(cell["source"]) for cell in cells)
    assert "://" not in written
    files = set(re.findall(r"[\w/]+\.(?:py|ipynb)\b", written))
    assert files
    for file in files:
        assert (ROOT / file).is_file() or (FOLDER / file).is_file(), file
    (colab,) = [joined(c["source"]) for c in cells if "Colab" in joined(c["source"])]
    for part in ("not run here", "git clone <address> ", "%pip install", "os.kill(os.getpid(), 9)"):
        assert part in colab
    for cell in cells:  # one idea a cell: text is short
        limit = 40 if cell["cell_type"] == "code" else 20
        assert len(joined(cell["source"]).splitlines()) <= limit, cell["id"]


@pytest.mark.parametrize("change, check, says", [
    ({"execution_count": 5}, faults, "ran as 5"),
    ({"execution_count": None}, faults, "ran as None"),
    ({"outputs": [{"output_type": "error", "ename": "NameError"}]}, faults, "NameError"),
    ({"outputs": [{"output_type": "stream", "name": "stderr", "text": "Warning"}]}, faults,
     "stderr"),
    *[({"outputs": [{"output_type": "stream", "name": "stdout", "text": text}]}, traces, says)
      for text, says in (("in /home/me/x.py", "/home/"), ("took 3.1 s", "1 s"),
                         ("from https://example.org", "://"), (["C:\\", "x"], "C:\\"),
                         ("<Thing at 0x7f12ab34cd>", "0x7f12ab"))],
    ({"outputs": [{"output_type": "execute_result", "data": {"text/plain": "/usr/lib"}}]}, traces,
     "/usr/"),
])  # fmt: skip
def test_faults_are_found(change, check, says):
    notebook = load(NAMES[0])
    code_cells(notebook)[0].update(change)
    (found,) = check(notebook)
    assert found.startswith("load: ") and says in found


def test_what_another_run_says_is_noticed():
    notebook = load(NAMES[0])
    ran = copy.deepcopy(notebook)
    (output,) = code_cells(ran)[0]["outputs"]
    output["text"] = joined(output["text"]).replace("60000", "123")
    assert stale(notebook, ran) == []
    output["text"] += "more"
    assert len(stale(notebook, ran)) == 1
    output.update(name="other")
    assert len(stale(notebook, ran)) == 1
    code_cells(ran)[1]["outputs"].clear()
    assert len(stale(notebook, ran)) == 2


@pytest.mark.slow
@each_notebook
def test_it_runs_from_top_to_bottom(name, tmp_path):
    """In an empty directory, with all that its cells assert, and nothing on stderr."""
    for package in ("nbclient", "ipykernel", "PIL"):
        pytest.importorskip(package)
    nbformat = pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib.font_manager")  # its first import says on stderr that it waits
    run = runpy.run_path(str(FOLDER / "run.py"))["run"]
    ran = run(FOLDER / f"{name}.ipynb", tmp_path)
    assert faults(ran) == [] and traces(ran) == []
    committed = load(name)
    assert stale(committed, ran) == [] and ran["metadata"] == committed["metadata"]
    nbformat.validate(ran)
