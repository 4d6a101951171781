"""Models from files of the authors', of timm's or of our own; and files for them.

The sizes follow from the shapes of the arrays. What a file of theirs does not say is taken from who
wrote it: GELU in the tanh form for the authors', exact for timm's; images from -1 to 1 for both.

>>> import tempfile
>>> from minimixer import Mixer
>>> from minimixer.weights.pretrained import export, load_pretrained
>>> model = Mixer(image_size=4, patch_size=2, num_classes=2, num_blocks=1, hidden_dim=8,
...               tokens_mlp_dim=3, channels_mlp_dim=16)
>>> path = tempfile.mkdtemp() + "/model.npz"
>>> export(model, path, format="npz")
>>> load_pretrained(path, num_classes=5).head.weight.shape      # a fresh head, of zeros
(8, 5)

Next: `remake.py`.
"""

import json
import math
import os
import re
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np

from ..engine.checks import check_sizes
from ..model.mixer import Mixer
from ..model.variants import check_config, expected_shapes
from ..nn.layers import LayerNorm
from ..nn.module import Module
from ..training.checkpoint import check_fit, find_weights, is_checkpoint, load_model
from ..training.files import parse_json, replace_file
from ..training.names import printable
from .arrays import read_arrays
from .layouts import LAYOUTS, Entry, current_names, entries, to_ours, to_theirs

GELU_FORM = {"npz": "tanh", "timm": "none"}  # what a layout's own loader takes
# In metadata of ours.
KEPT = ("approximate", "image_size", "mean", "std", "class_names", "preparation")
UNSAID = (
    "the file does not say how images were prepared; taken are mean 0.5 and std 0.5, as for most "
    "Mixers, where timm's two miil models want 0 and 1. Pass mean= and std= to say it; and scale "
    "pictures as in training: most models of timm's and all of the authors' bicubic, miil bilinear"
)


def load_pretrained(
    path: str | os.PathLike[str], num_classes: int | None = None, in_channels: int | None = None,
    approximate: str | None = None, mean: Any = None, std: Any = None, image_size: Any = None,
    class_names: Any = None, preparation: str | None = None,
    norm: Callable[[int], Module] = LayerNorm,
) -> Mixer:  # fmt: skip
    """The model in a file, in eval mode, on the CPU: a checkpoint of minimixer's, an .npz of the
    authors' (current or older layout) or timm's weights as .safetensors.

    num_classes   a fresh head of zeros, for so many; 0: none; None: the file's
    in_channels   another number of colours than the file's: its filters are adapted so that grey
                  images answer as before
    approximate, mean, std, class_names, preparation   instead of what the file or its layout says
    image_size    likewise, if images are not square; `resize` is for other sizes than in training
    norm          the class again, of a checkpoint of a model that was made with one
    ValueError names the file, the entry and the shapes if it does not fit; OSError. A warning if
    nobody said how images were prepared.
    """
    path, unsaid = find_weights(path), False
    where = os.fspath(path)
    classes = {} if norm is LayerNorm else {"norm": norm}
    own = load_model(path, **classes) if is_checkpoint(path) else None
    if classes and not own:
        raise ValueError(f"{where}: norm= is for checkpoints of minimixer; others have LayerNorm")
    arrays, metadata = ({}, {}) if own else read_arrays(path)
    try:
        if own:
            weights, config = own.state_dict(), dict(own.config)
            described: dict[str, Any] = {"mean": own.mean, "std": own.std}
            described["class_names"] = own.class_names
            described["preparation"] = own.preparation
        else:
            weights, config, described = _understand(arrays, metadata, image_size)
            unsaid = "mean" not in described and (mean is None or std is None)
            described = {"mean": 0.5, "std": 0.5} | described
        if image_size is not None and own:
            config["image_size"] = image_size
        if approximate is not None:
            config["approximate"] = approximate
        changed = num_classes is not None or in_channels not in (None, config["in_channels"])
        if num_classes is not None:
            config["num_classes"], described["class_names"] = num_classes, None
            config = check_config(**config)
            weights |= {"head.weight": np.zeros((config["hidden_dim"], num_classes), "float32"),
                        "head.bias": np.zeros(num_classes, "float32")}  # fmt: skip
            if num_classes == 0:
                del weights["head.weight"], weights["head.bias"]
        elif "head.weight" not in weights and not own:
            raise ValueError(
                "it has no head; say for how many classes to make one: num_classes= (0: none)"
            )
        if in_channels is not None and in_channels != config["in_channels"]:
            weights["stem.weight"] = _other_channels(weights["stem.weight"], config, in_channels)
            config["in_channels"] = in_channels
            described["mean"] = float(np.mean(described["mean"]))
            described["std"] = float(np.mean(described["std"]))
        described["mean"] = described["mean"] if mean is None else mean
        described["std"] = described["std"] if std is None else std
        if class_names is not None:
            described["class_names"] = class_names
        if changed or preparation is not None:
            described["preparation"] = preparation
        dtype = str(weights["stem.weight"].dtype)
        model = Mixer(**check_config(**config), **described, dtype=dtype, seed=None)
        model.load_state_dict(weights)
    except (ValueError, TypeError) as error:  # wrong values, wrong types
        raise ValueError(f"{where}: can't be loaded as a Mixer: {error}") from None
    if unsaid:
        warnings.warn(f"{printable(where, 4096)}: {UNSAID}", stacklevel=3)
    model.eval()
    return model


def _understand(arrays: dict, metadata: dict, image_size: Any) -> tuple[dict, dict, dict]:
    """(weights under our names, configuration, class names and, if it is known, mean and std)."""
    layout, arrays = current_names(arrays)
    numbers = [re.match(r"(?:MixerBlock_|blocks\.)(\d+)[./]", name) for name in arrays]
    blocks = 1 + max((int(n[1]) for n in numbers if n and len(n[1]) < 5), default=-1)
    wanted = entries(layout, blocks)
    headless = [e for e in wanted if not e.ours.startswith("head.")]
    if not any(e.theirs in arrays for e in wanted[-2:]):
        wanted = headless
    missing = [e.theirs for e in wanted if e.theirs not in arrays]
    unknown = sorted(set(arrays) - {e.theirs for e in wanted})
    if missing or unknown:
        said = [f"missing: {name}" for name in missing[:5]]
        said += [f"unexpected: {printable(name, 80)}" for name in unknown[:5]]
        raise ValueError(f"{len(missing)} entries are missing, {len(unknown)} not known; "
                         + "; ".join(said))  # fmt: skip
    found = {e.ours: to_ours(e, arrays[e.theirs], layout) for e in wanted}
    own = _of_ours(metadata) if layout == "timm" else {"mean": 0.5, "std": 0.5}  # the authors'
    config = _sizes(found, own.pop("image_size", None) if image_size is None else image_size)
    config["approximate"] = own.pop("approximate", GELU_FORM[layout])
    expected = dict(expected_shapes(config))
    inner = config["patch_size"], config["patch_size"], config["in_channels"], config["hidden_dim"]
    expected["stem.weight"] = inner  # in four axes
    for entry in wanted:
        array, shape = found[entry.ours], expected[entry.ours]
        if array.shape != shape or array.dtype not in (np.float32, np.float64):
            raise ValueError(
                f"{entry.theirs} is {array.dtype} {arrays[entry.theirs].shape}; with the other "
                f"entries {_their_shape(entry, shape, layout)}, of float32 or float64, would fit"
            )
    if len({array.dtype for array in found.values()}) > 1:
        raise ValueError("its entries are of different dtypes")
    found["stem.weight"] = found["stem.weight"].reshape(-1, config["hidden_dim"])
    return found, check_config(**config), own


def _of_ours(metadata: dict[str, str]) -> dict[str, Any]:
    """What `export` wrote down beside timm's weights; of others' files nothing."""
    if "minimixer" not in metadata:
        return {}
    own = parse_json(metadata["minimixer"].encode())
    if not isinstance(own, dict):
        raise ValueError("its metadata are not what minimixer writes")
    own = {name: own[name] for name in KEPT if name in own}
    names = own.get("class_names")
    if not (names is None or (isinstance(names, list) and all(isinstance(n, str) for n in names))):
        raise ValueError(f"its class names are {names!r:.60}, not a list of names")
    return own


def _sizes(found: dict[str, np.ndarray], image_size: Any) -> dict[str, Any]:
    """The configuration that the shapes of a few arrays say."""
    stem = found["stem.weight"]
    if stem.ndim != 4 or stem.shape[0] != stem.shape[1] or 0 in stem.shape:
        raise ValueError(f"the stem's filters must be square and in 4 axes, got {stem.shape}")
    if "blocks.0.token_mixing.w1" not in found:
        raise ValueError("it has no blocks")
    tokens, channels = found["blocks.0.token_mixing.w1"], found["blocks.0.channel_mixing.w1"]
    if tokens.ndim != 2 or channels.ndim != 2 or 0 in (*tokens.shape, *channels.shape):
        raise ValueError(f"the MLPs' weights are {tokens.shape} and {channels.shape}, not matrices")
    patch, side = stem.shape[0], math.isqrt(tokens.shape[0])
    if image_size is None and side * side != tokens.shape[0]:
        raise ValueError(
            f"{tokens.shape[0]} tokens are no square image of {patch} x {patch} patches; say of "
            "which size: image_size=(height, width)"
        )
    return {
        "image_size": (side * patch, side * patch) if image_size is None else image_size,
        "patch_size": patch, "in_channels": stem.shape[2], "hidden_dim": stem.shape[3],
        "num_blocks": sum(name.endswith("norm1.weight") for name in found),
        "tokens_mlp_dim": tokens.shape[1], "channels_mlp_dim": channels.shape[1],
        "num_classes": found["head.weight"].shape[-1] if "head.weight" in found else 1,
    }  # fmt: skip


def _their_shape(entry: Entry, shape: tuple[int, ...], layout: str) -> tuple[int, ...]:
    if entry.stem and layout == "timm":
        return (shape[3], shape[2], *shape[:2])
    return shape[::-1] if entry.flip else shape


def _other_channels(stem: np.ndarray, config: dict, in_channels: int) -> np.ndarray:
    """(P*P*in, C) -> (P*P*in_channels, C): every new channel gets the mean filter, scaled so that
    an image whose channels are all alike has the same tokens."""
    check_sizes(in_channels=in_channels)
    filters = stem.reshape(-1, config["in_channels"], stem.shape[-1])
    mean = filters.sum(axis=1, keepdims=True) / in_channels
    return np.repeat(mean, in_channels, axis=1).reshape(-1, stem.shape[-1]).astype(stem.dtype)


def export(model: Mixer, path: str | os.PathLike[str], format: str) -> None:
    """Write the weights for others: format "npz", the authors', or "timm", as .safetensors.

    ValueError for another format, or weights that are not finite. A warning that says what the
    format has no place for, and how `from_pretrained` is told.
    """
    if format not in LAYOUTS:
        raise ValueError(f"export: format must be one of {', '.join(LAYOUTS)}, got {format!r}")
    state, config = model.state_dict(), model.config
    if "norm" in config:
        raise ValueError(
            f"export: {config['norm'].__name__} has no place in the {format} format, which knows "
            "LayerNorm only; model.save(path) keeps the model"
        )
    check_fit(type(model), config, state)
    broken = [name for name, value in state.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"export: {broken[0]} holds NaN or infinity")
    arrays = {
        entry.theirs: to_theirs(entry, state[entry.ours], format, config["patch_size"])
        for entry in entries(format, config["num_blocks"])
        if entry.ours in state
    }
    lost = _lost(model, format)
    if lost:
        names = ", ".join(_SHOWN.get(name, name) for name in lost)
        told = ", ".join(f"{name}={value}" for name, value in lost.items())
        warnings.warn(
            f"loaders of the {format} format don't know this model's {names}, and without will "
            "answer differently"
            + (f"; tell ours: Mixer.from_pretrained(path, {told})" if format == "npz" else ""),
            stacklevel=3,
        )
    with replace_file(path) as file:
        if format == "npz":
            np.savez(file, **arrays)  # type: ignore[arg-type]
        else:
            from safetensors.numpy import save

            own = {"approximate": config["approximate"], "image_size": config["image_size"],
                   "mean": model.mean.tolist(), "std": model.std.tolist(),
                   "class_names": model.class_names,
                   "preparation": model.preparation}  # fmt: skip
            file.write(save(arrays, metadata={"format": "pt", "minimixer": json.dumps(own)}))


_SHOWN = {"approximate": "form of GELU", "class_names": "class names", "image_size": "image size"}


def _lost(model: Mixer, format: str) -> dict[str, Any]:
    """What a file in this format can't say, and is not what its loaders take anyway."""
    config = model.config
    lost: dict[str, Any] = {}
    if config["approximate"] != GELU_FORM[format]:
        lost["approximate"] = repr(config["approximate"])
    for name, values in (("mean", model.mean), ("std", model.std)):
        if (values != 0.5).any():
            lost[name] = values.tolist()
    if format == "npz":  # timm's has metadata, where ours are; and timm wants to be told sizes
        if model.height != model.width:
            lost["image_size"] = config["image_size"]
        if model.class_names:
            lost["class_names"] = "[...]"
        if model.preparation:
            lost["preparation"] = repr(model.preparation)
    return lost
