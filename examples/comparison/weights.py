"""What a Mixer learned, as pictures: hidden units of token mixing, and the stem's filters.

Each hidden unit of a token-mixing MLP has one weight for each of the S tokens, so it is an image of
H/P x W/P (figures 5 and 7 of the paper); each channel of the stem has one weight for each pixel of
a patch (figure 6).

Sorted by frequency: the mean distance from the centre of the image's two-dimensional Fourier
spectrum, in cycles per image, weighted by power; an even grey has 0. Going through the units in
that order, each is paired with the one whose weights point the most nearly the opposite way (the
lowest cosine) of those that have no partner yet, and stands beside it.
"""

from typing import Any

import numpy as np

from comparison.cells import cell_path, complete
from comparison.figures import save, start_figure
from minimixer import Mixer
from minimixer.training.names import printable

MOST_UNITS = 512  # that are drawn


def weights(run: Any, source: Any) -> None:
    """units.png, stem.png and weights.csv: of --weights, or of the first seed's Mixer."""
    path = run.options.weights
    if path is None:
        which = "mixer", run.sizes[0], source
        ((spec, result),) = run.for_each(
            run.seeds[:1], lambda seed: run.final(*which, seed, weights=True)
        )
        if not result["weights"]:
            raise ValueError("the Mixer's weights are not finite; give lower --lrs")
        path = cell_path(run.folder, complete(spec, source, run.device)).with_suffix(".npz")
    model = Mixer.from_pretrained(path)
    number = run.options.block
    if number >= len(model.blocks):
        raise ValueError(f"--block {number}: {printable(path)} has {len(model.blocks)}, counted "
                         "from 0")  # fmt: skip
    patch = model.patch_size
    grid = (model.height // patch, model.width // patch)
    matrix = model.blocks[number].token_mixing.w1.numpy()  # (S, D_S)
    units = matrix.T.reshape(-1, *grid)
    frequencies = radial_frequency(units)
    order, cosines = pair(units.reshape(len(units), -1), frequencies)
    partners = {int(a): int(b) for i, j in zip(order[::2], order[1::2], strict=False)
                for a, b in ((i, j), (j, i))}  # fmt: skip
    run.write("weights.csv", [
        {"block": number, "place": place, "unit": int(unit), "partner": partners.get(int(unit), ""),
         "cosine": cosines.get(int(unit), ""), "frequency_cycles_per_image": frequencies[unit]}
        for place, unit in enumerate(order)
    ])  # fmt: skip
    found = [cosines[int(unit)] for unit in order[: len(order) // 2 * 2]]
    print(f"  {printable(path)}: block {number}, {len(units)} hidden units of {grid[0]} x "
          f"{grid[1]} tokens, mean frequency {frequencies.mean():.2f} cycles per image, cosine of "
          f"partners {np.mean(found) if found else 0:.2f} in the mean")  # fmt: skip
    shown = units[order[:MOST_UNITS]]
    draw(run.out / "units.png", shown, run.out / "weights.csv", pairs=True, text=(
        f"block {number}: weights of {len(shown)} of {len(units)} hidden units on the {grid[0]} x "
        f"{grid[1]} tokens,\nby frequency, each beside its nearest opposite"
    ))  # fmt: skip
    stem = model.stem.weight.numpy().reshape(patch, patch, model.in_channels, -1)
    filters = np.moveaxis(stem, -1, 0)  # (C, P, P, in)
    order = np.argsort(radial_frequency(filters.mean(axis=3)), kind="stable")
    draw(run.out / "stem.png", filters[order[:MOST_UNITS]], pairs=False, text=(
        f"stem: {min(len(order), MOST_UNITS)} of {len(order)} channels' filters on the {patch} x "
        f"{patch} pixels of a patch, by frequency"
    ))  # fmt: skip


def radial_frequency(images: np.ndarray) -> np.ndarray:
    """The power-weighted mean radial frequency of each of N images (N, H, W), in cycles per image;
    0 for an image of zeros."""
    height, width = images.shape[1:]
    power = abs(np.fft.fft2(images.astype(np.float64))) ** 2
    rows, columns = np.fft.fftfreq(height, 1 / height), np.fft.fftfreq(width, 1 / width)
    radius = np.hypot(rows[:, None], columns[None, :])
    total = power.sum(axis=(1, 2))
    return (power * radius).sum(axis=(1, 2)) / np.where(total > 0, total, 1)


def pair(vectors: np.ndarray, frequencies: np.ndarray) -> tuple[np.ndarray, dict[int, float]]:
    """An order of N vectors (N, S): by frequency, but for each one's nearest opposite, which
    follows it; and the cosine of each with its partner. Of an odd number the last has none."""
    norms = np.linalg.norm(vectors, axis=1)
    unit = vectors / np.where(norms > 0, norms, 1)[:, None]
    cosine = unit @ unit.T
    free, order, found = np.ones(len(unit), bool), [], {}
    for a in np.argsort(frequencies, kind="stable"):
        if not free[a]:
            continue
        free[a] = False
        order.append(int(a))
        if free.any():
            b = int(np.where(free, cosine[a], np.inf).argmin())
            free[b] = False
            order.append(b)
            found[int(a)] = found[b] = float(cosine[a, b])
    return np.array(order), found


def mosaic(images: np.ndarray, pairs: bool) -> np.ndarray:
    """N images (N, H, W[, 3]) in -1 ... 1 side by side in one, with NaN between them; `pairs` stand
    closer together."""
    count, height, width = images.shape[:3]
    zoom = max(1, 24 // max(height, width))
    images = images.repeat(zoom, axis=1).repeat(zoom, axis=2)
    height, width, narrow, wide = height * zoom, width * zoom, 2, 8
    columns = min(count, 2 * max(1, round((count / 2) ** 0.5)))
    columns += columns % 2
    rows = -(-count // columns)
    step = 2 * width + narrow + wide if pairs else 2 * (width + narrow)
    down = height + (wide if pairs else narrow)
    whole = np.full((rows * down, columns // 2 * step, *images.shape[3:]), np.nan)
    for number, image in enumerate(images):
        row, column = divmod(number, columns)
        top, left = row * down, column // 2 * step + column % 2 * (width + narrow)
        whole[top : top + height, left : left + width] = image
    return whole


def draw(path: Any, images: np.ndarray, *others: Any, pairs: bool, text: str) -> None:
    """Each image scaled by its own largest weight; three channels as colours around grey, other
    numbers of channels by their mean, in a diverging colour map."""
    colours = images.ndim == 4 and images.shape[3] == 3
    if images.ndim == 4 and not colours:
        images = images.mean(axis=3)
    largest = abs(images).max(axis=tuple(range(1, images.ndim)), keepdims=True)
    whole = mosaic(images / np.where(largest > 0, largest, 1), pairs)
    figure = start_figure(9, 0.9 + (9 if colours else 7.6) * whole.shape[0] / whole.shape[1])
    if figure is None:
        save(None, path, *others)
        return
    axes = figure.subplots()
    if colours:
        axes.imshow(np.nan_to_num(0.5 + 0.5 * whole, nan=1.0), interpolation="nearest")
    else:
        drawn = axes.imshow(whole, cmap="PuOr", vmin=-1, vmax=1, interpolation="nearest")
        figure.colorbar(
            drawn, label="weight / largest of the image", shrink=0.8, pad=0.02, ticks=(-1, 0, 1)
        )
    axes.axis("off")
    axes.set_title(text, fontsize=10)
    save(figure, path, *others)
