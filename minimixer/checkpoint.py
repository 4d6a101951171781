"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

A checkpoint is an ordinary .npz, NumPy's format: `meta`, a JSON text as bytes (configuration,
normalisation, class names, seed, step, progress), and one array for each weight and for each
moment of the optimizer. `files.py` writes it, so that a kill at any moment leaves the old one or
the new one, and `npz.py` reads it, which believes nothing that a file only claims.

>>> import tempfile
>>> from minimixer import Mixer
>>> model = Mixer(image_size=4, patch_size=2, in_channels=1, num_classes=2, num_blocks=1,
...               hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=16, class_names=["cat", "dog"])
>>> path = tempfile.mkdtemp() + "/checkpoint.npz"
>>> save_checkpoint(path, model)
>>> Mixer.load(path).class_names
['cat', 'dog']

Next: the scripts in `examples/`.
"""

import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from .backend import to_numpy
from .files import open_file, parse_json, replace_file
from .loss_scale import SCALE_HOLDS, SMALLEST_SCALE
from .mixer import Mixer
from .npz import Npz, check_finite
from .optim import Optimizer
from .report import Summary
from .variants import check_config

FORMAT, VERSION, META = "minimixer checkpoint", 1, "meta"
BUILT_IN = {"digits": Path(__file__).with_name("digits.npz")}  # by examples/make_digits.py


def save_checkpoint(
    path: str | os.PathLike, model: Mixer, optimizer: Optimizer | None = None, progress: Any = None
) -> None:
    """Write model, optimizer and `progress` (anything JSON can hold, else TypeError) to `path`.

    Nothing is written, but ValueError raised, if a number is not finite, or the model's layers are
    no longer those of its configuration. OSError if the disk refuses.
    """
    arrays = {f"weights/{name}": value for name, value in model.state_dict().items()}
    _check_fit(check_config(**model.config), str(model.dtype), _part(arrays, "weights/"))
    random = model.random
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **_describe(model),
        "preparation": model.preparation,
        "random": [random.seed, *to_numpy(random.counters).tolist()],
        "optimizer": None,
        "progress": progress,
    }
    if model.buffer.scaled:
        meta["loss_scale"] = to_numpy(model.buffer.loss_scale).tolist()
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        if any(id(parameter) not in names for parameter in optimizer.parameters):
            raise ValueError("not saved: the optimizer is of another model")
        state = optimizer.state_dict()
        meta["optimizer"] = {"kind": type(optimizer).__name__, "step": state.pop("step")}
        for moment, values in state.items():
            for parameter, value in zip(optimizer.parameters, values, strict=True):
                arrays[f"optimizer/{moment}/{names[id(parameter)]}"] = value
    meta["arrays"] = sorted(arrays)
    text = json.dumps(meta).encode()
    try:  # what could not be read again is not written
        _check_meta(parse_json(text))
        check_finite(arrays)
    except ValueError as error:
        raise ValueError(f"not saved: {error}") from None
    with replace_file(path) as file:
        np.savez(file, meta=np.frombuffer(text, dtype=np.uint8), **arrays)  # type: ignore[arg-type]


def load_model(path: str | os.PathLike) -> Mixer:
    """The model in a checkpoint, on the CPU, in eval mode. ValueError if it can't be had.

    A name of BUILT_IN will do if no file is called so; FileNotFoundError, with these names, for
    another that is no file.
    """
    meta, arrays = read_checkpoint(find_weights(path))
    weights = _part(arrays, "weights/")
    try:
        config = check_config(**meta["config"])
        _check_fit(config, meta["dtype"], weights)  # before anything is allocated
        described = {key: meta[key] for key in ("mean", "std", "class_names", "dtype")}
        preparation = meta.get("preparation", _guess_preparation(meta))
        model = Mixer(**config, **described, preparation=preparation, seed=None)
        model.load_state_dict(weights)
    except (TypeError, ValueError) as error:  # wrong entries, wrong values
        raise ValueError(f"{os.fspath(path)}: can't be loaded as a Mixer: {error}") from None
    model.random.seed, *counters = meta["random"]
    model.random.set(*counters)
    model.eval()
    return model


def find_weights(path: str | os.PathLike) -> str | os.PathLike:
    """`path`, or the file that a name of BUILT_IN, no file being called so, stands for."""
    if not isinstance(path, str) or os.path.isfile(path):
        return path
    if path in BUILT_IN:
        return BUILT_IN[path]
    if re.fullmatch(r"\w+", path) and not os.path.exists(path):
        names = ", ".join(BUILT_IN)
        raise FileNotFoundError(
            f"{path}: no such file, nor a model that comes with minimixer (there is: {names})"
        )
    return path


def _guess_preparation(meta: dict[str, Any]) -> str | None:
    """Of a file from before this was recorded: "digit" if it may be a model of MNIST."""
    sizes = [meta["config"].get(key) for key in ("image_size", "in_channels")]
    names = [str(digit) for digit in range(10)]
    return "digit" if sizes == [[28, 28], 1] and meta["class_names"] == names else None


def load_checkpoint(path: str | os.PathLike, model: Mixer, optimizer: Optimizer) -> Any:
    """Put a checkpoint's weights and optimizer state into these two; returns its `progress`.

    ValueError, and nothing is changed, if it is of another model or optimizer.
    """
    meta, arrays = read_checkpoint(path)
    where = os.fspath(path)
    ours = json.loads(json.dumps(_describe(model)))
    theirs = {**meta["config"], **{key: meta[key] for key in ours if key != "config"}}
    ours |= ours.pop("config")
    differ = [key for key, value in ours.items() if theirs.get(key) != value]
    if differ:
        raise ValueError(f"{where}: is of another model; it differs in {', '.join(differ)}")
    if (meta["optimizer"] or {}).get("kind") != type(optimizer).__name__:
        raise ValueError(f"{where}: holds no state of {type(optimizer).__name__}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {"step": meta["optimizer"]["step"]}
    kept = {name.split("/")[1] for name in arrays if name.startswith("optimizer/")}
    if kept != set(optimizer.moments) or any(id(p) not in names for p in optimizer.parameters):
        raise ValueError(f"{where}: its optimizer was set up in another way, or of another model")
    for moment in optimizer.moments:
        found = _part(arrays, f"optimizer/{moment}/")
        wanted = [names[id(parameter)] for parameter in optimizer.parameters]
        state[moment] = [found[name] for name in wanted if name in found]
    old = model.state_dict()
    try:
        model.load_state_dict(_part(arrays, "weights/"))
        optimizer.load_state_dict(state)
    except ValueError as error:
        model.load_state_dict(old)
        raise ValueError(f"{where}: {error}") from None
    model.random.seed, *counters = meta["random"]
    model.random.set(*counters)
    if model.buffer.scaled and "loss_scale" in meta:
        model.buffer.loss_scale[0], model.buffer.loss_scale[1] = meta["loss_scale"]
    return meta["progress"]


def _check_fit(config: dict[str, Any], dtype: str, weights: dict[str, np.ndarray]) -> None:
    """ValueError unless there are as many weights as a model of this configuration has."""
    if (
        len(weights) != 12 * config["num_blocks"] + (6 if config["num_classes"] else 4)
        or {str(array.dtype) for array in weights.values()} != {dtype}
        or sum(array.size for array in weights.values()) != Summary(config).parameters
    ):
        raise ValueError(
            "the weights are not those of the model's configuration (was a layer replaced? make a "
            "Mixer of the new sizes instead)"
        )


def _describe(model: Mixer) -> dict[str, Any]:
    """What must agree for a run to be the same one."""
    return {
        "config": model.config,
        "dtype": str(model.dtype),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "class_names": model.class_names,
    }


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


# ---- reading a file that somebody else may have made ---------------------------------------


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays by name) of a checkpoint. ValueError for any other file; OSError if there is
    none or it may not be read."""
    where = os.fspath(path)
    try:
        with open_file(path) as file:
            stored = Npz(file)
            if META not in stored:
                raise ValueError(
                    "it holds no configuration; if it is of the authors' or timm's, use "
                    "Mixer.from_pretrained"
                )
            meta = parse_json(stored[META].tobytes())
            version = _version(meta)
            if version == VERSION:
                _check_meta(meta)
                if meta["arrays"] != sorted(set(stored) - {META}):
                    raise ValueError("some of its arrays are missing or renamed")
                arrays = {name: stored[name] for name in stored if name != META}
                check_finite(arrays)
                return meta, arrays
    except ValueError as error:
        raise ValueError(f"{where}: damaged or not a checkpoint of minimixer ({error})") from None
    raise ValueError(
        f"{where}: is of version {version!r:.20}, this minimixer reads version {VERSION}; "
        "load it with the minimixer that wrote it"
    )


def is_checkpoint(path: str | os.PathLike) -> bool:
    """Does it look like a checkpoint of minimixer's? Only OSError, if it can't be opened."""
    try:
        with open_file(path) as file:
            return META in Npz(file)
    except ValueError:
        return False


def _version(meta: Any) -> Any:
    if not isinstance(meta, dict) or meta.get("format") != FORMAT:
        raise ValueError("its meta is of something else")
    return meta.get("version")


def _check_meta(meta: dict[str, Any]) -> None:
    """Are all entries there, each of its type?"""
    optimizer, random = meta.get("optimizer", ...), meta.get("random")
    scale = meta.get("loss_scale", [1.0, 0.0])  # float16's
    names = meta.get("class_names", ...)
    right = {
        "config": isinstance(meta.get("config"), dict),
        "dtype": meta.get("dtype") in ("float32", "float64"),
        "mean": _is_list(meta.get("mean"), _is_real),
        "std": _is_list(meta.get("std"), _is_real),
        "class_names": names is None or _is_list(names, lambda name: isinstance(name, str)),
        "preparation": isinstance(meta.get("preparation"), str | None),
        "random": _is_list(random, lambda n: _is_count(n, 1 << 64), 3),
        "loss_scale": _is_list(scale, _is_real, 2)
        and SMALLEST_SCALE <= scale[0] <= 2.0**48
        and 0 <= scale[1] <= SCALE_HOLDS,
        "optimizer": optimizer is None
        or (
            isinstance(optimizer, dict)
            and isinstance(optimizer.get("kind"), str)
            and _is_count(optimizer.get("step"), 1 << 53)
        ),
        "progress": "progress" in meta,
        "arrays": _is_list(meta.get("arrays"), lambda name: isinstance(name, str)),
    }
    wrong = [key for key, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} is not what minimixer writes")


def _is_list(value: Any, is_right: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(is_right, value)) and length in (None, len(value))


def _is_real(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_count(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end
