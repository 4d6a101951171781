"""What each layer of a Mixer makes of one picture: everything that the page of `draw` shows.

Nothing here computes a layer. `Mixer.inspect` hands out what a forward pass computes, the engine's
backward gives the gradient of one score with respect to the pixels, and what the head would say
after each block is said by the model's own last LayerNorm and its own head.

>>> import numpy as np
>>> from minimixer import Mixer
>>> from minimixer.app.draw.look import look
>>> seen = look(Mixer.load("digits"), np.zeros((28, 28, 1), "uint8"), target=3)
>>> seen["tokens"].shape, seen["blocks.0.token_mixing.hidden"].shape, seen["gradient"].shape
((16, 96), (32, 96), (28, 28, 1))
>>> seen["readout"].shape  # after the stem and after each of four blocks: probabilities
(5, 10)

`answer` does it for a question as the page asks it, whether a server (`server.py`) runs it or
Python in the browser.
"""

import base64
import binascii
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from ...engine.grad_mode import no_grad
from ...engine.tensor import Tensor
from ...model.mixer import Mixer
from ...nn.more_loss import softmax
from . import example

MOST_SIDE = 280  # pixels of a drawing, each way
FULL = 0.98  # of a picture's numbers are drawn in less than full colour
KEYS = {"ink", "side", "model", "target", "order", "hidden"}


def look(
    model: Mixer, image: np.ndarray, target: int | None = None,
    order: Sequence[int] | None = None, hidden: Sequence[int] = (),
) -> dict[str, Any]:  # fmt: skip
    """What the model computes for `image`, uint8 (H, W, in): arrays, by name.

    image          as the model gets it, uint8 (H, W, in): see `rearrange` for order and hidden
    patches ... logits   what `Mixer.inspect` names, without the batch: "blocks.0" is (S, C)
    probabilities  (K,)
    target         the class asked for, or the most probable one: its number
    gradient       of that class's score with respect to the normalised pixels, (H, W, in)
    readout        (N + 1, K): probabilities if the last LayerNorm, the mean and the head came right
                   after the stem, and after each of the N blocks
    """
    image = rearrange(image, model.patch_size, order, hidden)
    pixels = Tensor(model.convert(image[None]).data, requires_grad=True)
    seen = model.inspect(pixels)
    probabilities = softmax(seen["logits"].numpy())[0]
    target = int(probabilities.argmax()) if target is None else target
    seen["logits"][0, target].backward()
    assert pixels.grad is not None and model.head is not None
    names = ["tokens", *(f"blocks.{i}" for i in range(len(model.blocks)))]
    with no_grad():
        after = Tensor(np.stack([seen[name].numpy()[0] for name in names], axis=1))  # (S, N+1, C)
        readout = softmax(model.head(model.norm(after).mean(axis=0)).numpy())
    return {
        "image": image, **{name: x.numpy()[0] for name, x in seen.items()},
        "probabilities": probabilities, "target": target, "gradient": pixels.grad[0],
        "readout": readout,
    }  # fmt: skip


def rearrange(
    image: np.ndarray, patch: int, order: Sequence[int] | None, hidden: Sequence[int]
) -> np.ndarray:
    """A copy of the image (H, W, in) in which the patches `hidden` are 0, and then at place i lies
    the patch order[i]. Patches are numbered as tokens are: row by row."""
    height, width, channels = image.shape
    rows, columns = height // patch, width // patch
    pieces = image.reshape(rows, patch, columns, patch, channels).swapaxes(1, 2)
    pieces = pieces.reshape(rows * columns, patch, patch, channels).copy()
    pieces[list(hidden)] = 0
    if order is not None:
        pieces = pieces[list(order)]
    grid = pieces.reshape(rows, columns, patch, patch, channels).swapaxes(1, 2)
    return grid.reshape(image.shape)


def prepare(ink: np.ndarray, model: Mixer) -> np.ndarray:
    """A drawing, uint8 (n, n), 0 paper and 255 ink, as the model wants it, uint8 (H, W, 1): made
    like MNIST's digits for a model of those, else only made smaller."""
    from ...pictures.digits import box, centre, fit, resample, thicken

    if not ink.any():
        return np.zeros(model.size, np.uint8)
    if model.preparation is None:
        small = resample(resample(ink, model.height).T, model.width).T
        return np.rint(small).astype(np.uint8)[..., None]
    top, bottom, left, right = box(ink > 0)
    more = max(0, len(ink) // 4 - max(bottom - top, right - left)) // 2  # a dot stays a dot
    digit = np.pad(ink[top:bottom, left:right] / 255, more)
    return centre(thicken(fit(digit)))[..., None]


# ---- as the page asks, and is answered ----------------------------------------------------------


def ready(models: dict[str, Mixer]) -> dict[str, Mixer]:
    """The same models, with no Parameter that asks for a gradient: only the pixels do. ValueError,
    which names the model, unless one page can show all of them in turn."""
    first = next(iter(models.values()))
    for name, model in models.items():
        if model.in_channels != 1:
            raise ValueError(f"{name} sees pictures of {model.in_channels} channels; one draws "
                             "with a grey pen: take a model of 1 channel")  # fmt: skip
        if model.head is None:
            raise ValueError(f"{name} has no head (num_classes=0), so it can't say what it sees")
        for what in ("size", "patch_size", "num_classes"):
            if getattr(model, what) != getattr(first, what):
                raise ValueError(f"{name} has {what} {getattr(model, what)}, the first model "
                                 f"{getattr(first, what)}: one page needs equal ones")  # fmt: skip
        for parameter in model.parameters():
            parameter.requires_grad = False
    return models


def about(models: dict[str, Mixer]) -> dict[str, Any]:
    """What the page must know before it asks."""
    first = next(iter(models.values()))
    return {
        "models": list(models), "parameters": [m.num_parameters() for m in models.values()],
        "height": first.height, "width": first.width, "patch": first.patch_size,
        "classes": first.class_names or [str(k) for k in range(first.num_classes)],
        "example": example.STROKES,
    }  # fmt: skip


def answer(models: dict[str, Mixer], asked: Any) -> dict[str, Any]:
    """What `look` says of a drawing, packed for JSON. ValueError for what is no such question:

    ink, side      base64 of side * side bytes, row by row: 0 is paper, 255 ink
    model          number of one of the models; 0 if it is not said
    target         the class whose gradient is wanted; None: the most probable
    order, hidden  as `rearrange` has them; none: the picture as it is
    """
    start = time.perf_counter()
    if not isinstance(asked, dict) or asked.keys() - KEYS or not {"ink", "side"} <= asked.keys():
        raise ValueError(f"a question is an object with some of: {', '.join(sorted(KEYS))}")
    model = list(models.values())[_number(asked, "model", len(models)) or 0]
    patches = (model.height // model.patch_size) * (model.width // model.patch_size)
    order, hidden = asked.get("order"), asked.get("hidden")
    hidden = [] if hidden is None else hidden
    for name, values in ("order", [] if order is None else order), ("hidden", hidden):
        if not isinstance(values, list) or not all(_is_below(v, patches) for v in values):
            raise ValueError(f"{name} must be a list of patches, 0 to {patches - 1}")
    if order is not None and sorted(order) != list(range(patches)):
        raise ValueError(f"order must name each of the {patches} patches once")
    target = _number(asked, "target", model.num_classes)
    image = prepare(_ink(asked["ink"], asked["side"]), model)
    with np.errstate(all="ignore"):  # what is not finite is found, and said once
        seen = look(model, image, target, order, hidden)
    if not all(np.isfinite(value).all() for value in seen.values()):
        raise ValueError("the model answers with NaN or infinity: its weights are extreme")
    drawn = {"image": seen.pop("image")[..., 0], "gradient": seen.pop("gradient")[..., 0]}
    packed = {name: pack(v) if isinstance(v, np.ndarray) else v for name, v in seen.items()}
    packed |= {name: pack(array) for name, array in drawn.items()}
    return {"seen": packed, "blocks": len(model.blocks),
            "milliseconds": 1e3 * (time.perf_counter() - start)}  # fmt: skip


def pack(array: np.ndarray) -> dict[str, Any]:
    """An array as {shape, unit, full, data}: base64 of int16, little end first, times `unit`. So
    each number is right to 1/65,000 of the largest. `full`: what is drawn in full colour."""
    size = abs(np.asarray(array, np.float64))
    unit = float(size.max(initial=0)) / 32767 or 1.0
    whole = np.rint(np.asarray(array, np.float64) / unit).astype("<i2")
    full = float(np.quantile(size, FULL)) or float(size.max(initial=0)) or 1.0
    data = base64.b64encode(whole.tobytes()).decode()
    return {"shape": list(array.shape), "unit": unit, "full": full, "data": data}


def _ink(text: Any, side: Any) -> np.ndarray:
    if not _is_below(side, MOST_SIDE + 1) or side < 1:
        raise ValueError(f"side must be a whole number from 1 to {MOST_SIDE}")
    try:
        ink = np.frombuffer(base64.b64decode(text, validate=True), np.uint8)
    except (binascii.Error, TypeError, ValueError):
        raise ValueError("ink must be bytes in base64") from None
    if ink.size != side * side:
        raise ValueError(f"ink must be {side} x {side} bytes, not {ink.size}")
    return ink.reshape(side, side)


def _number(asked: dict[str, Any], name: str, end: int) -> int | None:
    value = asked.get(name)
    if value is not None and not _is_below(value, end):
        raise ValueError(f"{name} must be a whole number from 0 to {end - 1}")
    return value


def _is_below(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end
