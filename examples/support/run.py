"""What train_mnist.py and finetune.py have in common: a run that is kept on disk. Their loops are
their own; they tell a Run what came of each step, and it shows progress, writes down what was
learned so far, and stops between two steps when it is asked to.

    with Run(options, given, SETTINGS, COLUMNS, OUT, world) as run:  # takes a directory, or recalls
        run.start(model, optimizer, steps, every, data)              # settings; goes on from there
        with run.bar(total, done):
            for end in run.ends():
                while run.step < end:
                    run.add(size, *train_step(images, labels))
                    if run.interrupted:
                        return run.stop()
                run.end_row(validate)                      # of metrics.csv, and a checkpoint

run_directory.py says which directory, and whether what its checkpoint says can be true; stopping.py
what Ctrl-C, SIGTERM and a closed terminal do. If the directory was removed, it is made anew.

With several processes (minimixer/parallel) each has a Run of its own. They add up what they learned
of a step, rank 0 alone writes files, and they stop after the same step.
"""

import argparse
import contextlib
import csv
import io
import itertools
import sys
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from minimixer.optim import Optimizer
from tqdm import tqdm

from minimixer import Mixer, backend, fetch, parallel, record
from minimixer.parallel import World
from minimixer.training.checkpoint import load_checkpoint, save_checkpoint
from minimixer.training.files import replace_file
from minimixer.training.names import command, printable
from support.options import Settings, dashes
from support.run_directory import RESULTS, best_row, claim, exhausted, find, hold, read_progress
from support.stopping import StopSignal, say

LAG = 8  # steps that a GPU may be behind: it works on while Python prepares the next ones
# In 80 columns, also with hours and a few digits more.
BAR = "{desc} {percentage:3.0f}%|{bar}| {elapsed}<{remaining} {rate_fmt}{postfix}"


class Run:
    """One training run in a directory of its own: `out`, with checkpoint.npz and metrics.csv.

    ValueError or OSError, and nothing is changed, if results could not be kept there, or would
    replace others; with options.resume if there is no run to go on with, or one with other
    `settings` than those that were `given`. Else `options` gets its settings. Of the `columns` of
    metrics.csv the first counts epochs or steps, and some are of "test" or "val".
    """

    def __init__(
        self, options: argparse.Namespace, given: set[str], settings: Settings,
        columns: Sequence[str], default_out: str, world: World,
    ):  # fmt: skip
        self.options, self.given, self.settings, self.world = options, given, settings, world
        self.columns, self.held_out = columns, "test" if "test_loss" in columns else "val"
        apart = settings.keys() | {"out", "workers"}  # may differ, or are compared by start()
        world.check_same(options={k: v for k, v in vars(options).items() if k not in apart})
        self.lock, stored = None, None
        if options.resume and options.overwrite:
            raise ValueError("--overwrite is for a new run, --resume for an old one")
        if world.rank == 0:
            with contextlib.ExitStack() as until_checked:
                if options.resume:
                    self.out, self.lock = find(options.out, default_out)
                    until_checked.callback(self.lock.release)
                    stored = read_progress(self.checkpoint, settings, columns)["settings"]
                    self._check_given(stored)
                else:
                    self.out, self.lock = claim(options.out, default_out, options.overwrite)
                until_checked.pop_all()
            shown, refusal = printable(self.out), self.lock.refusal
            if refusal:
                say(f"{shown} can't be locked ({refusal}): start no other run there")
            if not options.out and self.out != Path(default_out):
                anew = f"results go to {shown}: {default_out} has those of another run"
                say(f"resuming {shown}" if options.resume else anew)
        options.out, stored = world.share((str(getattr(self, "out", "")), stored))
        self.out = Path(options.out)
        for name, value in (stored or {}).items():
            if not (name.startswith("data") and name in given):  # the data may have moved; their
                setattr(options, name, value)  # number tells whether they are the same
        self.saved: bool | None = None  # is the checkpoint one of this run? None before start()
        self.step = 0  # the next one
        self._coming: deque[tuple[int, int, Any]] = deque()  # steps whose results were not read

    def _check_given(self, stored: dict[str, Any]) -> None:
        """ValueError if other settings were asked for than those of the run to resume."""
        for name in sorted(self.given & self.settings.keys()):
            if name.startswith("data") or getattr(self.options, name) == stored[name]:
                continue
            anew = f"--weights {self.checkpoint}" + (" --head keep" if "head" in stored else "")
            raise ValueError(
                f"{dashes(name)} is {stored[name]!r} in the run to resume; leave it out, or begin "
                f"a new run from its weights, with a schedule of its own: {anew}"
            )

    def __enter__(self) -> "Run":
        return self

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if self.lock is not None:
            self.lock.release()
            if isinstance(error, OSError) and error.errno and self.saved is not None:  # a full disk
                text = f"{error.strerror}; {self._kept('--resume goes on from it')}"
                raise OSError(error.errno, text, error.filename or str(self.out)) from None

    def _kept(self, then: str) -> str:
        """What is left of a run that failed, if somebody did not remove it."""
        whole = f"the last checkpoint, {self.checkpoint}, is whole: {then}"
        gone = f"{self.checkpoint} is gone" if self.saved else "nothing was saved"
        return whole if self.saved and self.checkpoint.is_file() else gone

    @property
    def checkpoint(self) -> Path:
        return self.out / "checkpoint.npz"

    @property
    def best(self) -> Path:
        """The weights of the best validation, with --keep best."""
        return self.out / "best.npz"

    def start(self, model: Mixer, optimizer: Optimizer, steps: int, every: int, data: int) -> None:
        """Begin, or go on, with `every` steps to a row of metrics.csv. `data` is a number that
        tells data sets apart."""
        self.model, self.optimizer, self.every = model, optimizer, every
        self.lag, self.saved = 0 if model.device == "cpu" else LAG, self.options.resume
        values = {name: getattr(self.options, name) for name in self.settings}
        self.progress = {"settings": values, "data": data, "step": 0, "steps": steps}
        self._begin_row()
        self.progress["history"] = []
        world = self.world
        world.check_same(
            settings=values, data=data, steps=steps, weights=model.buffer.values,
            code=parallel.code() if world.size > 1 else "",
        )  # fmt: skip
        if self.options.resume:
            progress = None
            if world.rank == 0:
                progress = read_progress(self.checkpoint, self.settings, self.columns)
                self._check_progress(progress, data, steps)
                load_checkpoint(self.checkpoint, model, optimizer)
            self.progress = world.share(progress)
            world.broadcast(model, optimizer)
            self.progress["settings"] = values  # the data may have moved
        self.step = self.progress["step"]

    def _check_progress(self, progress: dict[str, Any], data: int, steps: int) -> None:
        if progress["data"] != data or progress["steps"] != steps:
            raise ValueError(f"the data hold other images than those of the run in {self.out}")
        first, rows = self.columns[0], progress["history"]
        ends = [self._end(number) for number in range(len(rows))]
        counts = ends if first == "step" else list(range(1, len(rows) + 1))
        last = ends[-1] if ends else 0
        if [row[first] for row in rows] != counts or not (
            last <= progress["step"] <= self._end(len(rows))
        ):
            raise ValueError(f"{self.checkpoint}: its history does not belong to its step")

    def _end(self, row: int) -> int:
        """The step with which a row ends."""
        return min((row + 1) * self.every, self.progress["steps"])

    def ends(self) -> Iterator[int]:
        """For each row to come, the step with which it ends; no more once --patience is over."""
        rows = -(-self.progress["steps"] // self.every)
        patience = getattr(self.options, "patience", 0)
        while len(self.history) < rows and not exhausted(self.history, patience):
            yield self._end(len(self.history))

    def _begin_row(self) -> None:
        self.progress.update(images=0, loss_sum=0.0, correct=0, seconds=0.0, waited=0.0)

    @contextlib.contextmanager
    def bar(self, images: int, done: int) -> Iterator[Any]:
        """Show progress, `done` of `images` were trained on before, and mind signals to stop. There
        is a line for each row as well; where nobody watches, in a file, there is no bar."""
        self._started = time.perf_counter() - self.progress["seconds"]
        watched = getattr(sys.stderr, "isatty", bool)()
        with StopSignal(self.world.rank == 0) as self._signals, tqdm(
            total=images, initial=done, unit="img", unit_scale=True, dynamic_ncols=True,
            bar_format=BAR, disable=not watched,
        ) as self._bar:  # fmt: skip
            self.interrupted = False
            yield self._bar

    def waiting(self, batches: Iterable[Any]) -> Iterator[Any]:
        """The same, with the time taken that they let us wait."""
        batches = iter(batches)
        with contextlib.closing(batches):  # type: ignore[type-var]  # a generator
            while True:
                began = time.perf_counter()
                batch = next(batches, None)
                self.progress["waited"] += time.perf_counter() - began
                if batch is None:
                    return
                yield batch

    def add(self, size: int, loss: Any, correct: Any) -> None:
        """Step number `step` was made on `size` images of all ranks: this rank's share of their
        mean loss, and how many of its own were right. ValueError once it is seen that a loss was
        not finite. `interrupted` is set once it is seen that any rank was told to stop."""
        found = (np.asarray(x) if isinstance(x, (int, float)) else x for x in (loss, correct))
        self._coming.append((self.step, size, fetch(*found)))
        self.step += 1
        self._read(self.lag)

    def skip(self) -> None:
        """Step number `step` has no images. `interrupted` is set as by `add`."""
        self.step += 1
        self.interrupted = self.interrupted or self.world.any(self._signals.requested)

    def _read(self, most: int) -> None:
        """Take in results, the oldest first, until at most so many are still to come."""
        progress = self.progress
        while len(self._coming) > most:
            step, size, fetched = self._coming.popleft()
            each = self.world.gather([*fetched.results(), self._signals.requested])
            for rank, loss in enumerate(each[:, 0]):
                if not np.isfinite(loss):
                    where = f" on rank {rank}" if self.world.size > 1 else ""
                    raise self._diverged(f"the loss became {loss}{where}", step)
            loss, correct, requested = each.sum(axis=0).tolist()
            self.interrupted = self.interrupted or requested > 0
            progress["step"] = step + 1
            progress["images"] += int(size)
            progress["loss_sum"] += loss * size
            progress["correct"] += int(correct)
            progress["seconds"] = time.perf_counter() - self._started
            self._bar.update(size)
            if not self._bar.disable:
                means = [progress[name] / progress["images"] for name in ("loss_sum", "correct")]
                self._bar.set_postfix_str("loss {:.3g}, {:.1%}".format(*means), refresh=False)

    def end_row(self, evaluate: Callable[[], dict[str, Any]]) -> None:
        """A row of metrics.csv, a checkpoint, and a line to read: what training gave since the last
        row, what `evaluate()` says, and the time that training took."""
        self._read(0)
        progress, history = self.progress, self.history
        images, seconds = progress["images"], progress["seconds"]
        step = self.columns[0] == "step"
        history.append({
            self.columns[0]: self.step if step else len(history) + 1,
            "train_loss": progress["loss_sum"] / images if images else np.nan,
            "train_accuracy": progress["correct"] / images if images else np.nan,
            **evaluate(),
            "seconds": seconds,
            "images_per_second": images / seconds if images else 0.0,
        })  # fmt: skip
        self._begin_row()
        progress["step"] = self.step
        self.world.check_same(weights=self.model.buffer.values)  # or they have drifted apart
        is_best = self.keeps_best and best_row(history) == len(history) - 1
        try:
            self._save(is_best)
        except ValueError as error:  # weights that are not finite
            history.pop()
            raise self._diverged(str(error), self.step - 1) from None
        self.write_metrics()
        row, unit, held_out = history[-1], self.columns[0], self.held_out
        total = progress["steps"] if step else -(-progress["steps"] // self.every)
        say(
            f"{unit} {row[unit]}/{total}: {held_out} accuracy {row[f'{held_out}_accuracy']:.2%}, "
            f"loss {row[f'{held_out}_loss']:.4g}; training {row['train_accuracy']:.2%}, "
            f"{row['train_loss']:.4g}{'; best' if is_best else ''}"
        )
        self._started = time.perf_counter()

    @property
    def keeps_best(self) -> bool:
        return getattr(self.options, "keep", "last") == "best"

    @property
    def reported(self) -> int:
        """The number of the row that the run is judged by; `reported_model` is its model."""
        return best_row(self.history) if self.keeps_best and self.history else len(self.history) - 1

    def reported_model(self) -> Mixer:
        if self.reported == len(self.history) - 1:
            return self.model
        best = self.world.share(Mixer.load(self.best) if self.world.rank == 0 else None)
        best.to(self.model.device).set_precision(self.model.precision)
        return best

    def _save(self, is_best: bool = False) -> None:
        """The best weights go first: a kill between the two makes only that row again."""
        if self.world.rank:
            return
        self._have_directory()
        if not self.saved and self.options.overwrite:
            for name in RESULTS[1:]:  # of another run than what will stand beside them
                (self.out / name).unlink(missing_ok=True)
        if is_best:
            save_checkpoint(self.best, self.model)
        save_checkpoint(self.checkpoint, self.model, self.optimizer, self.progress)
        self.saved = True

    def _have_directory(self) -> None:
        """Somebody may have removed it, and the lock with it."""
        if not (self.out / ".lock").exists():
            lock = hold(self.out)
            self.lock.release()
            self.lock = lock

    @property
    def history(self) -> list[dict[str, Any]]:
        """The rows of metrics.csv."""
        return self.progress["history"]

    def write_metrics(self) -> None:
        if self.world.rank == 0:
            write_rows(self.out / "metrics.csv", self.history)

    @property
    def trained(self) -> bool:
        """Has anything been learned so far?"""
        return bool(self.history or self.progress["images"] or self._coming)

    def stop(self) -> int:
        """Save all, say how to go on, and return the status to exit with."""
        self._read(0)
        self._bar.close()
        self.progress["step"] = self.step
        self._save()
        again = ["mpirun", "-n", str(self.world.size)] if self.world.size > 1 else []
        again += ["python", sys.argv[0], "--resume", "--out", str(self.out)]
        for name in sorted(self.given - self.settings.keys() - {"resume", "out"}):
            value = getattr(self.options, name)
            again += [dashes(name)] if value is True else [dashes(name), str(value)]
        say(f"stopped after step {self.step} of {self.progress['steps']}, saved in "
            f"{printable(self.checkpoint)}; to go on: {command(again)}")  # fmt: skip
        return 130

    def _diverged(self, what: str, step: int) -> ValueError:
        clip = "" if self.options.clip else ", or --clip 1"
        return ValueError(f"{what} at step {step + 1}; {self._kept('of a good state')}; try a "
                          f"lower --lr{clip}, with another --out")  # fmt: skip


def set_precision(model: Mixer, options: argparse.Namespace, given: set[str]) -> None:
    """--precision; unless it was asked for, float32 on a GPU that lacks it, which is said."""
    try:
        backend.check_precision(options.precision, model.device)
    except ValueError as error:
        if "precision" in given or options.resume:
            raise
        say(f"training in float32: {error}")
        options.precision = "float32"
    model.set_precision(options.precision)


def on_each_rank(
    train_step: Callable, model: Mixer, optimizer: Optimizer, world: World, graph: str
) -> Callable:
    """step(counts, *arrays), for train_step(*arrays, count=, first=), recorded as a CUDA graph.

    counts  how many examples each rank has; the arrays are those of this rank
    count   all of them;  first  the number among them of this rank's first
    """
    recorded = record(train_step, model, optimizer, graph=graph)
    plain = record(train_step, model, optimizer, graph="off")
    if world.size > 1:  # one rank that doesn't record would wait for the others' sums
        warnings.filterwarnings("error", message=".*could not be recorded")

    def step(counts: Sequence[int], *arrays: Any) -> Any:
        where = {"count": int(sum(counts)), "first": int(sum(counts[: world.rank]))}
        if min(counts):
            return recorded(*arrays, **where)
        # Some rank has no examples, and nothing to record: then no rank may, as a recording holds
        # the sum of all ranks' gradients.
        return (plain if counts[world.rank] else train_step)(*arrays, **where)

    return step


def parts(size: int, count: int) -> list[slice]:
    """`size` examples in `count` parts, as even as it goes; none is empty."""
    borders = [size * i // count for i in range(count + 1)]
    return [slice(a, b) for a, b in itertools.pairwise(borders) if a < b]


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """A CSV file, whole or as it was."""
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(rows)
    with replace_file(path) as file:
        file.write(text.getvalue().encode())
