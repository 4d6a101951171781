"""The table of the comparison: a row for each model, printed and as CSV."""

import itertools
import operator
import os
import statistics
import sys
from pathlib import Path
from typing import Any

from comparison.cells import CURVE_IMAGES, CURVE_POINTS, Result, cell_path, complete
from comparison.data import Data
from comparison.figures import LOOKS, label, legend_below, save, start_figure
from comparison.models import FAMILIES, Spec
from comparison.options import at_edge
from minimixer.training.names import for_picture, printable
from support.run_directory import write_rows

COLOURS = {"attention": 208, "convolution": 39, "MLP": 170, "hybrid": 73}  # of the terminal's 256
COUNTED = ("parameters", "macs", "images_seen", "train_flops")
MEASURED = ("images_per_second", "fast_images_per_second", "peak_bytes")
MODEL = operator.itemgetter("model", "size")  # whose rows stand together
PANEL = operator.itemgetter("data", "size")  # whose curves do
FLAT = 0.005  # a curve that rises by no more at its end


def table(run: Any, source: Data) -> None:
    each = [(family, size, source, seed)
            for size in run.sizes for family in run.models for seed in run.seeds]  # fmt: skip
    found = run.for_each(each, lambda one: run.final(*one))
    run.alone()
    runs = [run_row(run, source, *cell) for cell in found]
    run.write("runs.csv", runs)
    tell(run.out, runs)
    print(f"wrote {printable(run.out / run.sweep_name)}")


def transfer(run: Any, up: Data, down: Data) -> None:
    """The table of pretrain-then-transfer: accuracies downstream, costs of both."""
    if up.shape != down.shape:
        raise ValueError(
            f"a transfer needs images of one size; upstream has {up.shape}, downstream {down.shape}"
        )
    rows = []
    models = list(itertools.product(run.sizes, run.models))

    def seeds_of(model: tuple[str, str]) -> Any:
        size, family = model
        return run.each_seed(run.fine_tuned, family, size, up, down)

    found = run.for_each(models, seeds_of)
    run.alone()
    for seeds in found:
        row = make_row([run_row(run, down, *tuned) for _, tuned in seeds])
        before = make_row([run_row(run, up, *pretrained) for pretrained, _ in seeds])
        row["data"] = f"{up.name} -> {down.name}"
        row["finetune_seconds"] = row["train_seconds"]
        row["finetune_flops"] = row["train_flops"]
        for key in ("train_seconds", "fast_train_seconds", "train_flops", "images_seen"):
            row[key] += before[key]
        row["peak_bytes"] = max(row["peak_bytes"], before["peak_bytes"])
        row["upstream_top1_mean"] = before["top1_mean"]
        rows.append(row)
        print(f"cells  {row['model']:7} {row['size']:6} upstream test {before['top1_mean']:.2%}, "
              f"downstream {row['top1_mean']:.2%}", flush=True)  # fmt: skip
    run.write("transfer.csv", rows)
    print(f"pretrained on {up.name}, fine-tuned on {rows[0]['train_images']:,} images of "
          f"{down.name}; training cost is that of both")  # fmt: skip
    print_table(rows)
    print(f"wrote {printable(run.out / 'transfer.csv')} and {run.sweep_name}")


def run_row(run: Any, source: Data, spec: Spec, result: Result) -> dict[str, Any]:
    """A row of runs.csv: one model, one seed."""
    rates = run.options.fine_lrs if spec["start"] else run.options.lrs
    row = {
        "cell": cell_path(run.folder, complete(spec, source, run.device)).name,
        "family": FAMILIES[spec["family"]], "model": spec["family"], "size": spec["size"],
        "data": source.base, "equal": run.options.equal, "steps": spec["steps"],
        "batch_size": min(spec["batch_size"], spec["train_images"]),
        "train_images": spec["train_images"], "lr": spec["lr"],
        "edge": int(at_edge(spec["lr"], rates)), "seed": spec["seed"],
        "top1": result["accuracy"], "train_top1": result["train_accuracy"],
    }  # fmt: skip
    row |= curve_columns(result) | {name: result[name] for name in COUNTED}
    costs = run.costs(spec, source)
    for kind in ("", "fast_"):
        row[f"{kind}train_seconds"] = spec["steps"] * costs[f"{kind}step_seconds"]
    return row | {name: costs[name] for name in MEASURED}


def curve_columns(result: Result) -> dict[str, float]:
    return {f"curve_{n}": accuracy for n, (_, accuracy) in enumerate(result["curve"], 1)}


def rise(runs: list[dict[str, Any]]) -> float:
    """Of the mean curve, from the sixth of its eight points to the last."""
    ends = f"curve_{CURVE_POINTS}", f"curve_{CURVE_POINTS - 2}"
    last, before = (statistics.fmean(r[end] for r in runs) for end in ends)
    return last - before


def make_row(runs: list[dict[str, Any]]) -> dict[str, Any]:
    """A row of comparison.csv: one model, all seeds."""

    top1, train = ([r[key] for r in runs] for key in ("top1", "train_top1"))
    same = (*COUNTED, "train_seconds", "fast_train_seconds", *MEASURED)  # for all seeds
    return {
        **{key: runs[0][key] for key in ("family", "model", "size", "data", "equal", "steps",
                                         "batch_size", "train_images", "lr", "edge")},
        "seeds": " ".join(str(r["seed"]) for r in runs),
        "top1_mean": statistics.fmean(top1), "top1_sd": statistics.stdev(top1),
        "top1_each": " ".join(map(str, top1)),
        "train_top1_mean": statistics.fmean(train),
        "gap": statistics.fmean(train) - statistics.fmean(top1), "rise": rise(runs),
        **{key: runs[0][key] for key in same},
    }  # fmt: skip


def make_rows(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each model, and data set if there are several."""
    groups = itertools.groupby(runs, lambda row: (PANEL(row), MODEL(row)))
    return [make_row(list(each)) for _, each in groups]


def tell(out: Path, runs: list[dict[str, Any]]) -> None:
    """The table of the rows of runs.csv, printed and as comparison.csv, and their curves; draw.py
    gives those of several data sets."""
    rows = make_rows(runs)
    write_rows(out / "comparison.csv", rows)
    for data, each in itertools.groupby(rows, operator.itemgetter("data")):
        print(f"table  {printable(data)}")
        print_table(list(each))
    rising = [f"{printable(r['data'])} {r['model']} {r['size']} {100 * r['rise']:+.2f}"
              for r in rows if not flat(r)]  # fmt: skip
    share = f"{CURVE_POINTS - 2} / {CURVE_POINTS} of the steps to the end"
    print(f"curves: from {share}, on {CURVE_IMAGES:,} test images at most, "
          + (f"not flat, in points: {', '.join(rising)}" if rising else
             f"none rises by more than {100 * FLAT:g} points: all are flat"))  # fmt: skip
    figure = start_figure(1 + 4 * len(set(map(PANEL, runs))), 4.3)
    if figure is not None:
        draw_curves(figure, runs)
    save(figure, out / "curves.png", out / "comparison.csv", out / "runs.csv")


def flat(row: dict[str, Any]) -> bool:
    return round(row["rise"], 9) <= FLAT  # 0.905 - 0.9 is a little more than 0.005


def draw_curves(figure: Any, runs: list[dict[str, Any]]) -> None:
    """Mean and standard deviation over the seeds; a panel for each data set and size."""
    panels = dict.fromkeys(map(PANEL, runs))
    all_axes = figure.subplots(1, len(panels), squeeze=False)[0]
    for panel, axes in zip(panels, all_axes, strict=True):
        own = [row for row in runs if PANEL(row) == panel]
        for (family, _), each in itertools.groupby(own, MODEL):
            seeds = list(each)
            places = [seeds[0]["steps"] * n / CURVE_POINTS for n in range(1, CURVE_POINTS + 1)]
            heights = [[100 * r[f"curve_{n}"] for r in seeds] for n in range(1, CURVE_POINTS + 1)]
            colour, marker, line = LOOKS[family]
            axes.errorbar(
                places, [statistics.fmean(h) for h in heights],
                [statistics.stdev(h) for h in heights], color=colour, marker=marker,
                linestyle=line, capsize=3, label=label(family, "", []),
            )  # fmt: skip
        data, size = panel
        axes.set_title(f"{for_picture(data)}, {size}", fontsize=10)
        axes.set(xlabel="training step", ylabel="test accuracy, %")
        axes.grid(alpha=0.3)
    legend_below(figure, all_axes[0])
    figure.suptitle(f"{CURVE_IMAGES:,} test images at most", fontsize=9)


def print_table(rows: list[dict]) -> None:
    """As in the paper's table 2, rows coloured by family where the output is a terminal."""
    head = ["model", "family", "top-1, %", "train, %", "gap", "param., k", "MACs, M", "train, s",
            "TFLOP", "images/s", "peak, MiB", "lr", "steps", "fast: s", "images/s"]  # fmt: skip
    cells = [head]
    for row in rows:
        cells.append([
            f"{row['model']} {row['size']}", row["family"],
            f"{100 * row['top1_mean']:.2f} ± {100 * row['top1_sd']:.2f}",
            f"{100 * row['train_top1_mean']:.2f}", f"{100 * row['gap']:.2f}",
            f"{row['parameters'] / 1e3:,.1f}", f"{row['macs'] / 1e6:,.2f}",
            f"{row['train_seconds']:.1f}", f"{row['train_flops'] / 1e12:.3f}",
            f"{row['images_per_second']:,.0f}", f"{row['peak_bytes'] / 2**20:,.1f}",
            f"{row['lr']:g}", f"{row['steps']}", f"{row['fast_train_seconds']:.1f}",
            f"{row['fast_images_per_second']:,.0f}",
        ])  # fmt: skip
    widths = [max(len(line[i]) for line in cells) for i in range(len(head))]
    colour = sys.stdout.isatty() and "NO_COLOR" not in os.environ
    for number_of_row, line in enumerate(cells):
        padded = [c.ljust(w) for c, w in zip(line[:2], widths[:2], strict=True)]
        padded += [c.rjust(w) for c, w in zip(line[2:], widths[2:], strict=True)]
        text = "  ".join(padded)
        if colour and number_of_row:
            text = f"\033[38;5;{COLOURS[line[1]]}m{text}\033[0m"
        print(text)
        if not number_of_row:
            print("-" * len(text))
    print("top-1: mean and standard deviation over the seeds; gap: train minus test, in points; "
          "TFLOP: of training,\n6 x MACs x images; times: of the plain code and, last, of "
          "the fast kernels, for all alike")  # fmt: skip
