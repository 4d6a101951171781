"""The tables and pictures of docs/comparison.md, from the numbers of each run beside this file.

    python docs/comparison/draw.py

decades.csv and runs.csv have a row for each run. What is made of them is written beside them, of
all runs.csv together beside this file, and as tables into the page, each between <!-- its name -->
and <!-- end -->. No GPU is needed, nor the data.
"""

import contextlib
import csv
import itertools
import re
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
PAGE = HERE.with_suffix(".md")
sys.path.insert(0, str(HERE.parents[1] / "examples"))

from comparison import decades, table  # noqa: E402
from comparison.figures import NAMES  # noqa: E402
from comparison.gains import differences_of, gains_of, in_words  # noqa: E402
from minimixer.training.files import replace_file  # noqa: E402

Rows = list[dict[str, Any]]


def main(folder: Path = HERE, page: Path = PAGE) -> None:
    text = page.read_text(encoding="utf-8")
    for path in sorted(folder.glob("*/decades.csv")):
        print(f"\n{path.parent.name}:")
        rows = rows_of(path)
        decades.tell(path.parent, rows)
        fresh = [row | {"letters": 0} for row in rows_of(path.with_name("untrained.csv"))]
        text = put(text, path.parent.name, scaling(rows + fresh))
    runs = [row for path in sorted(folder.glob("*/runs.csv")) for row in rows_of(path)]
    if runs:
        table.tell(folder, runs)
        text = put(text, "accuracies", accuracies(runs))
        text = put(text, "costs", costs(table.make_rows(runs)))
    tried = [row for path in sorted(folder.glob("*/sweep.csv")) for row in rows_of(path)]
    text = put(text, "rates", sweeps(tried))
    with replace_file(page) as file:
        file.write(text.encode())


def rows_of(path: Path) -> Rows:
    """The rows of a CSV file, numbers as numbers; none if there is no such file. Exits if it has no
    rows, or one of them is cut."""
    if not path.exists():
        return []
    try:
        rows = list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))
    except (UnicodeDecodeError, csv.Error) as error:
        raise SystemExit(f"draw.py: {path} is no CSV file: {error}") from None
    for line, row in enumerate(rows, 2):
        if None in row or None in row.values():
            raise SystemExit(f"draw.py: {path}, line {line}: more or fewer values than columns")
    if not rows:
        raise SystemExit(f"draw.py: {path} has no rows")
    return [{name: number(text) for name, text in row.items()} for row in rows]


def number(text: str) -> int | float | str:
    """A whole number, else any, else the text."""
    for kind in (int, float):
        with contextlib.suppress(ValueError):
            return kind(text)
    return text


def put(page: str, name: str, tables: str) -> str:
    """The page with these tables at their place, if it has one."""
    place = re.compile(rf"(<!-- {re.escape(name)} -->\n)(?:(?!<!-- ).)*(<!-- end -->)", re.DOTALL)
    return place.sub(lambda met: f"{met[1]}\n{tables}\n{met[2]}", page)


def lines(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def accuracies(runs: Rows) -> str:
    """A row for each data set and model, and how far the Mixer is above it."""
    head = ("", "", "test, %", "Mixer minus it", "train minus test", "rise at the end", "rate")
    shown, before = [], None
    for panel, each in itertools.groupby(runs, table.PANEL):
        own = list(each)
        apart = {
            row["pair"]: in_words({**row, "gain": row["difference"]})
            for row in differences_of([r | {"letters": r["train_images"]} for r in own], "top1")
        }
        for r in table.make_rows(own):
            shown.append([
                "" if r["data"] == before else r["data"], f"{NAMES[r['model']]} {r['size']}",
                f"{100 * r['top1_mean']:.2f} ± {100 * r['top1_sd']:.2f}",
                apart.get(f"mixer - {r['model']}", ""),
                f"{100 * r['gap']:.2f}", f"{100 * r['rise']:+.2f}", rate(r),
            ])  # fmt: skip
            before = panel[0]
    return lines(head, shown)


def costs(rows: Rows) -> str:
    """A row for each model, as in the paper's table 2, from those of the first data set."""
    head = ("", "family", "parameters", "MACs", "a step, ms: plain, fast",
            "inference, images/s: plain, fast", "peak memory")  # fmt: skip
    return lines(head, ([
        f"{NAMES[r['model']]} {r['size']}", r["family"],
        f"{r['parameters'] / 1e6:.2f} M", f"{r['macs'] / 1e6:.1f} M",
        f"{1e3 * r['train_seconds'] / r['steps']:.1f}, "
        f"{1e3 * r['fast_train_seconds'] / r['steps']:.1f}",
        f"{r['images_per_second']:,.0f}, {r['fast_images_per_second']:,.0f}",
        f"{r['peak_bytes'] / 2**20:.0f} MiB",
    ] for r in rows if r["data"] == rows[0]["data"]))  # fmt: skip


def scaling(rows: Rows) -> str:
    """What each model scores after each number of letters, 0 of them too if that was asked; and
    what a decade of them is worth: of all, and of each."""
    models = list(dict.fromkeys(map(table.MODEL, rows)))
    counts = sorted({r["letters"] for r in rows})

    def of(count: int, model: tuple) -> Rows:
        return [r for r in rows if r["letters"] == count and table.MODEL(r) == model]

    groups = [(*one, own) for one in itertools.product(counts, models) if (own := of(*one))]
    trained = [r for r in rows if r["letters"]]
    probes = [name for name in trained[0] if name.startswith("probe ")]
    found = ["probe", *probes, "test", "gap"]
    tuned = [name for name in trained[0] if name.startswith("tuned ")]
    text = scores(found, groups, ends=True)
    tunings = [group for group in groups if any(group[2][0].get(name, "") != "" for name in tuned)]
    if tunings:
        text += "\n" + scores(tuned, tunings)
    pairs = list(itertools.pairwise(filter(None, counts)))
    for size in dict.fromkeys(size for _, size in models):
        own = [r for r in trained if r["size"] == size]
        text += worth("points a decade", {
            name: gains_of(own, outcome) for outcome, name in decades.OUTCOMES.items()
        })  # fmt: skip
        text += worth("few-shot accuracy, points", {
            f"from {one:,} to {two:,}": gains_of(
                [r for r in own if r["letters"] in (one, two)], "probe"
            ) for one, two in pairs if len(pairs) > 1
        })  # fmt: skip
    return text


def scores(keys: list[str], groups: list[tuple], ends: bool = False) -> str:
    """A row for each number of letters and model; with `ends` of its curve and its rate too, and
    its costs if there are several sizes."""
    sizes = {size for _, (_, size), _ in groups}
    priced = ["training, TFLOP", "training, s"] * (ends and len(sizes) > 1)
    head = ["letters", "", *map(in_full, keys)] + ["rise at the end", "rate"] * ends + priced
    rows, before = [], None
    for count, (model, size), own in groups:
        row = ["" if count == before else f"{count:,}" if count else "none",
               f"{NAMES[model]} {size}"]  # fmt: skip
        row += [spread([100 * r[key] for r in own if r.get(key, "") != ""]) for key in keys]
        if ends and count:
            row += [f"{100 * table.rise(own):+.2f}", rate(own[0])]
        if priced and count:
            row += [f"{own[0]['train_flops'] / 1e12:,.0f}", f"{own[0]['train_seconds']:.0f}"]
        rows.append(row + [""] * (len(head) - len(row)))
        before = count
    return lines(head, rows)


def worth(head: str, gains: dict[str, Rows]) -> str:
    """A table of gains, a column for each kind of them."""
    rows = [[named(each[0]["model"]), *map(in_words, each)]
            for each in zip(*gains.values(), strict=True)]  # fmt: skip
    return "\n" + lines([head, *gains], rows) if rows else ""


def sweeps(rows: Rows) -> str:
    """What each rate that was tried scored, and which was chosen."""
    rates = sorted({r["lr"] for r in rows})
    found: dict[tuple, dict[float, str]] = {}
    for r in rows:
        shown = f"{100 * r['held_out_top1']:.1f}"
        own = found.setdefault((f"{NAMES[r['model']]} {r['size']}", r["data"]), {})
        own[r["lr"]] = f"**{shown}**" if r["chosen"] == "True" else shown
    head = ["% of what was held out", "of", *(f"{lr:g}" for lr in rates)]
    made = [[*model, *(own.get(lr, "") for lr in rates)] for model, own in found.items()]
    return lines(head, made) if made else ""


def in_full(column: str) -> str:
    """The heading of a column of decades.csv."""
    if column in decades.OUTCOMES:
        return "few-shot, mean" if column == "probe" else decades.OUTCOMES[column]
    what, where = column.split(" ", 1)
    return f"{'few-shot' if what == 'probe' else 'fine-tuned'}, {where}"


def named(models: str) -> str:
    """ "mixer - vit" as it is written."""
    return " - ".join(NAMES[name] for name in models.split(" - "))


def rate(row: dict[str, Any]) -> str:
    return f"{row['lr']:g}" + " (an end)" * row["edge"]


def spread(values: list[float]) -> str:
    if not values:
        return ""
    return f"{statistics.fmean(values):.1f} ± {statistics.stdev(values):.1f}"


if __name__ == "__main__":
    main()
