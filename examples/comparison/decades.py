"""What a decade more of data to pretrain on is worth: the right-hand graph of the paper's figure 2.

    python examples/compare.py --figure decades --data letters --counts 1e4,1e5,1e6 --probes mnist

Each model is pretrained for the same number of steps on so many drawn letters, a subset of its own
for each seed, the same for all families. Then it is asked what it learned, on each of --probes: a
linear classifier in closed form on its frozen features, from ten pictures a class (the paper's few-
shot measure), and at the smallest and the largest count, with --tune, fine-tuning on all of them.
With --untrained fresh models are asked too. With several --sizes a second picture shows what was
learned against what the pretraining cost, as the left-hand graph does.

What a decade is worth, with intervals, and where lines cross: gains.py.
"""

import functools
import itertools
import operator
from pathlib import Path
from typing import Any

import numpy as np

from comparison.cells import Result, cell_path, complete, evaluate, train
from comparison.data import Data, in_colour, load
from comparison.figures import LOOKS, by_cost, label, legend_below, save, start_figure
from comparison.gains import crossings, differences_of, gains_of, in_words
from comparison.models import Spec, count_macs, make_model, train_flops
from comparison.options import at_edge
from comparison.table import curve_columns
from minimixer.weights.probe import choose_shots, pooled_features, ridge
from support.run_directory import write_rows

SEEDS_BETWEEN = 3  # at counts that are neither the smallest nor the largest
TUNE_RATES, TUNE_STEPS = (0.003, 0.01, 0.03, 0.06), 500
OUTCOMES = {"probe": "few-shot accuracy", "test": "other fonts' letters", "gap": "train minus test"}
UNITS = {"probe": "%", "test": "%", "gap": "points"}


def decades(run: Any, _: Any) -> None:
    options = run.options
    counts = sorted(options.counts)
    ends = (counts[0], counts[-1])
    probes = [in_colour(load(spec, options.image_size)) for spec in options.probes]
    titles = [probe.title for probe in probes]
    if len(set(titles)) < len(titles):
        raise ValueError(f"--probes: two of {', '.join(titles)} are called alike; rename a folder")
    for probe in probes:  # found out before training
        fewest = np.bincount(probe.train_labels, minlength=probe.classes).min()
        if fewest < options.shots:
            raise ValueError(f"--shots {options.shots}: {probe.name} has a class of {fewest} "
                             "pictures to train on")  # fmt: skip
    rates: dict[tuple, float] = {}

    @functools.lru_cache(1)  # a million letters are 3 GB
    def letters(count: float, seed: int) -> Data:
        return load(f"{options.data}@{int(count)}:{seed}")

    def rate(family: str, size: str, count: float) -> float:
        if (family, size, count) not in rates:
            source = letters(count, run.sweep_seed)  # a subset of its own
            rates[family, size, count] = run.learning_rate(
                family, size, source, options.lrs, max_shift=0,
                steps=run.steps(family, size, source),
            )  # fmt: skip
        return rates[family, size, count]

    def one(family: str, size: str, count: float, seed: int) -> dict[str, Any]:
        lr, source = rate(family, size, count), letters(count, seed)
        tune = (options.fine_steps or TUNE_STEPS) * (options.tune and count in ends)
        steps = run.steps(family, size, source)
        return decade(run, family, size, source, seed, steps, lr, probes, tune)

    # Shared out by subsets, as to draw one takes a while; then what is left, model by model.
    groups = list(itertools.product(run.sizes, counts))
    for size, count in groups:
        run.share(run.models, functools.partial(rate, size=size, count=count))
    subsets = [(size, count, seed) for size, count in groups
               for seed in run.seeds[: None if count in ends else SEEDS_BETWEEN]]  # fmt: skip
    run.share(subsets, lambda subset: [one(family, *subset) for family in run.models])
    each = [(family, *subset) for subset in subsets for family in run.models]
    rows = run.for_each(each, lambda model: one(*model))
    fresh = itertools.product(run.models, run.sizes, run.seeds) if options.untrained else []
    asked = run.for_each(list(fresh), lambda model: untrained(run, *model, probes))
    run.alone()
    for (family, size, *subset), row in zip(each, rows, strict=True):
        source = letters(*subset)
        costs = run.costs(run.spec("decade", family, size, source), source)
        row["train_seconds"] = row["steps"] * costs["fast_step_seconds"]
    run.write("decades.csv", rows)
    if asked:
        run.write("untrained.csv", asked)
    tell(run.out, rows)


def decade(
    run: Any, family: str, size: str, source: Data, seed: int, steps: int, lr: float,
    probes: list[Data], tune: int,
) -> dict[str, Any]:  # fmt: skip
    """A row of decades.csv: one model, pretrained and asked."""
    spec = run.spec("decade", family, size, source, lr=lr, seed=seed, steps=steps, max_shift=0,
                    tune=tune, tune_rates=list(TUNE_RATES) if tune else [],
                    **about(run, probes))  # fmt: skip
    spec = complete(spec, source, run.device)
    result = run.keep(spec, lambda: ask(run, spec, source, probes))
    if run.first_told(spec):
        print(f"cell   {family:7} {size:6} seed {seed} {spec['train_images']:9,} letters, other "
              f"fonts {result['accuracy']:.2%}, {spec['shots']}-shot {result['probe']:.2%}",
              flush=True)  # fmt: skip
    row = {"cell": cell_path(run.folder, spec).name, "model": family, "size": size,
           "letters": spec["train_images"], "seed": seed,
           "steps": steps, "lr": lr, "edge": int(at_edge(lr, run.options.lrs)),
           "test": result["accuracy"], "held": result["held_accuracy"],
           "train": result["train_accuracy"], "gap": result["train_accuracy"] - result["accuracy"],
           "train_flops": result["train_flops"]}  # fmt: skip
    tuned = result["tuned"] or [""] * len(probes)
    row |= {f"tuned {probe.title}": found for probe, found in zip(probes, tuned, strict=True)}
    return row | probe_columns(result, probes) | curve_columns(result)


def probe_columns(result: Result, probes: list[Data]) -> dict[str, float]:
    """Few-shot accuracies: the mean of all, and of each probe."""
    each = zip(probes, result["probes"], strict=True)
    return {"probe": result["probe"]} | {f"probe {p.title}": float(np.mean(v)) for p, v in each}


def about(run: Any, probes: list[Data]) -> Spec:
    """What a cell's spec says of them."""
    return {"shots": run.options.shots, "draws": run.options.draws,
            "probes": [probe.fingerprint for probe in probes]}  # fmt: skip


def untrained(run: Any, family: str, size: str, seed: int, probes: list[Data]) -> dict[str, Any]:
    """A row of untrained.csv: what a fresh model's features tell."""
    source = probes[0]  # of all images of such a shape
    spec = run.spec("untrained", family, size, source, lr=0.0, seed=seed, max_shift=0,
                    data=list(source.shape), train_images=0, **about(run, probes))  # fmt: skip

    def compute() -> Result:
        model = make_model(family, spec["config"], seed, run.device, spec["precision"])
        return ask_probes(model, spec, probes)

    spec = complete(spec, source, run.device)
    result = run.keep(spec, compute)
    row = {"cell": cell_path(run.folder, spec).name, "model": family, "size": size, "seed": seed}
    return row | probe_columns(result, probes)


def ask(run: Any, spec: Spec, source: Data, probes: list[Data]) -> Result:
    model = make_model(spec["family"], spec["config"], spec["seed"], run.device, spec["precision"])
    curve: list[Any] = []

    def look(step: int) -> None:
        part = slice(1000)
        curve.append([step, evaluate(model, source.test_images[part], source.test_labels[part])[0]])

    name = f"{spec['family']} {spec['size']} seed {spec['seed']}"
    images, labels = source.train_images, source.train_labels
    result = train(model, spec, images, labels, None, look, name, run.options.cell_minutes)
    some = slice(5000)
    return result | ask_probes(model, spec, probes) | {
        "train_flops": train_flops(count_macs(model), result["images_seen"]), "curve": curve,
        "accuracy": evaluate(model, source.test_images, source.test_labels)[0],
        "held_accuracy": evaluate(model, source.held_images, source.held_labels)[0],
        "train_accuracy": evaluate(model, images[some], labels[some])[0],
        "tuned": [fine_tuned(model, spec, probe, run) for probe in probes] if spec["tune"] else [],
    }  # fmt: skip


def ask_probes(model: Any, spec: Spec, probes: list[Data]) -> Result:
    found = [few_shots(model, spec, probe) for probe in probes]
    return {"probes": found, "probe": float(np.mean(found))}


def few_shots(model: Any, spec: Spec, probe: Data) -> list[float]:
    """Test accuracies of ridge classifiers on frozen features, one for each draw of the shots.
    Features that are not finite tell nothing: 0."""
    if diverged(model):
        return [0.0] * spec["draws"]
    bare = with_head(model, spec, 0)
    features_of = functools.partial(pooled_features, bare, batch_size=2000)
    features, found = features_of(probe.test_images), []
    finite = np.isfinite(features).all()
    for number in range(spec["draws"]):
        chosen = choose_shots(probe.train_labels, spec["shots"], number)
        labels = probe.train_labels[chosen]
        known = features_of(probe.train_images[chosen])
        if not (finite and np.isfinite(known).all()):
            found.append(0.0)
            continue
        weight, bias = ridge(known, labels, probe.classes)
        answers = (features @ weight + bias).argmax(axis=1)
        found.append(float((answers == probe.test_labels).mean()))
    return found


def fine_tuned(model: Any, spec: Spec, probe: Data, run: Any) -> float:
    """Test accuracy after so many steps of SGD on all of the probe's images, as in the paper; the
    rate is the best of `tune_rates` on what is held out."""
    if diverged(model):
        return 0.0
    best = (-1.0, 0.0)
    for lr in spec["tune_rates"]:
        tuned = with_head(model, spec, probe.classes)
        own = spec | {"optimizer": "sgd", "weight_decay": 0.0, "lr": lr, "steps": spec["tune"]}
        train(tuned, own, probe.train_images, probe.train_labels, None, lambda step: None,
              f"tuning, {lr:g}", run.options.cell_minutes)  # fmt: skip
        held = evaluate(tuned, probe.held_images, probe.held_labels)[0]
        if held > best[0]:
            best = held, evaluate(tuned, probe.test_images, probe.test_labels)[0]
    return best[1]


def diverged(model: Any) -> bool:
    """Then all that it answers is NaN, and wrong, as for `evaluate`."""
    return not all(np.isfinite(value).all() for value in model.state_dict().values())


def with_head(model: Any, spec: Spec, classes: int) -> Any:
    """The model with a fresh head for so many classes; with none for 0."""
    config = spec["config"] | {"num_classes": classes}
    other = make_model(spec["family"], config, spec["seed"], model.device, spec["precision"])
    weights = model.state_dict()
    own = {name: value for name, value in other.state_dict().items() if name.startswith("head.")}
    other.load_state_dict({name: (weights | own)[name] for name in other.state_dict()})
    return other


# ---- what it says -------------------------------------------------------------------------------


def tell(out: Path, rows: list[dict[str, Any]]) -> None:
    """What the rows of decades.csv say: printed, as CSV, and as pictures."""
    sizes = list(dict.fromkeys(row["size"] for row in rows))
    gains: list[dict[str, Any]] = []
    differences: list[dict[str, Any]] = []
    for size, (outcome, text) in itertools.product(sizes, OUTCOMES.items()):
        own, named = [r for r in rows if r["size"] == size], {"size": size, "outcome": outcome}
        found, apart = gains_of(own, outcome), differences_of(own, outcome)
        gains += [named | gain for gain in found]
        differences += [named | row for row in apart]
        start = f"  {size:6} {text:21}"
        for gain in found:
            print(f"{start} {gain['model']:15} points a decade: {in_words(gain)}")
        for pair, each in itertools.groupby(apart if found else [], operator.itemgetter("pair")):
            where = [f"between {one:,} and {two:,}" for one, two in crossings(list(each))]
            print(f"{start} {pair:15} {', '.join(where) or 'no'} crossing")
    tables = {"gains": gains, "differences": differences}
    for name in tables:
        if tables[name]:
            write_rows(out / f"{name}.csv", tables[name])
    if len({row["letters"] for row in rows}) > 1:
        draw(out, rows, *[out / f"{name}.csv" for name in tables if tables[name]])
    if len(sizes) > 1:
        most = max(row["letters"] for row in rows)
        draw_frontier(out, [row for row in rows if row["letters"] == most])


def draw(out: Path, rows: list[dict[str, Any]], *tables: Path) -> None:
    sizes, models = (list(dict.fromkeys(r[key] for r in rows)) for key in ("size", "model"))
    figure = start_figure(12, 4.3)
    if figure is not None:
        panels = figure.subplots(1, len(OUTCOMES))
        for (outcome, text), axes in zip(OUTCOMES.items(), panels, strict=True):
            for size, family in itertools.product(sizes, models):
                own = [r for r in rows if (r["size"], r["model"]) == (size, family)]
                counts = sorted({r["letters"] for r in own})
                each = [[100 * r[outcome] for r in own if r["letters"] == n] for n in counts]
                colour, marker, line = LOOKS[family]
                axes.errorbar(
                    counts, [np.mean(v) for v in each], [np.std(v, ddof=1) for v in each],
                    color=colour, marker=marker, linestyle=line, capsize=3,
                    label=label(family, size, sizes),
                )  # fmt: skip
            axes.set(
                xscale="log", xlabel="letters to pretrain on", ylabel=f"{text}, {UNITS[outcome]}"
            )
            axes.grid(alpha=0.3)
        legend_below(figure, panels[0])
    save(figure, out / "decades.png", out / "decades.csv", *tables)


def draw_frontier(out: Path, rows: list[dict[str, Any]]) -> None:
    sizes, models = (list(dict.fromkeys(r[key] for r in rows)) for key in ("size", "model"))
    figure = start_figure(9, 4.3)
    if figure is not None:
        panels = figure.subplots(1, 2)
        for cost, axes in zip(("train_flops", "train_seconds"), panels, strict=True):
            for family in models:
                own = [[r for r in rows if (r["model"], r["size"]) == (family, size)]
                       for size in sizes]  # fmt: skip
                colour, marker, line = LOOKS[family]
                axes.errorbar(
                    [each[0][cost] for each in own],
                    [100 * np.mean([r["probe"] for r in each]) for each in own],
                    [100 * np.std([r["probe"] for r in each], ddof=1) for each in own],
                    color=colour, marker=marker, linestyle=line, capsize=3,
                    label=label(family, "", []),
                )  # fmt: skip
            by_cost(axes, cost)
            axes.set_ylabel(f"{OUTCOMES['probe']}, %")
        legend_below(figure, panels[0])
    save(figure, out / "decades-frontier.png", out / "decades.csv")
