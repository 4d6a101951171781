"""The table of the comparison: a row for each model, printed and as CSV."""

import argparse
import itertools
import os
import statistics
import sys
from typing import Any

from comparison.cells import Result
from comparison.data import Data
from comparison.models import FAMILIES, Spec
from minimixer.training.names import printable

COLOURS = {"attention": 208, "convolution": 39, "MLP": 170, "hybrid": 73}  # of the terminal's 256


def table(run: Any, source: Data) -> None:
    models = list(itertools.product(run.sizes, run.models))
    each = [(family, size, source, seed) for size, family in models for seed in run.seeds]
    found = iter(run.for_each(each, lambda one: run.final(*one)))
    rows = [
        make_row(source.name, run.options, list(itertools.islice(found, len(run.seeds))))
        for _ in models
    ]
    run.write("comparison.csv", rows)
    print_table(rows)
    print(f"wrote {printable(run.out / 'comparison.csv')} and {run.sweep_name}")


def transfer(run: Any, up: Data, down: Data) -> None:
    """The table of pretrain-then-transfer: accuracies downstream, costs of both."""
    if up.shape != down.shape:
        raise ValueError(
            f"a transfer needs images of one size; upstream has {up.shape}, downstream {down.shape}"
        )
    rows = []
    for size in run.sizes:
        for family in run.models:
            found = run.each_seed(run.fine_tuned, family, size, up, down)
            row = make_row(f"{up.name} -> {down.name}", run.options, [f[1:] for f in found])
            before = [f[0] for f in found]
            row["finetune_seconds"] = row["train_seconds"]
            row["finetune_flops"] = row["train_flops"]
            row["train_seconds"] += statistics.median(r["train_seconds"] for r in before)
            for key in ("train_flops", "images_seen"):  # the same for all seeds
                row[key] += before[0][key]
            row["peak_bytes"] = max(row["peak_bytes"], *(r["peak_bytes"] for r in before))
            row["fast_train_seconds"] = ""  # of two runs with other optimizers: not measured
            row["upstream_top1_mean"] = statistics.fmean(r["accuracy"] for r in before)
            rows.append(row)
            print(f"cells  {family:7} {size:6} upstream test {row['upstream_top1_mean']:.2%}, "
                  f"downstream {row['top1_mean']:.2%}", flush=True)  # fmt: skip
    run.write("transfer.csv", rows)
    print(f"pretrained on {up.name}, fine-tuned on {rows[0]['train_images']:,} images of "
          f"{down.name}; training cost is that of both")  # fmt: skip
    print_table(rows)
    print(f"wrote {printable(run.out / 'transfer.csv')} and {run.sweep_name}")


def make_row(data: str, options: argparse.Namespace, cells: list[tuple[Spec, Result]]) -> dict:
    """A row of comparison.csv: one model, all seeds."""
    spec, results = cells[0][0], [result for _, result in cells]

    def mean(key: str) -> float:
        return statistics.fmean(r[key] for r in results)

    def middle(key: str) -> Any:  # of times, which a busy machine makes longer, never shorter
        return statistics.median(r[key] for r in results) if key in results[0] else ""

    accuracies = [r["accuracy"] for r in results]
    return {
        "family": FAMILIES[spec["family"]], "model": spec["family"], "size": spec["size"],
        "data": data, "equal": options.equal, "steps": spec["steps"],
        "batch_size": min(spec["batch_size"], spec["train_images"]),
        "train_images": spec["train_images"], "lr": spec["lr"],
        "seeds": " ".join(str(s["seed"]) for s, _ in cells),
        "top1_mean": statistics.fmean(accuracies), "top1_sd": statistics.stdev(accuracies),
        "top1_each": " ".join(str(a) for a in accuracies),
        "train_top1_mean": mean("train_accuracy"),
        "gap": mean("train_accuracy") - statistics.fmean(accuracies),
        "parameters": results[0]["parameters"], "macs": results[0]["macs"],
        "images_seen": results[0]["images_seen"], "train_flops": results[0]["train_flops"],
        "train_seconds": middle("train_seconds"), "images_per_second": middle("images_per_second"),
        "peak_bytes": max(r["peak_bytes"] for r in results),
        "fast_train_seconds": middle("fast_train_seconds"),
        "fast_images_per_second": middle("fast_images_per_second"),
    }  # fmt: skip


def print_table(rows: list[dict]) -> None:
    """As in the paper's table 2, rows coloured by family where the output is a terminal."""

    def number(value: Any, form: str) -> str:
        return "" if value == "" else format(value, form)

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
            f"{row['lr']:g}", f"{row['steps']}", number(row["fast_train_seconds"], ".1f"),
            number(row["fast_images_per_second"], ",.0f"),
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
