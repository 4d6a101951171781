"""Example scripts as tests run them: in this process, or in one to which something happens."""

import contextlib
import functools
import os
import re
import runpy
import select
import shlex
import signal
import subprocess
import sys
import tempfile
import warnings
from io import StringIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from processes import read_csv

from minimixer.training.idx import write_idx

EXAMPLES = Path(__file__).parents[1] / "examples"
SCRIPT = EXAMPLES / "train_mnist.py"
SMALL = [
    "--patch-size=4", "--num-blocks=2", "--hidden-dim=16", "--tokens-mlp-dim=8",
    "--channels-mlp-dim=32", "--batch-size=32", "--epochs=4", "--lr=0.02",
]  # fmt: skip
CLOCK = ("waiting", "seconds", "images_per_second")  # of metrics.csv: what no two runs share

# Runs the script, but does something to it at a chosen moment: "WHEN NUMBER ACTION".
DRIVER = """
import os, resource, runpy, shutil, signal, sys, time
from minimixer import SGD, AdamW, Mixer, kernels
from minimixer.kernels import unchanged

when, number, action = sys.argv[1].split()
calls = 0

def act():
    if action in ("full", "brimful", "cut"):  # no file can grow: an error, or the end
        if action == "cut":
            resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
            signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
        limit = 0 if action == "brimful" else 5000
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    elif action == "twice":
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    elif action in ("remove", "usurp"):
        shutil.rmtree(sys.argv[-1].removeprefix("--out="))
        if action == "usurp":
            open(sys.argv[-1].removeprefix("--out="), "x").close()
    elif action in ("sleep", "nap"):
        print("asleep", file=sys.stderr, flush=True)
        time.sleep(60 if action == "sleep" else 2)
    else:
        os.kill(os.getpid(), getattr(signal, action))

def hook(owner, name, event, after):
    original = getattr(owner, name)

    def wrapper(*arguments, **options):
        global calls
        calls += 1
        if calls == int(number) and not after:
            act()
        result = original(*arguments, **options)
        if calls == int(number) and after:
            act()
        return result

    if event == when:
        setattr(owner, name, wrapper)

for kind in (AdamW, SGD):
    hook(kind, "__init__", "made", True)
    hook(kind, "step", "step", True)
hook(Mixer, "predict_logits", "predict", False)
hook(os, "fsync", "fsync", False)
hook(os, "replace", "replace", False)
hook(os, "replace", "replaced", True)
unchanged._held.clear()
unchanged.remember(unchanged.known())  # what is hooked counts as the plain code: the same bits
kernels._forms.clear()
kernels.use("auto")
sys.argv = sys.argv[2:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def make_data(path, train=80, test=30, shape=(12, 8), classes=3, seed=0, rows=(2, 5, 8)):
    """Images with one bright row for each class: a small model learns them in seconds."""
    path.mkdir(exist_ok=True)
    rng = np.random.default_rng(seed)
    for split, count in (("train", train), ("t10k", test)):
        labels = np.arange(count) % classes
        images = rng.integers(0, 100, (count, *shape))
        images[np.arange(count), np.take(rows, labels)] += 150
        kind = f"idx{images.ndim}"
        write_idx(path / f"{split}-images-{kind}-ubyte", images.astype(np.uint8))
        write_idx(path / f"{split}-labels-idx1-ubyte", labels.astype(np.uint8))
    return path


@contextlib.contextmanager
def killed_at_last(process):
    """Else a test that fails would wait for its process."""
    try:
        yield
    finally:
        process.kill()


def wait_for(process, *texts):
    """Reads stdout and stderr, as it comes, until one of `texts` is there; returns what came."""
    met = {process.stdout: "", process.stderr: ""}
    while not any(text in said for said in met.values() for text in texts):
        for stream in select.select(list(met), [], [], 60)[0]:
            character = os.read(stream.fileno(), 1).decode()
            assert character, met
            met[stream] += character
    return "".join(met.values())


class Said(NamedTuple):
    stdout: str
    stderr: str


class Runner:
    """run(*options) runs the script in `cwd`, after the `usual` options, without matplotlib unless
    `pictures`: in this process, or in one of its own if `apart`, or for what only start can do.
    `script`: its path, or what `python -m` runs: a string."""

    def __init__(self, cwd, script=SCRIPT, usual=()):
        self.cwd, self.script, self.usual = cwd, script, usual

    def start(self, *options, at=None, warnings="error", pictures=False, terminal=None, **more):
        """The process; at="WHEN NUMBER ACTION" makes something happen to it."""
        paths = [] if pictures else [without_matplotlib().name]
        paths += [EXAMPLES.parent, *self._path(), *sys.path]
        environment = {
            **os.environ, "PYTHONPATH": os.pathsep.join(str(path) for path in paths if path),
            "PYTHONWARNINGS": warnings, "PYTHONUNBUFFERED": "1",
            "OPENBLAS_NUM_THREADS": "1",  # two threads on busy processors wait for each other
        }  # fmt: skip
        command = [sys.executable, *(["-c", DRIVER, at] if at else self._module())]
        command += [self.script]
        return subprocess.Popen(
            [str(word) for word in (*command, *self.usual, *options)], cwd=self.cwd,
            env=environment, encoding="utf-8", stdin=subprocess.DEVNULL,
            **dict.fromkeys(("stdout", "stderr"), terminal or subprocess.PIPE) | more,
        )  # fmt: skip

    def _module(self):
        return ["-m"] if isinstance(self.script, str) else []

    def _path(self):
        return [] if isinstance(self.script, str) else [self.script.parent]

    def __call__(self, *options, status=0, apart=False, **more):
        """What it said, until it ended with `status` and without a traceback."""
        if apart or more.keys() - {"warnings", "pictures"}:
            with self.start(*options, **more) as process, killed_at_last(process):
                said = Said(*process.communicate(timeout=120))
            ended = process.returncode
        else:
            said, ended = self._here(*options, **more)
        assert "Traceback" not in "".join(said), said.stderr
        assert ended == status, (ended, *said)
        return said

    def _here(self, *options, warnings="error", pictures=False):
        words = [str(word) for word in (self.script, *self.usual, *options)]
        with (
            contextlib.chdir(self.cwd), pytest.MonkeyPatch.context() as patch,
            contextlib.redirect_stdout(StringIO()) as out, quietly(warnings),
            contextlib.redirect_stderr(StringIO()) as err,
        ):  # fmt: skip
            for name in () if pictures else ("matplotlib", "matplotlib.figure"):
                patch.setitem(sys.modules, name, None)
            patch.setattr(sys, "argv", words)
            with pytest.raises(SystemExit) as ended:
                if isinstance(self.script, str):
                    patch.delitem(sys.modules, f"{self.script}.__main__", raising=False)
                    runpy.run_module(self.script, run_name="__main__")
                else:
                    runpy.run_path(str(self.script), run_name="__main__")
        return Said(out.getvalue(), err.getvalue()), ended.value.code or 0

    def refused(self, *options, match="", status=2, **more):
        """The one line with which the script ends."""
        err = self(*options, status=status, **more).stderr
        (line,) = err.splitlines()
        assert line.startswith(self.script.stem) and re.search(match, line), line
        assert err.endswith("\n")
        return line

    def resume(self, said, **more):
        """Run the command that a stopped run names in its last line."""
        line = said.stdout.splitlines()[-1]
        python, script, *options = shlex.split(line.partition("to go on: ")[2])
        assert python == "python" and Path(script).samefile(self.script) and "--resume" in options
        return Runner(self.cwd, self.script)(*options, **more)


@contextlib.contextmanager
def quietly(action):
    with warnings.catch_warnings():
        warnings.simplefilter(action)
        yield


@functools.cache
def without_matplotlib():
    """A directory that hides matplotlib, which would take longer than the training."""
    folder = tempfile.TemporaryDirectory()
    path = Path(folder.name, "matplotlib.py")
    path.write_text("raise ImportError('hidden')\n", encoding="utf-8")
    return folder


def watch(patch, owner, name, note):
    """Whatever calls owner.name tells note(...) before, with the same arguments."""
    original = getattr(owner, name)

    def watched(*arguments, **options):
        note(*arguments, **options)
        return original(*arguments, **options)

    patch.setattr(owner, name, watched)


def stopped_by(name, patch, owner, function, at):
    """This process sends itself that signal at so manyth a call of owner.function; the list gets
    longer with each call."""
    number, calls = getattr(signal, name, None), []
    if number is None or os.name == "nt":
        pytest.skip(f"no {name} here")

    def stop(*_):
        calls.append(1)
        if len(calls) == at:
            os.kill(os.getpid(), number)

    watch(patch, owner, function, stop)
    return calls


def history(out):
    return read_csv(out / "metrics.csv")


def without_times(rows):
    return [{key: value for key, value in row.items() if key not in CLOCK} for row in rows]


def results(out):
    """The names of what a run left, but for its lock."""
    return sorted(set(os.listdir(out)) - {".lock"})


def contents(path):
    return {file.relative_to(path): file.read_bytes() for file in path.rglob("*") if file.is_file()}
