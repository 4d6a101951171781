"""Grading the tasks: whatever students' code does, each has a line, and none spoils another's."""

import os
import re
import time
from pathlib import Path

import pytest
from scripts import Runner

from minimixer.app import tasks
from minimixer.app.tasks import grading
from minimixer.app.tasks.judge import Verdict
from minimixer.app.tasks.sheets import TASKS, sheet, solved


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path, "minimixer", ["tasks"])


BEHAVIOUR = {
    1: "print('x' * 10**6)\n{solved}",
    2: "while True: pass",
    3: "import sys; sys.exit(0)",
    4: "import os; os._exit(0)",
    5: "import ctypes; ctypes.string_at(0)",
    6: "def f(): return f()\nf()",
    7: "this is no Python",
    8: "import threading, time\nthreading.Thread(target=time.sleep, args=[60]).start()\n{solved}",
    9: "raise KeyboardInterrupt",
    10: "raise Exception('\\x1b[31m' * 1000)",
}  # fmt: skip
SAID = {
    1: "passed", 2: "took longer than 5 s", 3: "sys.exit in line 1", 4: r"ended \(exit status 0\)",
    5: r"crashed \(signal 11\)", 6: "RecursionError in line 1", 7: "SyntaxError",
    8: "passed", 9: "KeyboardInterrupt", 10: r"Exception in line 1: \\x1b\[31m",
}  # fmt: skip


def class_of_students(folder):
    for name, texts in {
        "ana": {t: solved(t) for t in TASKS},
        "ben": {t: solved(t) if t.number in (1, 2, 5) else sheet(t) for t in TASKS[:8]},
        "cleo": {t: BEHAVIOUR[t.number].format(solved=solved(t)) for t in TASKS},
        "dora": {},
    }.items():
        (folder / name).mkdir(parents=True)
        for task, text in texts.items():
            (folder / name / task.file).write_text(text, encoding="utf-8")
    return folder


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
def test_grading_a_class(run, tmp_path):
    """Good ones, bad ones and worse ones: a line for each, what is said of each task below it if
    asked for, and status 0. Nothing is left in their folders."""
    folder = class_of_students(tmp_path / "class")
    before = sorted(folder.rglob("*"))
    words = [f"class/{name}" for name in ("ben", "cleo", "dora", "nobody", "ana")]
    said = run("--grade", *words, "--limit=5", "--verbose")
    lines = said.stdout.splitlines()
    assert not said.stderr and sorted(folder.rglob("*")) == before
    assert [re.split(r"  +", line) for line in lines if not line.startswith("    ")] == [
        ["student", "passed", "failed", "not written"],
        ["ben", "3/10", "-", "3 4 6 7 8 9 10"],
        ["cleo", "2/10", "2 3 4 5 6 7 9 10", "-"],
        ["dora", "0/10", "-", "1 2 3 4 5 6 7 8 9 10"],
        ["nobody", "there is no such folder"],
        ["ana", "10/10", "-", "-"],
    ]
    assert len(lines) == 46 and all(line.isprintable() and len(line) < 540 for line in lines)
    (cleo,) = [i for i, line in enumerate(lines) if line.startswith("cleo")]
    for number, line in enumerate(lines[cleo + 1 : cleo + 11], start=1):
        assert re.match(rf" +{number} \w+: .*{SAID[number]}", line), line


def test_grading_one_task(run, tmp_path):
    (tmp_path / "ben").mkdir()
    (tmp_path / "ben" / TASKS[4].file).write_text(solved(TASKS[4]), encoding="utf-8")
    for one in ("5", "logsumexp", "task05_logsumexp"):
        table = run("--grade", "ben", "--task", one).stdout.splitlines()
        assert table[1].split() == ["ben", "1/1", "-", "-"] and "5 logsumexp: passed" in table[2]


@pytest.mark.skipif(os.name != "posix", reason="links and pipes as POSIX has them")
def test_what_a_student_leaves_behind_ends_no_grading(tmp_path):
    """A link to itself; in place of the verdict a pipe, or what no stack can read."""
    task = TASKS[0]
    (tmp_path / task.file).symlink_to(tmp_path / task.file)
    assert grading.verdict_on(task, tmp_path, 20).state == "failed"
    (tmp_path / task.file).unlink()
    for code in "os.mkfifo(sys.argv[3])", "open(sys.argv[3], 'w').write('[' * 19000)":
        text = f"import os, sys\n{code}\nos._exit(0)\n"
        (tmp_path / task.file).write_text(text, encoding="utf-8")
        verdict = grading.verdict_on(task, tmp_path, 20)
        assert verdict.state == "failed" and "before the test did" in verdict.said


WORSE = {
    "memory": ("a = []\nwhile True: a.append(bytes(1 << 24))", "MemoryError in line 2|longer than"),
    "disk": ("f = open('x', 'wb')\nwhile True: f.write(bytes(1 << 20))", "OSError in line 2"),
    "forks": ("import os\nfor _ in range(4): os.fork()\nwhile True: pass", "longer than 5 s"),
    "parent": ("import os, time\nos.kill(os.getppid(), 9)\ntime.sleep(9)", r"crashed \(signal 9\)"),
    "group": ("import os\nos.killpg(0, 9)", r"crashed \(signal 9\)"),
    "prints": ("print('[\"passed\", \"\"]', flush=True)\nraise SystemExit('passed')", "sys.exit"),
    "ends": ("raise GeneratorExit", "GeneratorExit in line 1$"),
    "mute": ("class E(Exception):\n def __str__(self): raise OSError('no')\nraise E", "OSError"),
    "nul": ("a = 1\0", "null bytes"),
    "empty": ("", "has no attribute 'Product'"),
    "closes": ("import os\nos.closerange(0, 200)\n{solved}", "passed"),
    "strict": ("import numpy as np\nnp.seterr(all='raise')\n{solved}", "passed"),
    "removes": ("import os, shutil\nshutil.rmtree(os.path.dirname(__file__))\n{solved}", "passed"),
    "two\nlines": ("{solved}", "passed"),
}  # fmt: skip


@pytest.mark.skipif(os.name != "posix", reason="signals, forks and links as POSIX has them")
@pytest.mark.slow
def test_one_student_spoils_no_other_line(run, tmp_path):
    """Whatever is in a folder, and whatever a folder is: a line, and the next student's turn."""
    task, words = TASKS[0], []
    for number, (name, (text, said)) in enumerate(WORSE.items()):
        (tmp_path / f"{number} {name}").mkdir()
        path = tmp_path / f"{number} {name}" / task.file
        path.write_text(text.replace("{solved}", solved(task)), encoding="utf-8")
        words.append((f"{number} {name}", said))
    for name in ("large", "pipe", "folder", "loop", "text", "last"):
        (tmp_path / name).mkdir()
    with open(tmp_path / "large" / task.file, "wb") as file:
        file.truncate(1 << 30)
    os.mkfifo(tmp_path / "pipe" / task.file)
    (tmp_path / "folder" / task.file).mkdir()
    (tmp_path / "loop" / task.file).symlink_to(tmp_path / "loop" / task.file)
    wrong = solved(task).replace("return dy * b", "return dy * self.z * b")
    (tmp_path / "text" / "answer.txt").write_text(wrong, encoding="utf-8")
    (tmp_path / "text" / task.file).symlink_to("answer.txt")
    (tmp_path / "last" / task.file).write_text(solved(task), encoding="utf-8")
    (tmp_path / "circle").symlink_to("circle")
    words += [
        ("large", "1073741824 bytes"), ("pipe", "it is a pipe"), ("folder", "it is a directory"),
        ("loop", "symbolic links"), ("text", r"AttributeError in line \d+: 'Product' object"),
        ("circle", "no such folder"), ("n" * 5000, "no such folder"), ("last", "passed"),
    ]  # fmt: skip
    done = run("--grade", *[name for name, _ in words], "--task=1", "--limit=5")
    assert not done.stderr
    said = re.sub(r"\n    ( \d)", r"\1", done.stdout).splitlines()[1:]  # a student's two lines: one
    assert len(said) == len(words)
    for line, (name, expected) in zip(said, words, strict=True):
        assert line.startswith(name[:5]) and re.search(expected, line), line


def test_what_a_student_started_is_ended(tmp_path):
    """A process that goes on after its parent has passed the test is not left behind."""
    task = TASKS[0]
    text = (
        "import subprocess, sys\nchild = subprocess.Popen([sys.executable, '-c', 'import time; "
        f"time.sleep(60)'])\nopen({str(tmp_path / 'pid')!r}, 'w').write(str(child.pid))\n"
    )
    (tmp_path / task.file).write_text(text + solved(task), encoding="utf-8")
    assert grading.verdict_on(task, tmp_path, 20) == Verdict("passed", "")
    if os.name == "posix":
        pid = int((tmp_path / "pid").read_text(encoding="utf-8"))
        for _ in range(100):
            status = Path(f"/proc/{pid}/status")
            if not status.exists() or "zombie" in status.read_text(encoding="utf-8"):
                return
            time.sleep(0.02)
        pytest.fail("it still runs")


def test_help_says_that_code_is_run():
    assert "RUNS the students' code" in tasks.__doc__ and "no sandbox" in tasks.__doc__
