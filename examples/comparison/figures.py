"""The figures of the comparison, each with its numbers as CSV beside it.

scaling      test accuracy, and its gap to train accuracy, against the number of training images
             at an equal number of steps (figure 2, right, of the paper)
frontier     accuracy against training cost and against throughput (figure 2, left): models of
             --sizes, each trained for 10, 30 and 100% of the budget
invariance   learning curves on images as they are, with patches and the pixels inside of each
             shuffled, and with all pixels shuffled (figure 4): curves of the first 1,000 test
             images, and at their ends the accuracy on all, which the table has too
"""

import itertools
import statistics
from pathlib import Path
from typing import Any

from comparison.cells import CURVE_IMAGES, machine
from comparison.models import FAMILIES
from minimixer.training.files import replace_file
from minimixer.training.names import for_picture, printable

# Colours of Okabe and Ito, which colour-blind readers can tell apart; on grey paper the lines and
# markers do it.
LOOKS = {
    "vit": ("#E69F00", "s", "--"),
    "resnet": ("#0072B2", "^", "-."),
    "mixer": ("#A0307A", "o", "-"),
    "hybrid": ("#009E73", "D", ":"),
}
NAMES = {"vit": "ViT", "resnet": "ResNet", "mixer": "Mixer", "hybrid": "hybrid"}
BUDGET_SHARES = (0.1, 0.3, 1.0)
SHUFFLE_LOOKS = {
    "none": ("as they are", "#000000", "o", "-"),
    "patches": ("patches and pixels inside of them shuffled", "#0072B2", "s", "--"),
    "pixels": ("all pixels shuffled", "#D55E00", "^", ":"),
}
COSTS = {  # what an axis says, and its unit
    "train_flops": ("training, TFLOP (6 x MACs x images)", 1e12),
    "train_seconds": ("training, seconds", 1),
    "images_per_second": ("inference, images a second", 1),
}


def needs_data(name: str, options: Any) -> bool:
    return name not in ("tokens", "decades") and not (name == "weights" and options.weights)


def start_figure(width: float, height: float) -> Any:
    """A matplotlib Figure, or None without matplotlib."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    return Figure(figsize=(width, height), layout="constrained")


def save(figure: Any, path: Path, *others: Path) -> None:
    """Write the picture, if there is one, and say what was written."""
    if figure is None:
        written = ", ".join(map(printable, others))
        print(f"wrote {written}; for a picture: pip install -e '.[plots]'")
        return
    path.parent.mkdir(parents=True, exist_ok=True)  # it may have been removed
    with replace_file(path) as file:
        figure.savefig(file, format="png", dpi=150)
    print(f"wrote {', '.join(map(printable, (path, *others)))}")


def legend_below(figure: Any, axes: Any) -> None:
    """One for all panels, where it hides nothing."""
    handles, names = axes.get_legend_handles_labels()
    columns = 4 if len(names) == 4 and figure.get_figwidth() > 9 else 3
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=9)


def by_cost(axes: Any, cost: str) -> None:
    """A logarithmic axis of a cost, with labels that stand apart."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    text, unit = COSTS[cost]
    axes.set(xlabel=text, xscale="log")
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x / unit:,g}"))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.tick_params(axis="x", labelrotation=45)
    axes.grid(alpha=0.3)


def label(family: str, size: str, sizes: list[str]) -> str:
    what = FAMILIES[family]
    name = NAMES[family] if NAMES[family] == what else f"{NAMES[family]} ({what})"
    return f"{name}, {size}" if len(sizes) > 1 else name


def filled(size: str, sizes: list[str]) -> dict[str, Any]:
    """Markers of further sizes are hollow."""
    return {} if size == sizes[0] else {"markerfacecolor": "white"}


def spread(values: list[float]) -> tuple[float, float]:
    return statistics.fmean(values), statistics.stdev(values)


# ---- scaling ------------------------------------------------------------------------------------


def scaling(run: Any, source: Any) -> None:
    rows: list[dict[str, Any]] = []
    points = list(itertools.product(run.sizes, run.models, sorted(run.options.shares)))

    def seeds_of(point: tuple) -> Any:
        count = max(2, round(len(source.train_images) * point[2] / 100))
        return run.each_seed(run.final, point[1], point[0], source, count=count)

    for (size, family, share), cells in zip(points, run.for_each(points, seeds_of), strict=True):
        test = spread([r["accuracy"] for _, r in cells])
        gap = spread([r["train_accuracy"] - r["accuracy"] for _, r in cells])
        rows.append({
            "model": family, "size": size, "data": source.base, "share_percent": share,
            "train_images": cells[0][0]["train_images"], "steps": cells[0][0]["steps"],
            "seeds": len(cells),
            "top1_mean": test[0], "top1_sd": test[1], "gap_mean": gap[0], "gap_sd": gap[1],
        })  # fmt: skip
    run.write("scaling.csv", rows)
    for row in rows:
        name, shown = f"{row['model']:7} {row['size']:6}", row["train_images"]
        top1 = f"{row['top1_mean']:.2%} ± {row['top1_sd']:.2%}"
        print(f"  {name} {shown:7,} images: test {top1}, gap {row['gap_mean']:.2%}")
    figure = start_figure(9, 4.3)
    if figure is not None:
        left, right = figure.subplots(1, 2)
        for size, family in itertools.product(run.sizes, run.models):
            chosen = [r for r in rows if (r["size"], r["model"]) == (size, family)]
            colour, marker, line = LOOKS[family]
            for axes, key in ((left, "top1"), (right, "gap")):
                axes.errorbar(
                    [r["train_images"] for r in chosen],
                    [100 * r[f"{key}_mean"] for r in chosen],
                    [100 * r[f"{key}_sd"] for r in chosen],
                    color=colour, marker=marker, linestyle=line, capsize=3,
                    label=label(family, size, run.sizes), **filled(size, run.sizes),
                )  # fmt: skip
        left.set(ylabel="test accuracy, %")
        right.set(ylabel="train minus test accuracy, points")
        counts = sorted({r["train_images"] for r in rows})
        for axes in (left, right):
            axes.set(xlabel="training images", xscale="log")
            axes.set_xticks(counts, [f"{n:,}" for n in counts], minor=False)
            axes.set_xticks([], minor=True)
            axes.grid(alpha=0.3)
        legend_below(figure, left)
        figure.suptitle(f"{source.title}: equal steps for every size of training set; mean and "
                        f"standard deviation of {len(run.seeds)} seeds", fontsize=10)  # fmt: skip
    save(figure, run.out / "scaling.png", run.out / "scaling.csv")


# ---- frontier -----------------------------------------------------------------------------------


def frontier(run: Any, source: Any) -> None:
    rows: list[dict[str, Any]] = []
    points = list(itertools.product(run.sizes, run.models, BUDGET_SHARES))

    def seeds_of(point: tuple) -> Any:
        return run.each_seed(run.final, point[1], point[0], source, budget_share=point[2])

    found = run.for_each(points, seeds_of)
    run.alone()
    for (size, family, share), cells in zip(points, found, strict=True):
        costs = run.costs(cells[0][0], source)
        mean, sd = spread([result["accuracy"] for _, result in cells])
        this = family, size, cells[0][0]["steps"]
        if rows and tuple(rows[-1][key] for key in ("model", "size", "steps")) == this:
            continue  # of a small budget even the least part is the same
        rows.append({
            "model": family, "size": size, "data": source.base, "budget_share": share,
            "steps": cells[0][0]["steps"], "top1_mean": mean, "top1_sd": sd,
            "train_flops": cells[0][1]["train_flops"],
            "train_seconds": cells[0][0]["steps"] * costs["step_seconds"],
            "images_per_second": costs["images_per_second"],
        })  # fmt: skip
    run.write("frontier.csv", rows)
    figure = start_figure(12, 4.4)
    if figure is not None:
        panels = figure.subplots(1, 3, sharey=True)
        for size, family in itertools.product(run.sizes, run.models):
            chosen = [r for r in rows if (r["size"], r["model"]) == (size, family)]
            colour, marker, line = LOOKS[family]
            for axes, key in zip(panels, COSTS, strict=True):
                points = chosen[-1:] if key == "images_per_second" else chosen
                axes.errorbar(
                    [r[key] for r in points], [100 * r["top1_mean"] for r in points],
                    [100 * r["top1_sd"] for r in points], color=colour, marker=marker,
                    linestyle=line, capsize=3, label=label(family, size, run.sizes),
                    **filled(size, run.sizes),
                )  # fmt: skip
        for axes, key in zip(panels, COSTS, strict=True):
            by_cost(axes, key)
        panels[0].set_ylabel("test accuracy, %")
        legend_below(figure, panels[0])
        figure.suptitle(f"{source.title}: each point is a whole run with its own schedule, "
                        f"mean and standard deviation of {len(run.seeds)} seeds; plain code for "
                        f"all, on {for_picture(machine(run.device), 60)}", fontsize=10)  # fmt: skip
    save(figure, run.out / "frontier.png", run.out / "frontier.csv")


# ---- invariance ---------------------------------------------------------------------------------


def invariance(run: Any, source: Any) -> None:
    models = [family for family in ("mixer", "resnet", "vit") if family in run.models]
    models = [family for family in models if family != "vit"] or models
    size, rows, tested = run.sizes[0], [], len(source.test_images)
    lines = list(itertools.product(models, SHUFFLE_LOOKS))
    found = run.for_each(
        lines, lambda line: run.each_seed(run.final, line[0], size, source, shuffle=line[1])
    )
    for (family, kind), cells in zip(lines, found, strict=True):
        results = [result for _, result in cells]
        points = [(min(CURVE_IMAGES, tested), point)
                  for point in zip(*(r["curve"] for r in results), strict=True)]  # fmt: skip
        points.append((tested, [[cells[0][0]["steps"], r["accuracy"]] for r in results]))
        for images, point in points:
            mean, sd = spread([accuracy for _, accuracy in point])
            rows.append({"model": family, "size": size, "data": source.base, "shuffled": kind,
                         "step": point[0][0], "test_images": images, "top1_mean": mean,
                         "top1_sd": sd})  # fmt: skip
    run.write("invariance.csv", rows)
    curves = {key: [r for r in rows if (r["model"], r["shuffled"]) == key]
              for key in itertools.product(models, SHUFFLE_LOOKS)}  # fmt: skip
    for family in models:
        ends = [(text, curves[family, kind][-1]) for kind, (text, *_) in SHUFFLE_LOOKS.items()]
        said = [f"{text} {r['top1_mean']:.2%} ± {r['top1_sd']:.2%}" for text, r in ends]
        print(f"  {NAMES[family]:6} all test images {'; '.join(said)}")
    figure = start_figure(4.5 * len(models), 4.5)
    if figure is not None:
        panels = figure.subplots(1, len(models), sharey=True, squeeze=False)[0]
        for axes, family in zip(panels, models, strict=True):
            draw_curves(axes, {kind: curves[family, kind] for kind in SHUFFLE_LOOKS})
            axes.set(xlabel="training step", title=NAMES[family])
        panels[0].set_ylabel("test accuracy, %")
        figure.suptitle(f"{source.title}, {size}: mean and standard deviation of {len(run.seeds)} "
                        f"seeds;\nthe curves: of the first {rows[0]['test_images']:,} test images",
                        fontsize=9)  # fmt: skip
    save(figure, run.out / "invariance.png", run.out / "invariance.csv")


def draw_curves(axes: Any, curves: dict[str, list[dict[str, Any]]]) -> None:
    """The curves, and right of them, as numbers too, what became of each on all test images."""
    steps = curves["none"][-1]["step"]
    for kind, (text, colour, marker, line) in SHUFFLE_LOOKS.items():
        *points, end = curves[kind]
        look = {"color": colour, "marker": marker, "capsize": 3}
        mean, sd = 100 * end["top1_mean"], 100 * end["top1_sd"]
        axes.errorbar([r["step"] for r in points], [100 * r["top1_mean"] for r in points],
                      [100 * r["top1_sd"] for r in points], linestyle=line, **look,
                      label=f"{text}: {mean:.2f} ± {sd:.2f}")  # fmt: skip
        axes.errorbar([1.1 * steps], [mean], [sd], markersize=9, **look)
    axes.grid(alpha=0.3)
    title = f"numbers, and marks at the right: all {end['test_images']:,} test images"
    axes.legend(loc="lower right", fontsize=7, title_fontsize=7, title=title)
