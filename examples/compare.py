"""Mixer against ViT and ResNet under equal budgets: the paper's table and figures, our numbers.

    python examples/compare.py                              MNIST, small models, 2 cores: minutes
    python examples/compare.py --device cuda                larger models, on a GPU
    python examples/compare.py --data DIR                   Fashion-MNIST, CIFAR, picture folders
    python examples/compare.py --figure scaling             accuracy against training-set size
    python examples/compare.py --upstream mnist:0-4 --downstream mnist:5-9 --examples 200
    mpirun -n 2 python examples/compare.py --device cuda    each process trains models of its own

Figures, several with commas: table (the default), scaling, frontier, tokens, invariance, weights,
and decades, of letters drawn without end (comparison/decades.py).
comparison/data.py tells what can be named as data, models.py beside it what is compared and how its
costs are measured, cells.py how a model is trained (the loop is there), figures.py, tokens.py and
weights.py what the figures show.

What makes it fair, and is printed: each model of a size has about as many parameters as the others;
all have the same images in the same order, shifts, batch size, AdamW, cosine schedule with warm-up,
clipping and weight decay; --equal says whether they get equal steps, equal floating-point
operations or equal seconds. The learning rate of each comes from the same short sweep, scored on
training images that are held out from everything else. Nothing is chosen on the test set: its
accuracy is that of the last step's weights. Times and memory are measured with the plain code for
all (kernels.use("reference")), and again with the fast kernels for all.

Finished cells (one model, one seed) are kept in OUT/cells: Ctrl-C at any time, and the same command
goes on. Several processes with one OUT share the cells out between them, on a GPU each, say. Tables
and pictures there are made from the cells, and are those of the last command: an earlier one, given
again, finds its cells and makes its own again.
"""

from support import begin  # noqa: F401  isort: skip

import argparse
import contextlib
import math
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

from comparison import figures as compare_figures
from comparison.cells import (
    Busy,
    Result,
    again,
    cell_path,
    complete,
    compute_cell,
    kept,
    machine,
)
from comparison.data import Data, in_colour, load
from comparison.decades import decades
from comparison.models import (
    SIZES,
    Spec,
    costs,
    count_macs,
    make_model,
    model_config,
    patch_size,
    train_flops,
)
from comparison.options import (
    LEAST_STEPS,
    SECONDS,
    SWEEP_SEED,
    at_edge,
    check_options,
    make_parser,
)
from comparison.table import table, transfer
from comparison.tokens import tokens
from comparison.weights import weights
from minimixer import parallel
from minimixer.parallel import World
from minimixer.training.names import command
from support.kernels import using
from support.options import run_script
from support.run_directory import write_rows
from support.stopping import stop_signals

SWEEP_SHARE = 4  # a run of the sweep has one step in so many of a whole run
FIGURES = {
    "table": table, "scaling": compare_figures.scaling, "frontier": compare_figures.frontier,
    "tokens": tokens, "invariance": compare_figures.invariance,
    "weights": weights, "decades": decades,
}  # fmt: skip


class Comparison:
    """What the table and the figures ask for results: each is trained once and then kept."""

    def __init__(self, options: argparse.Namespace, world: World, out: Path):
        self.options, self.world, self.out = options, world, out
        self.device = world.use(options.device)
        self.models, self.sizes, self.seeds = options.models, options.sizes, options.seeds
        self.sweep_seed = max(SWEEP_SEED, max(self.seeds) + 1)
        self.folder = Path(options.out) / "cells"  # of all processes
        self.sweeps: dict[tuple, list[dict[str, Any]]] = {}
        self.counted: dict[str, int] = {}  # MACs
        self.told: set[Path] = set()  # cells that a line was printed about
        self.patient, self.made = True, 0  # does it wait for other processes? cells made here
        self.sweep_name = "transfer-sweep.csv" if options.upstream else "sweep.csv"

    def write(self, name: str, rows: list[dict[str, Any]]) -> None:
        """A table in OUT, which may have been removed meanwhile."""
        self.out.mkdir(parents=True, exist_ok=True)
        write_rows(self.out / name, rows)

    def batch_size(self, size: str) -> int:
        return self.options.batch_size or SIZES[size]["batch_size"]

    def spec(self, kind: str, family: str, size: str, source: Data, **changes: Any) -> Spec:
        """All that determines a cell, but for data and machine."""
        options = self.options
        spec = {
            "kind": kind, "family": family, "size": size,
            "config": model_config(family, size, source.shape, source.classes),
            "optimizer": "adamw", "weight_decay": 0.05, "clip": 1.0, "warmup": 0.1,
            "max_shift": options.max_shift, "precision": options.precision,
            "train_images": len(source.train_images),
            "batch_size": self.batch_size(size),
            "shuffle": "none", "patch_size": patch_size(source.shape, SIZES[size]["grid"]),
            "start": None, **changes,
        }  # fmt: skip
        # Are weights to be kept? Of whole runs on all images as they are, which fine-tuning starts
        # from and figures show. `start` names the weights that fine-tuning begins with. Both are
        # part of the spec, and so of the cell's name.
        whole = spec["train_images"] == len(source.train_images)
        spec["keep"] = (
            kind == "final" and whole and not (spec["start"] or spec["shuffle"] != "none")
        )
        return spec

    def keep(self, spec: Spec, compute: Callable[[], Result], weights: bool = False) -> Result:
        """The result of a complete spec, see `kept`. Busy, where `share` wants it."""

        def counted() -> Result:
            self.made += 1
            return compute()

        return kept(self.folder, spec, counted, self.patient, weights)

    def first_told(self, spec: Spec) -> bool:
        """Is this the first line about a cell?"""
        path = cell_path(self.folder, spec)
        known = path in self.told
        self.told.add(path)
        return not known

    def run(self, spec: Spec, source: Data, weights: bool = False) -> Result:
        """The result of a cell, and a line about it at its first use."""
        spec = complete(spec, source, self.device)
        arguments = self.folder, spec, source, self.device, self.options.cell_minutes
        result = self.keep(spec, lambda: compute_cell(*arguments), weights)
        if spec["kind"] == "final" and self.first_told(spec):
            how = "fine-tuned " if spec["start"] else ""
            how += "" if spec["shuffle"] == "none" else f"shuffled {spec['shuffle']} "
            print(f"cell   {spec['family']:7} {spec['size']:6} seed {spec['seed']} "
                  f"{spec['train_images']:6,} images {spec['steps']:5} steps {how}"
                  f"test {result['accuracy']:.2%} train {result['train_accuracy']:.2%}",
                  flush=True)  # fmt: skip
        return result

    def share(self, items: Iterable[Any], compute: Callable[[Any], Any]) -> int:
        """compute(item) of each, but for what needs a cell that another process is at, until there
        is nothing left to begin. So any number of processes share out the work as they find it.
        How many items were left to others."""
        patient, self.patient = self.patient, False
        items, before, left = list(items), -1, 0
        while before < self.made:
            before, left = self.made, 0
            for item in items:
                try:
                    compute(item)
                except Busy:
                    left += 1
        self.patient = patient
        return left

    def for_each(self, items: Sequence[Any], compute: Callable[[Any], Any]) -> list[Any]:
        """[compute(item) for item in items], shared out between all processes."""
        left = self.share(items, compute)
        if left and self.patient:
            if self.options.no_wait:
                raise Busy
            print(f"wait   for {left} that other processes are at", flush=True)
        return [compute(item) for item in items]

    def each_seed(self, compute: Callable, *arguments: Any, **more: Any) -> list[Any]:
        """compute(*arguments, seed=seed) for each seed."""
        return self.for_each(self.seeds, lambda seed: compute(*arguments, seed=seed, **more))

    # ---- budgets --------------------------------------------------------------------------------

    def steps(self, family: str, size: str, source: Data) -> int:
        """Training steps of a family under the budget that all share."""
        options, usual = self.options, SIZES[size]["steps"]
        if options.equal == "steps":
            return round(options.budget or usual)
        if options.equal == "flops":
            batch = min(self.batch_size(size), len(source.train_images))
            budget = 1e12 * (options.budget or 0)
            budget = budget or train_flops(self.macs("mixer", size, source), batch) * usual
            steps = budget / train_flops(self.macs(family, size, source), batch)
        else:
            spec = self.spec("final", family, size, source)
            steps = (options.budget or SECONDS) / self.costs(spec, source)["step_seconds"]
        if steps < LEAST_STEPS:
            raise ValueError(f"--budget gives {family} {steps:.1f} steps; {LEAST_STEPS} are needed")
        return int(steps)

    def costs(self, trained: Spec, source: Data) -> Result:
        """Of a model that is trained so: measured once for all images of such a shape."""
        same = ("family", "size", "config", "optimizer", "weight_decay", "clip", "precision")
        spec = {"kind": "costs", **{name: trained[name] for name in same}, "lr": 1e-3,
                "batch_size": min(trained["batch_size"], trained["train_images"]),
                "data": list(source.shape)}  # fmt: skip
        spec = complete(spec, source, self.device)
        return self.keep(spec, lambda: costs(spec, source.shape, self.device))

    def alone(self) -> None:
        """Before times are measured: with --no-wait others may be at work, so that is Busy."""
        if self.options.no_wait:
            raise Busy

    def macs(self, family: str, size: str, source: Data) -> int:
        config = model_config(family, size, source.shape, source.classes)
        key = str((family, config))
        if key not in self.counted:
            self.counted[key] = count_macs(make_model(family, config, 0))
        return self.counted[key]

    def introduce(self, *sources: Data) -> None:
        """Say what all models have in common."""
        options = self.options
        for source in sources:
            print(f"data   {source.name}: {source.classes} classes, {len(source.train_images):,} "
                  f"training images, {len(source.held_images):,} held out for the sweep, "
                  f"{len(source.test_images):,} for the test, {source.shape}")  # fmt: skip
        budget = "the size's own" if options.budget is None else f"{options.budget:g}"
        unit = {"steps": "steps", "flops": "10^12 operations", "seconds": "seconds of training"}
        rest = ", all of them in fine-tuning" if options.upstream else ""
        print(f"equal  {unit[options.equal]}: {budget}; seeds {', '.join(map(str, self.seeds))}; "
              f"shifts up to {options.max_shift}; on {machine(self.device)}\n"
              f"sweep  the same rates for all models, 1 / {SWEEP_SHARE} of the steps{rest}, scored "
              "by accuracy on held-out training images", flush=True)  # fmt: skip
        for size in self.sizes:  # a budget that is too small for one is found out before training
            for family in self.models:
                self.steps(family, size, sources[0])

    # ---- cells ----------------------------------------------------------------------------------

    def learning_rate(
        self, family: str, size: str, source: Data, rates: Iterable[float], **changes: Any
    ) -> float:
        """The best of `rates` on the held-out images, after short runs of a seed that is not one of
        the table's. Ties: the smaller loss."""
        steps = max(LEAST_STEPS, changes.pop("steps") // SWEEP_SHARE)
        rows = []

        def trial(lr: float) -> tuple[float, Spec, Result]:
            spec = self.spec("sweep", family, size, source, lr=lr, steps=steps,
                             seed=self.sweep_seed, **changes)  # fmt: skip
            return lr, spec, self.run(spec, source)

        for lr, spec, found in self.for_each(list(rates), trial):
            loss = math.inf if found["held_loss"] is None else found["held_loss"]
            diverged = found["loss"] is None or loss == math.inf
            rows.append({
                "model": family, "size": size, "data": source.title, "optimizer": spec["optimizer"],
                "steps": steps, "lr": lr, "held_out_top1": found["held_accuracy"],
                "held_out_loss": loss, "diverged": diverged,
            })  # fmt: skip
        best = min(rows, key=lambda r: (r["diverged"], -r["held_out_top1"], r["held_out_loss"]))
        if best["diverged"]:
            raise ValueError(f"{family} {size}: every learning rate diverged; give lower --lrs")
        for row in rows:
            row["chosen"] = row is best
        key = (family, size, source.name, rows[0]["optimizer"], steps)
        if key not in self.sweeps:
            self.sweeps[key] = rows
            shown = ", ".join(f"{r['lr']:g}: {r['held_out_top1']:.2%}" for r in rows)
            edge = at_edge(best["lr"], list(rates))
            print(f"sweep  {family:7} {size:6} lr {shown} -> {best['lr']:g}"
                  + (" (at the end of what was tried)" if edge else ""), flush=True)  # fmt: skip
            self.write(self.sweep_name, [r for rows in self.sweeps.values() for r in rows])
        return best["lr"]

    def final(
        self, family: str, size: str, source: Data, seed: int, count: int | None = None,
        shuffle: str = "none", budget_share: float = 1.0, weights: bool = False,
    ) -> tuple[Spec, Result]:  # fmt: skip
        """A whole run, on the first `count` training images: (spec, result), and its `weights`
        beside them if they are finite. The learning rate is that of the sweep on all images,
        whatever the count, shuffle and share of the budget."""
        steps = self.steps(family, size, source)
        lr = self.learning_rate(family, size, source, self.options.lrs, steps=steps)
        spec = self.spec("final", family, size, source, lr=lr, seed=seed, shuffle=shuffle,
                         steps=max(LEAST_STEPS, round(steps * budget_share)),
                         train_images=count or len(source.train_images))  # fmt: skip
        spec["keep"] = spec["keep"] and spec["steps"] == steps
        return spec, self.run(spec, source, weights)

    def fine_tuned(
        self, family: str, size: str, up: Data, down: Data, seed: int
    ) -> tuple[tuple[Spec, Result], tuple[Spec, Result]]:
        """Pretrained on `up`, then fine-tuned on --examples images of `down` as in the paper: a
        fresh head, SGD with momentum, no weight decay. The rate is chosen on held-out images of
        `down`, whose labels come on top of those. (spec, result) of both trainings."""
        options = self.options
        count = min(options.examples or len(down.train_images), len(down.train_images))
        steps = options.fine_steps or max(LEAST_STEPS, self.steps(family, size, up) // 4)

        def start(seed: int) -> tuple[str, tuple[Spec, Result]]:
            before = self.final(family, size, up, seed, weights=True)
            path = cell_path(self.folder, complete(before[0], up, self.device))
            return path.with_suffix(".npz").name, before

        own: dict[str, Any] = {"optimizer": "sgd", "weight_decay": 0.0, "train_images": count}
        lr = self.learning_rate(family, size, down, options.fine_lrs, steps=steps * SWEEP_SHARE,
                                start=start(self.seeds[0])[0], **own)  # fmt: skip
        name, before = start(seed)
        spec = self.spec("final", family, size, down, lr=lr, seed=seed, steps=steps, start=name,
                         **own)  # fmt: skip
        return before, (spec, self.run(spec, down))


# ---- the command --------------------------------------------------------------------------------


def main() -> int:
    with parallel.start() as world, tempfile.TemporaryDirectory() as elsewhere:
        options = make_parser(__doc__ or "", list(FIGURES)).parse_args()
        check_options(options, list(FIGURES))
        # All processes make cells; what is made of them rank 0 keeps, and others write for nobody.
        with using("untimed"):  # whatever MINIMIXER_KERNELS says: a cell's name does not tell
            return compare(
                Comparison(options, world, Path(elsewhere if world.rank else options.out))
            )


def compare(run: Comparison) -> int:
    options = run.options
    if run.world.rank == 0:
        run.folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=run.folder):  # found out before training
            pass
    mine = options.again and run.world.rank == 0  # the others find the cell gone
    try:
        with again(run.folder / options.again) if mine else contextlib.nullcontext():
            run.world.barrier()
            return make_figures(run)
    except Busy:
        print("left   what other processes are at; once they are done, the same command without "
              "--no-wait makes tables and pictures")  # fmt: skip
        return 0


def make_figures(run: Comparison) -> int:
    options, source, left = run.options, None, False
    if options.upstream:
        up, down = (load(spec, options.image_size) for spec in (options.upstream,
                                                                options.downstream))  # fmt: skip
        run.introduce(up, down)
        transfer(run, up, down)
        return 0
    for name in options.figure:
        if source is None and compare_figures.needs_data(name, options):
            source = load(options.data, options.image_size)
            source = in_colour(source) if options.colour else source
            run.introduce(source)
        try:
            FIGURES[name](run, source)
        except Busy:  # the next figures may have something to begin
            left = True
    if left:
        raise Busy
    return 0


def script() -> None:
    """main, with what the user can mend said in one sentence."""

    def program() -> int:
        try:
            with stop_signals():
                return main()
        except KeyboardInterrupt:
            again = command(["python", *sys.argv])
            print(f"\ncompare: stopped; what was finished is kept, to go on: {again}",
                  file=sys.stderr)  # fmt: skip
            return 130

    run_script(program, "compare", "--batch-size or smaller --sizes need less")


if __name__ == "__main__":
    script()
