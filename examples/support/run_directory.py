"""Where a run is kept: a directory that is one run's alone, and what its checkpoint says.

A new run never replaces results unless it is told to (--overwrite). Without --out it takes the
first name that is free, runs/mnist, runs/mnist-2 and so on. As long as it lasts it holds a lock
there, which ends with its process, even by a kill. A checkpoint is a file from outside: what it
says of the run's progress is checked before anything is done with it.
"""

import csv
import io
import itertools
import math
import os
import re
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from minimixer.training.checkpoint import read_checkpoint
from minimixer.training.files import Lock, replace_file
from minimixer.training.names import printable
from support.settings import Settings

# All that train_mnist.py, finetune.py and transfer.py write.
RESULTS = ("checkpoint.npz", "best.npz", "metrics.csv", "curves.png", "mistakes.png", "skipped.csv",
           "probe.npz", "probe.csv", "pretrained.npz", "sweep.csv", "transfer.csv")  # fmt: skip
# What a checkpoint holds beyond weights and optimizer; the numbers are of the row to come.
PROGRESS = {"settings": dict, "data": int, "step": int, "steps": int, "images": int,
            "loss_sum": float, "correct": int, "seconds": float, "waited": float,
            "history": list}  # fmt: skip


def claim(out: str, default: str, overwrite: bool) -> tuple[Path, Lock]:
    """The directory for a new run, and the lock on it: `out`, or the first free one called
    `default`. ValueError or OSError, and nothing is changed, if there is something to lose."""
    if overwrite and not out:
        out = default
    if out:
        if not overwrite:
            _check_free(Path(out))
        return Path(out), hold(Path(out))
    for number in itertools.count(1):
        path = Path(default if number == 1 else f"{default}-{number}")
        if not (path.exists() and not path.is_dir()) and not results_in(path):
            try:
                return path, hold(path)
            except BlockingIOError:  # a run that has not saved anything yet
                continue
    raise AssertionError


def find(out: str, default: str) -> tuple[Path, Lock]:
    """The run to resume, and the lock on it: that in `out`; or of those called `default` the one
    that was saved last, finished ones only if all are."""
    path = Path(out or default)
    if not out:
        called = re.compile(re.escape(path.name) + r"(-[1-9]\d*)?")
        found = [p for p in path.parent.glob("*/checkpoint.npz") if called.fullmatch(p.parent.name)]
        found.sort(key=lambda p: (not _is_finished(p), p.stat().st_mtime_ns))
        path = found[-1].parent if found else path
    if not (path / "checkpoint.npz").is_file():
        raise ValueError(f"--resume: there is no {printable(path / 'checkpoint.npz')}")
    return path, hold(path)


def hold(path: Path) -> Lock:
    """Make the directory, if need be, and lock it. OSError if results could not be kept there."""
    os.makedirs(os.path.realpath(path), exist_ok=True)  # of a link, the directory it leads to
    for name in RESULTS:
        if (path / name).exists() and not (path / name).is_file():
            raise ValueError(f"{path / name} is no file of ours; choose another --out")
    try:
        lock = Lock(path / ".lock")
    except BlockingIOError:
        raise BlockingIOError(
            f"another run is working in {printable(path)}: wait for its end, or choose another "
            "--out"
        ) from None
    with tempfile.TemporaryFile(dir=path):
        pass
    return lock


def results_in(path: Path) -> list[str]:
    return [name for name in RESULTS if os.path.lexists(path / name)]


def _check_free(path: Path) -> None:
    kept = results_in(path)
    if kept:
        there = ", ".join(kept)
        if kept[0] == "checkpoint.npz" and not _is_finished(path / kept[0]):
            there += " of an unfinished run (--resume goes on with it)"
        raise ValueError(
            f"{printable(path)} holds {there}: --overwrite replaces them, another --out keeps them"
        )


def _is_finished(checkpoint: Path) -> bool:
    """Is there nothing to resume? So it is of what no training script wrote."""
    try:
        progress = read_checkpoint(checkpoint)[0]["progress"]
        return bool(finished(progress))
    except (ValueError, OSError, TypeError, KeyError, AttributeError):
        return True


# ---- what a checkpoint says ---------------------------------------------------------------------


def read_progress(checkpoint: Path, settings: Settings, columns: Sequence[str]) -> dict[str, Any]:
    """The progress in `checkpoint`, its settings complete; ValueError if it is not that of a run
    with such settings and `columns` of metrics.csv."""
    progress = read_checkpoint(checkpoint)[0]["progress"]
    wrong = _wrong(progress, settings, columns)
    if wrong:
        raise ValueError(f"{checkpoint} was not written by this script: {wrong}")
    given = progress["settings"]  # older runs knew fewer
    progress["settings"] = {name: given.get(name, setting.default)
                            for name, setting in settings.items()}  # fmt: skip
    return progress


def _wrong(progress: Any, settings: Settings, columns: Sequence[str]) -> str:
    """What is wrong with it; an empty text if nothing is."""
    if not isinstance(progress, dict):
        return "it says nothing of a run"
    for key, kind in PROGRESS.items():
        if not _is_plain(progress.get(key), kind):
            return f"its {key} is {_shown(progress.get(key))}"
    for name, value in progress["settings"].items():
        known = name in settings and _is_plain(value, type(settings[name].default))
        if not known or value not in settings[name].allowed:
            return f"its setting {printable(name, 40)} is {_shown(value)}"
    if not (progress["step"] <= progress["steps"] and progress["correct"] <= progress["images"]):
        return "its numbers do not belong together"
    for row in progress["history"]:
        if not isinstance(row, dict) or list(row) != list(columns):
            return f"a row of its history is {_shown(row)}"
        for name, value in row.items():
            if not _is_figure(name, value, whole=name == columns[0]):
                return f"{name} is {_shown(value)} in its history"
    return ""


def _is_plain(value: Any, kind: type) -> bool:
    """Of that type, and a number that a run could have written."""
    if type(value) is not kind:
        return False
    return kind not in (int, float) or -1e-3 < value < 1 << 64  # a loss may be rounded below 0


def _is_figure(name: str, value: Any, whole: bool) -> bool:
    if whole or type(value) not in (int, float):
        return _is_plain(value, int)
    if name.endswith("_accuracy"):
        return 0 <= value <= 1 or value != value
    if name.endswith("_loss"):
        return not value < -1e-3  # it may be infinite, and is NaN where there was no image
    return _is_plain(float(value), float)


def _shown(value: Any) -> str:
    return printable(repr(value), 60)


# ---- what follows from the rows -----------------------------------------------------------------


def best_row(history: Sequence[dict[str, Any]]) -> int:
    """The number of the row of the best validation: the first with the highest accuracy and, of
    such, the lowest loss."""

    def worth(number: int) -> tuple[float, float]:
        accuracy, loss = (history[number][f"val_{name}"] for name in ("accuracy", "loss"))
        return accuracy, -math.inf if math.isnan(loss) else -loss

    return max(range(len(history)), key=worth)


def exhausted(history: Sequence[dict[str, Any]], patience: int) -> bool:
    """Did so many validations come after the best one? Never if `patience` is 0."""
    return bool(history and patience) and len(history) - 1 - best_row(history) >= patience


def finished(progress: dict[str, Any]) -> bool:
    """Is there nothing to go on with? A run can be stopped between its last step and its end."""
    if exhausted(progress["history"], progress["settings"].get("patience", 0)):
        return True
    return progress["step"] >= progress["steps"] and not progress["images"]


# ---- tables -------------------------------------------------------------------------------------


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file, whole or as it was."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())
