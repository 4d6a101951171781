"""The ten tasks: holes fail, solutions pass, usual mistakes get a sentence that helps; students'
files are written and kept. (Grading is test_grading.py's.)
"""

import os
import re
import subprocess
import sys
import time
import types
from pathlib import Path

import numpy as np
import pytest
from help import put
from processes import ENVIRONMENT
from scripts import Runner
from task_answers import MISTAKES, OTHERS

from minimixer import Function, Linear, Tensor, backend
from minimixer.app.tasks import checking, grading, sheets
from minimixer.app.tasks.judge import Verdict, judge
from minimixer.app.tasks.sheets import TASKS, sheet, solved, source

ROOT = Path(__file__).parents[1]
NAMES = [task.name for task in TASKS]
each_task = pytest.mark.parametrize("task", TASKS, ids=lambda task: task.short)


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path, "minimixer", ["tasks"])


def judged(task, text):
    """The verdict on a student's file with that text."""
    module = types.ModuleType(task.name)
    exec(compile(text, f"students/{task.file}", "exec"), module.__dict__)
    return judge(task.name, lambda: module)


# ---- the tasks ----------------------------------------------------------------------------------


def test_there_are_ten_in_order():
    assert [task.number for task in TASKS] == list(range(1, 11))
    assert sum(task.minutes for task in TASKS[:5]) <= 60
    names = {*sys.stdlib_module_names, "numpy", "minimixer", "tqdm"}
    assert not names & set(NAMES)  # a script's folder comes first when it imports


@each_task
def test_a_hole_fails_with_a_sentence(task):
    verdict = judged(task, sheet(task))
    assert verdict.state == "open"
    assert re.match(r"not written yet: write (forward|backward|update|smooth_fast)\b", verdict.said)


@pytest.mark.parametrize("task", TASKS[3:8], ids=lambda task: task.short)
def test_forward_is_looked_at_before_backward_is_written(task):
    _, hole = sheets.REGION.finditer(solved(task))
    text = solved(task).replace(hole[0], f'{hole[1]}raise NotImplementedError("{hole[2]}")\n')
    verdict = judged(task, text)
    assert verdict.state == "open"
    assert re.match(r"not written yet: write backward.* \(forward is right\)$", verdict.said)
    wrong = text.replace("        # solution", "        return x\n        # solution", 1)
    wrong = wrong.replace("return x", "return z", task.short == "logsumexp")
    verdict = judged(task, wrong)
    assert verdict.state == "failed" and re.match("y|loss|the loss", verdict.said), verdict


@each_task
def test_a_solution_passes_in_seconds(task):
    began = time.monotonic()
    assert judged(task, solved(task)) == Verdict("passed", "")
    assert time.monotonic() - began < 5


@each_task
def test_a_hole_is_all_that_a_student_is_not_given(task):
    """Of the solution nothing but its sentences is left, and hints and test are left behind."""
    text, whole = sheet(task), solved(task)
    regions = sheets.REGION.findall(whole)
    assert regions and len(regions) == whole.count("# solution") == text.count("# your code")
    assert "solution" not in text and "HINTS" not in text and "def test" not in text
    for region in re.finditer(sheets.REGION, whole):
        assert "\n".join(region[0].splitlines()[1:-1]) not in text
    lines = text.splitlines()
    assert max(map(len, lines)) <= 100 and len(lines) >= 25
    for page in re.findall(r"(?:minimixer|docs)/[\w/]+\.(?:py|md)", text):
        assert (ROOT / page).is_file(), page
    assert re.search(r"^Read: minimixer/", text, re.M)


@each_task
def test_three_hints(task):
    hints = source(task.name).HINTS
    assert len(hints) == 3 and all(60 < len(hint) < 400 for hint in hints)


@each_task
def test_nothing_of_the_package_or_the_docs_solves_it(task):
    """But for examples/baselines, which has GroupNorm, for images."""
    (name,) = re.findall(r"^(?:class (\w+)\(|def (\w+_fast)\()", solved(task), re.M)
    pages = [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *(ROOT / "minimixer").rglob("*.py")]
    for page in pages:
        if page.parent.name != "_solved":
            assert not re.search(rf"(class|def) {max(name)}\b", page.read_text(encoding="utf-8"))


@pytest.mark.parametrize("short, right, wrong, said", MISTAKES)
def test_a_usual_mistake_is_told(short, right, wrong, said):
    (task,) = [task for task in TASKS if task.short == short]
    assert right in solved(task)
    verdict = judged(task, solved(task).replace(right, wrong))
    assert verdict.state == "failed" and re.search(said, verdict.said), verdict
    assert len(verdict.said) < 300


@pytest.mark.parametrize("short, code, said", [
    ("huber", "return 1 if abs(x - target) < delta else 2", "ValueError in line LINE: The truth "),
    ("silu", "return np.nothing(x)", "AttributeError in line LINE: module 'numpy'"),
    ("silu", "pass", "forward returns None, and should return an array"),
    ("silu", "x *= 0.5; return x", "forward writes into input 0"),
    ("silu", "return x.astype('float64')", "y is float64 where the inputs are float32"),
    ("product", "pass", "returns 1 gradient, for 3 inputs$"),
    ("neighbours", "pass", "dx is None, and should be an array"),
    ("patches", "return x.reshape(rows, columns, -1)", "y has shape"),
    ("patches", "return x.reshape(3, 3)", "ValueError in line LINE: cannot reshape array of size"),
])  # fmt: skip
def test_what_does_not_even_run_is_told(short, code, said):
    (task,) = [task for task in TASKS if task.short == short]
    text = re.sub("raise NotImplementedError.*", lambda _: code, sheet(task), count=1)
    line = sheet(task).partition("raise NotImpl")[0].count("\n") + 1
    said, verdict = said.replace("LINE", str(line)), judged(task, text)
    assert verdict.state == "failed" and re.search(said, verdict.said), verdict


@each_task
def test_another_way_is_as_good(task):
    right, other = OTHERS[task.short]
    text = solved(task).replace("from minimixer", "import numpy as np\nfrom minimixer", 1)
    assert right in text
    assert judged(task, text.replace(right, other)) == Verdict("passed", "")


def test_every_task_has_mistakes():
    counts = [sum(short == task.short for short, *_ in MISTAKES) for task in TASKS]
    assert min(counts) >= 4


INPUTS = {
    "product": ([(2, 3)] * 3, {}),
    "broadcast": ([(2, 4, 3), (3,), (3,)], {}),
    "neighbours": ([(5, 3)], {}),
    "patches": ([(6, 2, 12)], {"rows": 2, "columns": 3, "patch": 2}),
    "logsumexp": ([(4, 5)], {}),
    "group_norm": ([(3, 2, 6), (6,), (6,)], {"groups": 2, "epsilon": 0.1}),
    "silu": ([(3, 4)], {}),
    "huber": ([(3, 4)] * 2, {"delta": 0.7}),
}


@pytest.mark.parametrize("short", INPUTS)
def test_solutions_on_every_device(short, device):
    """They are written with NumPy's functions, which hand CuPy's arrays on."""
    (task,) = [task for task in TASKS if task.short == short]
    classes = [c for c in vars(source(task.name)).values() if isinstance(c, type)]
    (function,) = [c for c in classes if issubclass(c, Function) and c is not Function]
    shapes, options = INPUTS[short]
    arrays = [checking.draw(*shape, seed=i) for i, shape in enumerate(shapes)]
    found = {}
    for where in ("cpu", device):
        leaves = [Tensor(put(where, a, "float64"), requires_grad=True) for a in arrays]
        y = function.apply(*leaves, **options)
        y.sum().backward()
        assert y.device == backend.check_device(where)
        found[where] = [y.numpy(), *[backend.to_numpy(leaf.grad) for leaf in leaves]]
    for a, b in zip(found["cpu"], found[device], strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-14)


def test_adan_on_every_device(device):
    adan = source("task09_adan").Adan
    found = []
    for where in ("cpu", device):
        layer = Linear(3, 2).to(where)
        optimizer = adan(layer.parameters(), lr=0.1, weight_decay=0.5)
        for step in range(3):
            optimizer.zero_grad()
            (layer(Tensor(put(where, checking.draw(4, 3, seed=step)))) ** 2).sum().backward()
            optimizer.step()
        found.append([backend.to_numpy(p.data) for p in layer.parameters()])
        assert found[0][0].dtype == np.float32
    for a, b in zip(*found, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


# ---- students' files ----------------------------------------------------------------------------


def test_the_list_is_that_of_the_docs(run):
    text = (ROOT / "docs/tasks/README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| (.+?) \| `(.+?)` \| (\d+) \|", text, re.M)
    assert rows == [(str(t.number), t.title, t.file, str(t.minutes)) for t in TASKS]
    for path in re.findall(r"`((?:minimixer|tests)/[\w/.]+)`", text):
        assert (ROOT / path).exists(), path
    for command in re.findall(r"^python -m minimixer tasks (.+)$", text, re.M):
        run(*command.split())
    said = run().stdout
    for task in TASKS:
        assert re.search(rf"^ *{task.number}  {task.title} +{task.minutes} minutes", said, re.M)


def test_files_are_written_and_kept(run, tmp_path):
    said = run("--out", "mine").stdout
    assert "mine: 10 of 10 tasks written" in said and "kept" not in said
    assert sorted(p.name for p in (tmp_path / "mine").iterdir()) == [t.file for t in TASKS]
    begun = tmp_path / "mine" / TASKS[2].file
    begun.write_text("my own\n", encoding="utf-8")
    (tmp_path / "mine" / TASKS[3].file).unlink()
    said = run("--out", "mine").stdout
    assert "mine: 1 of 10 tasks written\nkept, as they are there" in said
    assert said.count("task03_neighbours.py") == 1 and "task05" not in said
    assert begun.read_text(encoding="utf-8") == "my own\n"
    assert (tmp_path / "mine" / TASKS[3].file).read_text(encoding="utf-8") == sheet(TASKS[3])


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
def test_nothing_is_written_through_a_link_and_no_pipe_is_read(run, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / TASKS[0].file).symlink_to(tmp_path / "elsewhere.py")
    os.mkfifo(tmp_path / "mine" / TASKS[1].file)
    assert (
        "would be written: task01_product.py, task02_broadcast.py\n" in run("--out", "mine").stdout
    )
    assert not (tmp_path / "elsewhere.py").exists()


def test_a_file_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="task01_product"):
        sheets.write(tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_can_not_be_written_is_one_sentence(run, tmp_path):
    (tmp_path / "file").touch()
    assert "file" in run("--out", "file", status=2).stderr
    for word in ("--out", "--grade"):
        said = run(word, "", status=2).stderr
        assert said == f"tasks: {word} needs the name of a folder; see --help\n"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / TASKS[0].file).mkdir()
    assert "task01_product.py" in run("--out", "mine").stdout
    for words, said in {
        ("--task", "3"): "--grade", ("--out", "a", "--grade", "b"): "not allowed",
        ("--grade", "mine", "--task", "eleven"): "10 fast",
        ("--grade", "mine", "--limit=0"): "at least 1",
    }.items():  # fmt: skip
        assert said in run(*words, status=2).stderr


def start(folder, *words):
    return subprocess.run([sys.executable, *words], cwd=folder, env=ENVIRONMENT, timeout=60,
                          capture_output=True, encoding="utf-8")  # fmt: skip


def test_a_student_runs_a_file(run, tmp_path):
    run("--out", ".")
    task = TASKS[0]
    done = start(tmp_path, task.file)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert done.stderr.startswith("task01_product: not written yet: write backward")
    for number, hint in enumerate(source(task.name).HINTS, start=1):
        assert start(tmp_path, task.file, "hint", str(number)).stdout == hint + "\n"
    for word, end in ("hint 1", "true"), ("hint 3", "head -c 1"):  # nobody reads on: no error
        command = f"{sys.executable} {task.file} {word} | {end}"
        assert start(tmp_path, "-c", f"import os; os.system({command!r})").stderr == ""
    assert "hint 1, hint 2 or hint 3" in start(tmp_path, task.file, "hint", "4").stderr
    ending = sheet(task).partition('if __name__ == "__main__"')
    (tmp_path / task.file).write_text(solved(task) + ending[1] + ending[2], encoding="utf-8")
    done = start(tmp_path, task.file)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "task01_product: right. Next: task02_broadcast.py\n"
    (tmp_path / task.file).rename(tmp_path / "other.py")
    assert "must be named as written" in start(tmp_path, "other.py").stderr


def test_what_a_student_runs_is_what_is_graded(run, tmp_path):
    """A file may import another one beside it, in both."""
    run("--out", ".")
    (tmp_path / "mine.py").write_text("def three(dy, a, b, c):\n    return dy * b * c, dy * a * c, "
                                      "dy * a * b\n", encoding="utf-8")  # fmt: skip
    text = sheet(TASKS[0]).replace("from minimixer", "from mine import three\nfrom minimixer", 1)
    hole = re.compile(r"raise NotImplementedError.*")
    text = hole.sub("return three(dy, self.a, self.b, self.c)", text)
    (tmp_path / TASKS[0].file).write_text(text, encoding="utf-8")
    assert start(tmp_path, TASKS[0].file).returncode == 0
    assert grading.verdict_on(TASKS[0], tmp_path, 20) == Verdict("passed", "")
