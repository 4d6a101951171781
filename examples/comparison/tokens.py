"""The figure of tokens: what a training step costs against their number.

Time and memory of a step against the number S of tokens, for a Mixer and a ViT of equal, small
width C, up to S = 12 C; fitted as a + b S + c S^2.

A block of either has 8 S C^2 multiply-accumulates in its MLP along channels. Beside it ViT has
4 S C^2 in projections and 2 S^2 C in attention, the Mixer 2 S C D_S. So half of ViT's are quadratic
at S = 6 C, and the two cost the same at S = D_S - 2 C. With the paper's D_S = C / 2 that is
nowhere, the Mixer always has fewer; here D_S = 8 C, so that there is a crossing to predict, at
S = 6 C, and to measure.
"""

import itertools
from functools import partial
from typing import Any

import numpy as np

import minimixer
from comparison.cells import FORMAT, kept, machine
from comparison.figures import LOOKS, NAMES, save, start_figure
from comparison.models import count_macs, make_model, peak_bytes, step_seconds
from minimixer.training.names import for_picture

TOKENS = {"cpu": (32, 16), "gpu": (64, 256)}  # width C, images a step
ROUNDS = 3
GREY_LINE = {"color": "0.45", "linewidth": 1.2}


def tokens_config(family: str, width: int, side: int) -> dict[str, Any]:
    """A small model that sees side x side patches."""
    config: dict[str, Any] = {"image_size": [2 * side, 2 * side], "patch_size": 2, "in_channels": 1,
                              "num_classes": 10, "num_blocks": 2, "hidden_dim": width}  # fmt: skip
    if family == "mixer":
        return config | {"tokens_mlp_dim": 8 * width, "channels_mlp_dim": 4 * width}
    return config | {"mlp_dim": 4 * width, "num_heads": 1, "pool": "mean"}


def tokens(run: Any, source: None = None) -> None:
    width, batch = TOKENS["cpu" if run.device == "cpu" else "gpu"]
    sides = np.unique(np.linspace(width**0.5, (12 * width) ** 0.5 + 0.5, 8).round().astype(int))
    measured: dict[tuple, list[dict[str, float]]] = {}
    # Round after round: what disturbs a machine for seconds does not meet all rounds of one point.
    for number, side, family in itertools.product(range(ROUNDS), sides.tolist(), ("mixer", "vit")):
        config = tokens_config(family, width, side)
        spec = {"kind": "tokens", "family": family, "size": f"c{width}", "config": config,
                "optimizer": "adamw", "lr": 1e-3, "weight_decay": 0.05, "clip": 1.0,
                "batch_size": batch, "round": number, "format": FORMAT,
                "version": minimixer.__version__, "machine": machine(run.device)}  # fmt: skip
        found = kept(run.folder, spec, partial(measure_tokens, spec, run.device))
        measured.setdefault((side, family), []).append(found)
    rows: list[dict[str, Any]] = [
        {"model": family, "tokens": side * side, "width": width, "batch_size": batch,
         "macs": count_macs(make_model(family, tokens_config(family, width, side), 0)),
         "step_ms": min(f["step_ms"] for f in found), "peak_mib": found[0]["peak_mib"]}
        for (side, family), found in measured.items()
    ]  # fmt: skip
    run.write("tokens.csv", rows)
    fits = []
    kinds = (("step_ms", "time, ms"), ("peak_mib", "memory, MiB"), ("macs", "MACs"))
    for (key, name), family in itertools.product(kinds, ("mixer", "vit")):
        s, y = (
            np.array([r[k] for r in rows if r["model"] == family], float) for k in ("tokens", key)
        )
        terms, error = fit_quadratic(s, y)
        parts = terms * s[-1] ** np.arange(3)
        shares = parts / parts.sum()
        fits.append({"model": family, "of": key, "a": terms[0], "b": terms[1], "c": terms[2],
                     "relative_error": error, "at_tokens": int(s[-1]), "share_a": shares[0],
                     "share_b_s": shares[1], "share_c_s2": shares[2]})  # fmt: skip
        print(f"  {NAMES[family]:5} {name:11} = {terms[0]:.4g} + {terms[1]:.4g} S + {terms[2]:.4g} "
              f"S^2 (off by {error:.1%}); at S = {s[-1]:.0f}: constant {shares[0]:.0%}, S "
              f"{shares[1]:.0%}, S^2 {shares[2]:.0%}")  # fmt: skip
    run.write("tokens-fit.csv", fits)
    curves = {(f["of"], f["model"]): np.array([f["a"], f["b"], f["c"]]) for f in fits}
    low, high = rows[0]["tokens"], rows[-1]["tokens"]
    crossings = {key: crossing(curves[key, "mixer"], curves[key, "vit"], low, high)
                 for key, _ in kinds}  # fmt: skip
    halves = {key: half(curves[key, "vit"]) for key, _ in kinds}
    for what, where in (("the Mixer and ViT cost the same", crossings),
                        ("half of ViT's cost is quadratic", halves)):  # fmt: skip
        said = {k: f"S = {v:.0f}" if v else "none" for k, v in where.items()}
        print(f"  {what}: predicted from MACs {said['macs']}; measured, time {said['step_ms']}, "
              f"memory {said['peak_mib']} (S from {low} to {high})")  # fmt: skip
    figure = start_figure(10, 4.2)
    if figure is not None:
        draw_tokens(figure, rows, curves, crossings)
        figure.suptitle(f"a training step, width C = {width}, {batch} images, 2 blocks, D_S = 8 C; "
                        f"plain code, the fastest of {ROUNDS} rounds, on "
                        f"{for_picture(machine(run.device), 60)}", fontsize=9)  # fmt: skip
    save(figure, run.out / "tokens.png", run.out / "tokens.csv", run.out / "tokens-fit.csv")


def measure_tokens(spec: dict[str, Any], device: str) -> dict[str, float]:
    shape = (*spec["config"]["image_size"], 1)

    def make() -> Any:
        return make_model(spec["family"], spec["config"], 0, device)

    seconds = step_seconds(make, shape, 10, spec, device)
    return {"step_ms": 1e3 * seconds, "peak_mib": peak_bytes(make, shape, 10, spec, device) / 2**20}


def fit_quadratic(s: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, float]:
    """(a, b, c), none negative, with a + b S + c S^2 nearest to y; and the root mean square of what
    is missing, relative to y. Relative errors count, so that few tokens do as much as many do."""
    powers = s[:, None] ** np.arange(3) / y[:, None]
    best = (np.zeros(3), np.inf)
    for number in range(1, 8):  # with so few terms, all choices of those that are not zero
        chosen = [k for k in range(3) if number >> k & 1]
        found = np.linalg.lstsq(powers[:, chosen], np.ones(len(s)), rcond=None)[0]
        terms = np.zeros(3)
        terms[chosen] = found
        error = float(np.sqrt(np.mean((powers @ terms - 1) ** 2)))
        if (found >= 0).all() and error < best[1] * (1 - 1e-9):
            best = (terms, error)
    return best


def crossing(one: np.ndarray, other: np.ndarray, low: float, high: float) -> float | None:
    """Where two curves a + b S + c S^2 meet between low and high; the last place if there are two,
    None if there is none."""
    difference = (other - one)[::-1]
    places = [z.real for z in np.roots(difference) if abs(z.imag) < 1e-9 and low <= z.real <= high]
    return max(places, default=None)


def half(terms: np.ndarray) -> float | None:
    """The S at which c S^2 = a + b S."""
    a, b, c = terms
    return float((b + np.sqrt(b * b + 4 * a * c)) / (2 * c)) if c > 0 else None


def draw_tokens(figure: Any, rows: list[dict], curves: dict, crossings: dict) -> None:
    panels = figure.subplots(1, 2)
    fine = np.linspace(rows[0]["tokens"], rows[-1]["tokens"], 200)
    for axes, key, text in zip(
        panels, ("step_ms", "peak_mib"), ("time of a step, ms", "peak memory, MiB"), strict=True
    ):
        for family in ("mixer", "vit"):
            colour, marker, line = LOOKS[family]
            chosen = [r for r in rows if r["model"] == family]
            axes.plot(fine, np.polyval(curves[key, family][::-1], fine), line, color=colour)
            axes.plot([r["tokens"] for r in chosen], [r[key] for r in chosen], marker,
                      color=colour, label=NAMES[family])  # fmt: skip
        for place, style, said in (
            (crossings["macs"], ":", "equal MACs"), (crossings[key], "-", "equal, by the fits")
        ):  # fmt: skip
            if place:
                axes.axvline(place, linestyle=style, label=f"{said}: S = {place:.0f}", **GREY_LINE)
        axes.set(xlabel="tokens S", ylabel=text, ylim=(0, None))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9, title="points: measured; lines: a + b S + c S²", title_fontsize=8)
