"""Elsewhere than on a Linux terminal: other systems, other encodings, notebooks, streams that are
closed, a browser; and what comes while a script is still importing."""

import ast
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from processes import ENVIRONMENT, quick
from scripts import SCRIPT, SMALL, history, make_data, without_times

ROOT = Path(__file__).parents[1]
SOURCES = [
    path for folder in ("minimixer", "examples", "tests") for path in (ROOT / folder).rglob("*.py")
]
SCRIPTS = ["ablations", "compare", "evaluate", "finetune", "predict", "train_mnist", "transfer"]


@pytest.fixture(scope="module")
def train(tmp_path_factory):
    """The words that start a short training run."""
    small = make_data(tmp_path_factory.mktemp("data") / "small", train=40)
    return [str(SCRIPT), *SMALL, "--epochs=1", f"--data-dir={small}", "--out=run"]


def run(*command, cwd, env=ENVIRONMENT):
    return subprocess.run(command, cwd=cwd, timeout=60, capture_output=True, encoding="utf-8",
                          env=env)  # fmt: skip


# ---- encodings ----------------------------------------------------------------------------------


def without_encoding(source):
    """Line numbers of the calls in which text is read, written or piped as the machine likes."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        owner = getattr(node.func, "value", None)
        on = getattr(owner, "id", getattr(owner, "attr", "")).strip("_")
        given = {keyword.arg: getattr(keyword.value, "value", "") for keyword in node.keywords}
        if "encoding" in given:
            continue
        text = name in ("read_text", "write_text", "popen", "TextIOWrapper")
        text |= True in (given.get("text"), given.get("universal_newlines"))
        if name in ("open", "fdopen") and on not in ("os", "Image", "pillow", "archive", "gzip"):
            mode = given.get("mode", getattr(node.args[1], "value", "") if node.args[1:] else "r")
            text |= "b" not in mode
        if name in ("NamedTemporaryFile", "TemporaryFile", "SpooledTemporaryFile"):
            text |= "b" not in given.get("mode", "w+b")
        if text:
            yield node.lineno


def test_text_has_an_encoding():
    bad = ["open(p)", "open(p, 'w')", "p.open()", "p.read_text()", "p.write_text('x')",
           "run(c, text=True)", "os.popen(c)", "NamedTemporaryFile('w', mode='w')"]  # fmt: skip
    good = ["open(p, 'rb')", "os.open(p, 0)", "open(p, encoding='utf-8')", "run(c)",
            "TemporaryFile(dir=p)", "p.read_bytes()"]  # fmt: skip
    assert [line for line in bad if not list(without_encoding(line))] == []
    assert [line for line in good if list(without_encoding(line))] == []
    found = [f"{path.relative_to(ROOT)}:{line}" for path in SOURCES
             for line in without_encoding(path.read_text(encoding="utf-8"))]  # fmt: skip
    assert found == []


def test_cuda_sources_are_ascii():
    """CuPy writes them to a file in the encoding of the moment; with another letter that may fail,
    and the plain code would do their work without a word."""
    files = sorted((ROOT / "minimixer" / "kernels" / "gpu").glob("*.cu"))
    assert len(files) > 5 and all(path.read_bytes().isascii() for path in files)


# ---- other systems ------------------------------------------------------------------------------

# What Windows, macOS, a browser or a notebook lack, taken away before anything is imported.
BARE = """
import ctypes, os, runpy, signal, sys, threading

def no_linux():
    for module, names in (
        (os, "fork forkpty register_at_fork sched_getaffinity posix_fallocate getuid geteuid "
             "fchmod fchown chown umask getpgid setsid killpg mkfifo O_NONBLOCK O_NOFOLLOW "
             "O_DIRECTORY"),
        (signal, "SIGHUP SIGKILL SIGALRM SIGPIPE SIGQUIT alarm pthread_sigmask setitimer"),
    ):
        for name in names.split():
            if hasattr(module, name):
                delattr(module, name)
    for name in ("fcntl", "resource", "termios", "pwd", "grp"):
        sys.modules[name] = None
    class NoLibrary(ctypes.CDLL):
        def __init__(self, name, *rest, **options):
            if name is None:
                raise OSError("there is no C library of that name")
            super().__init__(name, *rest, **options)
    ctypes.CDLL = NoLibrary

def no_threads():
    def refuse(thread):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = refuse

def no_files():  # streams without `reconfigure`
    class Stream:
        def write(self, text):
            return os.write(1, text.encode())
        def flush(self):
            pass
    sys.stdout, sys.stderr = Stream(), Stream()

def nothing():
    pass

sys.modules["matplotlib"] = None  # it reads text as it likes
_, lacks, *sys.argv = sys.argv
globals()[lacks]()
sys.path.insert(0, os.path.dirname(sys.argv[0]))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def test_training_on_a_bare_system(train, tmp_path):
    """With the same numbers; and whoever reads text without an encoding is found."""
    (tmp_path / "bare.py").write_text(BARE, encoding="utf-8")
    strict = ["-X", "warn_default_encoding", "-W", "error::EncodingWarning"]
    rows = []
    for lacks in ("nothing", "no_linux", "no_threads", "no_files"):
        words = [*strict, "bare.py", lacks, *train, "--epochs=2", f"--out={lacks}"]
        done = run(sys.executable, *words, cwd=tmp_path)
        assert done.returncode == 0 and "test accuracy" in done.stdout, done.stderr
        assert lacks != "no_files" or not done.stderr
        rows.append(without_times(history(tmp_path / lacks)))
    assert len(rows[0]) == 2 and all(found == rows[0] for found in rows)


# ---- streams, notebooks, Ctrl-C -----------------------------------------------------------------


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a POSIX shell's signs, and /dev/full")
@pytest.mark.parametrize("streams", quick(
    [">&-", "2>&-", "<&- >&- 2>&-", "| true", "2>&1 | true", "2>/dev/full", ">/dev/full"],
    "<&- >&- 2>&-", ">/dev/full"))  # fmt: skip
def test_a_run_survives_its_streams(train, tmp_path, streams):
    """What could not be written to a file is said, once."""
    done = run("sh", "-c", f"{shlex.join([sys.executable, *train])} {streams}", cwd=tmp_path)
    assert done.returncode == 0 and "Traceback" not in done.stderr
    assert done.stderr.count("No space left") == (streams == ">/dev/full"), done.stderr
    assert (tmp_path / "run" / "checkpoint.npz").exists()
    assert (tmp_path / "run" / "metrics.csv").exists()


@pytest.mark.skipif(os.name != "posix", reason="a POSIX terminal")
def test_a_run_survives_its_terminal(train, tmp_path):
    """Which is closed while it trains; SIGHUP does not reach it (nohup, another session)."""
    import pty

    ours, theirs = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, *train, "--epochs=30"], cwd=tmp_path, env=ENVIRONMENT, stdin=theirs,
        stdout=theirs, stderr=theirs, start_new_session=True,
    )  # fmt: skip
    os.close(theirs)
    seen = b""
    while b"%" not in seen:
        seen += os.read(ours, 1000)
    os.close(ours)
    assert process.wait(60) == 0
    assert len(history(tmp_path / "run")) == 30


def test_in_a_notebook(train, tmp_path):
    pytest.importorskip("IPython", reason="needs IPython")
    cells = [
        f"%run {' '.join(train)}", f"%run {SCRIPT} --nonsense", "import signal, sys",
        "print(signal.getsignal(signal.SIGINT) is signal.default_int_handler)",
    ]  # fmt: skip
    ask = [sys.executable, "-m", "IPython", "--no-banner", "--colors=NoColor", "-c"]
    done = run(*ask, "\n".join(cells), cwd=tmp_path)
    said = done.stdout + done.stderr
    assert "test accuracy" in said and "train_mnist: unrecognized arguments: --nonsense" in said
    assert "True" in said and "SystemExit" not in said and "Traceback" not in said


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("script", SCRIPTS)
def test_ctrl_c_while_importing_is_quiet(tmp_path, script):
    """At a moment when numpy is half imported, which would make a traceback of it."""
    (tmp_path / "numpy.py").write_text(
        "import os, signal\nos.kill(os.getpid(), signal.SIGINT)\nimport time\ntime.sleep(30)\n",
        encoding="utf-8",
    )
    path = SCRIPT.with_name(f"{script}.py")
    environment = ENVIRONMENT | {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    began = time.monotonic()
    done = run(sys.executable, path, cwd=tmp_path, env=environment)
    assert done.returncode == 130 and done.stderr.strip() == f"{script}: stopped"
    assert time.monotonic() - began < 10
    (tmp_path / "numpy.py").write_text("raise ImportError('No module')\n", encoding="utf-8")
    done = run(sys.executable, path, cwd=tmp_path, env=environment)
    assert done.returncode == 1 and done.stderr.strip() == f"{script}: No module"


def test_ctrl_c_that_somebody_ignores_stays_ignored(tmp_path):
    """As in `nohup` of some shells, or `command &` in a script."""
    code = f"trap '' INT; exec {sys.executable} -c \"{{}}\""
    inside = (
        "import runpy, signal, sys; sys.argv = ['x']; "
        f"sys.path.insert(0, '{SCRIPT.parent}'); from support import begin; "
        "print(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)"
    )
    assert run("sh", "-c", code.format(inside), cwd=tmp_path).stdout == "True\n"
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler  # in this process
