"""What a decade of data is worth, with intervals: of the rows of decades.csv.

The gain of a model is the slope of a straight line through its mean accuracies over log10 of the
count. Its interval is Student's t over the seeds: a bootstrap of three to five of them is too
narrow. What two models differ by is taken seed by seed, as they share their data.

>>> rows = [{"model": name, "letters": count, "seed": seed, "test": rise * i + seed / 1000}
...         for name, rise in (("mixer", 0.2), ("vit", 0.1)) for i, count in enumerate((100, 1000))
...         for seed in range(3)]
>>> for gain in gains_of(rows, "test"):
...     print(f"{gain['model']:11} {gain['gain']:5.2f} ({gain['low']:.2f} to {gain['high']:.2f})")
mixer       20.00 (19.77 to 20.23)
vit         10.00 (9.77 to 10.23)
mixer - vit 10.00 (10.00 to 10.00)
"""

import itertools
from typing import Any

import numpy as np

# 97.5% of Student's t, for 1, 2, ... degrees of freedom.
STUDENT = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228, 2.201, 2.179)


def scores_of(rows: list[dict[str, Any]], outcome: str) -> dict[str, list[np.ndarray]]:
    """In points, for each count, one for each seed: of each model, and the Mixer's above each other
    model's, seed by seed."""
    models = list(dict.fromkeys(row["model"] for row in rows))
    scores: dict[str, list[np.ndarray]] = {name: [] for name in models}
    for count in counts_of(rows):
        of = {(r["model"], r["seed"]): 100 * r[outcome] for r in rows if r["letters"] == count}
        seeds = sorted({seed for _, seed in of})
        for name in models:
            scores[name].append(np.array([of[name, seed] for seed in seeds]))
    for other in models:
        if other != "mixer" and "mixer" in models:
            pairs = zip(scores["mixer"], scores[other], strict=True)
            scores[f"mixer - {other}"] = [one - two for one, two in pairs]
    return scores


def counts_of(rows: list[dict[str, Any]]) -> list[int]:
    return sorted({row["letters"] for row in rows})


def gains_of(rows: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    """Points a decade of each model, and of the Mixer above each other one, with 95% intervals."""
    places = np.log10(counts_of(rows))
    if len(places) < 2:
        return []
    places = places - places.mean()
    slope = places / (places**2).sum()
    found = ((name, weighted(slope, each)) for name, each in scores_of(rows, outcome).items())
    return [
        {"model": name, "gain": gain, "low": gain - half, "high": gain + half}
        for name, (gain, half) in found
    ]


def differences_of(rows: list[dict[str, Any]], outcome: str) -> list[dict[str, Any]]:
    """By how many points the Mixer is above each other model at each count, with 95% intervals."""
    found = []
    for pair, each in scores_of(rows, outcome).items():
        for count, values in zip(counts_of(rows), each, strict=True):
            mean, half = weighted(np.ones(1), [values])
            found.append({"pair": pair, "letters": count, "difference": mean, "low": mean - half,
                          "high": mean + half})  # fmt: skip
    return [row for row in found if " - " in row["pair"]]


def in_words(gain: dict[str, Any]) -> str:
    """With its interval; one that holds zero finds none.

    >>> in_words({"gain": 0.5, "low": -0.26, "high": 1.26})
    '+0.5 (-0.3 to +1.3), none found'
    """
    none = ", none found" if gain["low"] <= 0 <= gain["high"] else ""
    return f"{gain['gain']:+.1f} ({gain['low']:+.1f} to {gain['high']:+.1f}){none}"


def crossings(differences: list[dict[str, Any]]) -> list[tuple[int, int]]:
    """Between which counts the lines of a pair cross: the difference has one sign at the first and
    the other at the second, and the interval of neither holds zero."""
    clear = [row for row in differences if row["low"] * row["high"] > 0]
    return [
        (one["letters"], two["letters"])
        for one, two in itertools.pairwise(clear)
        if one["difference"] * two["difference"] < 0
    ]


def weighted(weights: np.ndarray, samples: list[np.ndarray]) -> tuple[float, float]:
    """The weighted sum of the samples' means, and half of its 95% interval: Student's t, with
    Welch's degrees of freedom as the samples' variances may differ."""
    total = float(sum(w * x.mean() for w, x in zip(weights, samples, strict=True)))
    parts = [(w**2 * x.var(ddof=1) / len(x), len(x) - 1)
             for w, x in zip(weights, samples, strict=True)]  # fmt: skip
    variance = sum(part for part, _ in parts)
    if variance == 0:
        return total, 0.0
    freedom = variance**2 / sum(part**2 / degrees for part, degrees in parts)
    return total, STUDENT[min(int(freedom + 1e-6), len(STUDENT)) - 1] * variance**0.5
