"""`python -m minimixer`: how it is asked, what `info` says, and what becomes of streams. What
`predict` answers is in test_predict_evaluate.py."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tomllib
import types
from pathlib import Path

import numpy as np
import pytest
from processes import ENVIRONMENT
from scripts import Runner, stopped_by
from test_devices import fake_cupy, uncached  # noqa: F401
from test_rooms import COPY_ALONE, MACHINERY

import minimixer
from minimixer import Mixer, app
from minimixer.app import info, options
from minimixer.pictures import reading
from minimixer.training import checkpoint

ROOT = Path(__file__).parents[1]
DIGIT = ROOT / "tests" / "digits" / "3_003.png"
NAMES = [command.name for command in app.COMMANDS]
PARTS = ["minimixer", "Python", "NumPy", "GPU", "kernels", "models", "extras"]


@pytest.fixture
def run(tmp_path):
    return Runner(tmp_path, "minimixer")


def parts(said):
    """What follows each of PARTS, a list of lines; all of it short."""
    lines = said.stdout.splitlines()
    assert len(lines) < 30 and all(len(line) <= info.WIDTH + 11 for line in lines), said.stdout
    found, name = {}, None
    for line in lines:
        name = line[:10].strip() or name
        found.setdefault(name, []).append(line[11:])
    assert list(found) == PARTS and not said.stderr
    return found


# ---- being asked --------------------------------------------------------------------------------


@pytest.mark.parametrize("words", [[], ["-h"], ["--help"]])
def test_help_names_every_command(run, words):
    said = run(*words)
    assert not said.stderr and len(said.stdout.splitlines()) < 15
    for command in app.COMMANDS:
        assert re.search(rf"^  {command.name} +{re.escape(command.help)}$", said.stdout, re.M)


@pytest.mark.parametrize("name", NAMES)
def test_each_command_has_help_and_refuses_other_options(run, name):
    assert run(name, "--help").stdout.startswith(f"usage: python -m minimixer {name} ")
    assert run(name, "--nonsense", status=2).stderr.startswith(f"{name}: ")


def test_a_command_is_one_entry(run, monkeypatch):
    command = types.ModuleType("minimixer.app.greet")
    command.main = lambda words, prog: print(prog, *words) or 3
    monkeypatch.setitem(sys.modules, "minimixer.app.greet", command)
    monkeypatch.setattr(app, "COMMANDS", [*app.COMMANDS, app.Command("hello", "greets", "greet")])
    assert run("hello", "you", "--all", status=3).stdout == "python -m minimixer hello you --all\n"
    assert "  hello    greets\n" in run().stdout


@pytest.mark.parametrize("word", ["nonsense", "", "--top", "in\x1b[31mfo", "x" * 5000])
def test_words_that_are_no_command(run, word):
    said = run(word, status=2)
    assert not said.stdout and said.stderr.count("\n") == 1 and len(said.stderr) < 200
    assert said.stderr[:-1].isprintable() and ", ".join(NAMES) in said.stderr


@pytest.mark.parametrize("word", app.SCRIPTS)
def test_scripts_are_the_repositorys(run, word, monkeypatch, tmp_path):
    """One sentence says where they are: in this clone, or elsewhere."""
    (line,) = run(word, "--epochs=1", status=2).stderr.splitlines()
    assert Path(line.rpartition("python ")[2]).samefile(ROOT / f"examples/{app.SCRIPTS[word]}.py")
    monkeypatch.setattr(app, "__file__", str(tmp_path / "minimixer" / "app" / "__init__.py"))
    (line,) = run(word, status=2).stderr.splitlines()
    assert f"examples/{app.SCRIPTS[word]}.py in minimixer's repository" in line


# ---- info ---------------------------------------------------------------------------------------


def test_info_says_what_is_here(run):
    found = parts(run("info"))
    assert str(ROOT / "minimixer") in found["minimixer"][0]
    assert str(ROOT / "examples") in found["minimixer"][1]
    assert found["Python"][0].startswith(sys.version.split()[0])
    assert re.match(rf"{re.escape(np.__version__)}, BLAS \S+ .*\d+ threads?$", found["NumPy"][0])
    assert found["kernels"] == ["fast"] and "digits" in found["models"][0]
    assert "209,802 parameters" in found["models"][0]


def test_extras_are_those_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    assert {extra: wanted for extra, (_, wanted) in info.EXTRAS.items()} == project[
        "optional-dependencies"
    ]
    assert sorted(re.split(r"\W", name)[0] for name in project["dependencies"]) == ["numpy", "tqdm"]


def test_the_version_is_said_once_more_where_it_is_cited():
    cited = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.search(r"^version: (.+)$", cited, re.M)[1] == minimixer.__version__


def test_packages_that_are_missing_or_broken(run, monkeypatch):
    """With what to type for them; the shell must not take > for a redirection."""
    versions = {"pillow": "13.0", "mpi4py": "4.1"}

    def version(name):
        if name in versions:
            return versions[name]
        raise info.importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(info.importlib.metadata, "version", version)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    find, cupy = info.importlib.util.find_spec, []
    monkeypatch.setattr(info.importlib.util, "find_spec",
                        lambda name: cupy if name == "cupy" else find(name))  # fmt: skip
    lines = {line.split()[0]: line for line in parts(run("info"))["extras"]}
    assert lines.keys() == info.EXTRAS.keys()
    assert "pillow 13.0 is broken (" in lines["images"]
    assert "pip install --force-reinstall pillow" in lines["images"]
    assert lines["distributed"].endswith("several processes: mpi4py 4.1; pip install mpich")
    command = shlex.split(lines["cuda"].partition(": ")[2])
    assert command == ["pip", "install", *info.EXTRAS["cuda"][1]]
    versions["cupy-cuda13x"] = "14.2"  # then the other is not to be had beside it
    cupy.append("its spec")
    lines = [line.split()[0] for line in parts(run("info"))["extras"]]
    assert "cuda13" in lines and "cuda" not in lines


@pytest.mark.parametrize("settings, said", [
    ({"error": "cudaErrorNoDevice: none"}, "none: CuPy finds no NVIDIA GPU"),
    ({"count": 1, "version": "13.0"}, "none: CuPy 13.0 is too old"),
    ({"count": 6}, "cuda:0  GPU 0, 80 GiB, CuPy 14.2.0"),
])  # fmt: skip
def test_gpus(run, uncached, settings, said):  # noqa: F811
    cupy = fake_cupy(**settings)
    cupy.cuda.runtime.getDeviceProperties = lambda number: {
        "name": f"GPU {number}".encode(), "totalGlobalMem": 80 << 30,
    }  # fmt: skip
    uncached.setitem(sys.modules, "cupy", cupy)
    lines = parts(run("info"))["GPU"]
    assert said in lines[0]
    if settings.get("count") == 6:
        assert len(lines) == 5 and lines[4] == "and 2 more"


def test_whatever_is_broken_the_rest_is_told(run, monkeypatch, tmp_path):
    def broken(*_, **__):
        raise RuntimeError("out\nof\x1b order")

    for owner, name in ((np, "show_config"), (info.platform, "python_version"),
                        (Mixer, "load"), (info.importlib.metadata, "version")):  # fmt: skip
        monkeypatch.setattr(owner, name, broken)
    monkeypatch.setitem(sys.modules, "minimixer.kernels", None)
    monkeypatch.setitem(sys.modules, "minimixer.engine.devices", None)
    found = parts(run("info"))
    for name in ("Python", "NumPy", "models", "extras"):
        assert found[name][0].startswith("can't be told: RuntimeError: out"), name
    assert found["GPU"][0].startswith("can't be told: ModuleNotFoundError")
    assert found["kernels"] == ["none: the plain code runs"]


@pytest.mark.parametrize("error", ["RuntimeError('no driver')", "ImportError('libcuda')"])
def test_packages_that_break_when_they_are_imported(run, tmp_path, error):
    """Before anything of minimixer's is, as in a damaged environment."""
    for name in ("cupy", "PIL", "safetensors"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text(f"raise {error}\n", encoding="utf-8")
    said = run("info", apart=True)
    assert "PIL" not in parts(said) and error[:-2].partition("'")[2] in parts(said)["GPU"][0]


def test_info_needs_no_other_room(tmp_path):
    """It says what is not there."""
    others = set(MACHINERY) - {"app"}
    leave = shutil.ignore_patterns("__pycache__", "mnist", *others)
    shutil.copytree(ROOT / "minimixer", tmp_path / "minimixer", ignore=leave)
    code = f"{COPY_ALONE}from minimixer.app import main\nsys.exit(main(['info']))\n"
    (tmp_path / "run.py").write_text(code, encoding="utf-8")
    done = subprocess.run([sys.executable, "run.py"], cwd=tmp_path, capture_output=True,
                          encoding="utf-8")  # fmt: skip
    found = parts(done)
    assert done.returncode == 0 and str(tmp_path) in found["minimixer"][0]
    assert "not here" in found["minimixer"][1] and "209,802" in found["models"][0]
    assert found["NumPy"][0].endswith("threads unknown") and "plain code" in found["kernels"][0]


# ---- predict without, and streams ---------------------------------------------------------------


def test_predicting_without_pillow_says_what_to_type(run, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    monkeypatch.setitem(sys.modules, "PIL.Image", None)
    assert "pip install pillow" in run("predict", DIGIT, status=2).stderr


def test_ctrl_c_is_one_word(run, monkeypatch):
    pytest.importorskip("PIL")
    calls = stopped_by("SIGINT", monkeypatch, reading, "find_pictures", at=1)
    assert run("predict", "--weights=digits", DIGIT, status=130).stderr == "predict: stopped\n"
    assert calls == [1]
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_error_that_the_user_can_mend_is_one_sentence(capsys):
    for error, said in {
        ValueError("no\n  good"): "before name: no; good\n",
        MemoryError("much"): "before name: out of memory; take less: much\n",
        KeyError("k"): "before name: 'k'\n",
    }.items():

        def program(error=error):
            raise error

        status = options.attempt(program, "name", "take less", (KeyError,), lambda: "before ")
        assert (status, *capsys.readouterr()) == (2, "", said)
    with pytest.raises(ZeroDivisionError):  # a mistake of ours
        options.attempt(lambda: 1 // 0, "name")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a POSIX shell's signs, and /dev/full")
@pytest.mark.parametrize("command", ["info", f"predict --weights=digits {DIGIT}"])
@pytest.mark.parametrize("streams, status, said", [
    (">&-", 0, ""), ("2>&-", 0, ""), ("<&- >&- 2>&-", 0, ""), (">/dev/full", 2, "No space left"),
    ("| true", 0, ""), ("2>&1 | true", 0, ""),
])  # fmt: skip
def test_streams_that_are_closed_or_full(tmp_path, command, streams, status, said):
    pytest.importorskip("PIL")
    line = f"{shlex.quote(sys.executable)} -m minimixer {command} {streams}"
    done = subprocess.run(["sh", "-c", line], cwd=tmp_path, env=ENVIRONMENT, capture_output=True,
                          encoding="utf-8")  # fmt: skip
    assert done.returncode == status and done.stderr.count("\n") == bool(said), done.stderr
    assert said in done.stderr


def test_the_models_that_come_with_it_are_there():
    assert all(os.path.isfile(file) for file in checkpoint.BUILT_IN.values())
