"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

A checkpoint is an ordinary .npz, NumPy's format: `meta`, a JSON text as bytes (configuration,
normalisation, class names, seed, step, progress), and one array for each weight and for each
moment of the optimizer. `files.py` writes it, so that a kill at any moment leaves the old one or
the new one, and `npz.py` reads it, which believes nothing that a file only claims.

>>> import tempfile
>>> from minimixer import Mixer
>>> from minimixer.training.checkpoint import save_checkpoint
>>> model = Mixer(image_size=4, patch_size=2, in_channels=1, num_classes=2, num_blocks=1,
...               hidden_dim=8, tokens_mlp_dim=4, channels_mlp_dim=16, class_names=["cat", "dog"])
>>> path = tempfile.mkdtemp() + "/checkpoint.npz"
>>> save_checkpoint(path, model)
>>> Mixer.load(path).class_names
['cat', 'dog']

Any Module can be saved. What `load_model` asks of its class, so as to make it again:

    config           an attribute: the constructor's arguments, as JSON holds them, or classes, of
                     which the file keeps the names: they are handed over again to load it
    expected_shapes  a static method: config -> (name, shape) of every weight, one at a time, from
                     the sizes alone; so no memory is taken for what a file only claims
    seed             an argument of the constructor; None: the weights need not be drawn
"""

import inspect
import json
import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from ..engine.arrays import to_numpy
from ..nn.buffer import ParameterBuffer
from ..nn.loss_scale import SCALE_HOLDS, SMALLEST_SCALE
from ..nn.module import Module
from .files import open_file, parse_json, replace_file
from .npz import Npz, check_finite
from .optim import Optimizer

FORMAT, VERSION, META = "minimixer checkpoint", 1, "meta"
# What a constructor may say of a configuration that is none of its own.
WRONG = (TypeError, ValueError, LookupError, ArithmeticError, AttributeError)
KEPT = ("mean", "std", "class_names", "preparation")  # beside the configuration, of whom has them
BUILT_IN = {"digits": Path(__file__).with_name("digits.npz")}  # by examples/make_digits.py


def save_checkpoint(
    path: str | os.PathLike[str],
    model: Module,
    optimizer: Optimizer | None = None,
    progress: Any = None,
) -> None:
    """Write model, optimizer and `progress` (anything JSON can hold, else TypeError) to `path`.

    Nothing is written, but ValueError raised, if a number is not finite, or the model's layers are
    no longer those of its configuration. OSError if the disk refuses.
    """
    weights, buffer = model.state_dict(), _buffer(model)
    if hasattr(model, "expected_shapes"):
        check_fit(type(model), getattr(model, "config", {}), weights)
    arrays = {f"weights/{name}": value for name, value in weights.items()}
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **_describe(model),
        "random": [buffer.random.seed, *to_numpy(buffer.random.counters).tolist()],
        "optimizer": None,
        "progress": progress,
    }
    if buffer.scaled:
        meta["loss_scale"] = to_numpy(buffer.loss_scale).tolist()
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


def load_model(path: str | os.PathLike[str], kind: Any = None, **classes: Any) -> Any:
    """The model in a checkpoint, on the CPU, in eval mode. ValueError if it can't be had.

    kind      its class (else TypeError); None: Mixer
    classes   those that its configuration names, such as norm=RMSNorm; a file can't bring its own
    A name of BUILT_IN will do if no file is called so; FileNotFoundError, with these names, for
    another that is no file.
    """
    if kind is None:
        from ..model.mixer import Mixer as kind
    if not isinstance(kind, type):
        raise TypeError(f"load_model: kind must be a class, got {kind!r:.60}")
    meta, arrays = read_checkpoint(find_weights(path))
    name, weights = kind.__name__, _part(arrays, "weights/")
    try:
        if meta["kind"] != name:
            raise ValueError(
                f"it holds a {meta['kind']:.60}; hand its class over: load_model(path, kind=...)"
            )
        if not hasattr(kind, "expected_shapes"):
            raise ValueError(
                f"{name} has no expected_shapes(config), to say which weights a file should have; "
                "load_checkpoint fills a model that is made already"
            )
        config = _with_classes(meta["config"], classes)
        check_fit(kind, config, weights)  # before anything is allocated
        if {str(array.dtype) for array in weights.values()} != {meta["dtype"]}:
            raise ValueError(f"its weights are not all {meta['dtype']}")
        model = kind(**config, **{key: meta[key] for key in KEPT if key in meta}, seed=None)
        model.to(meta["dtype"])
        model.load_state_dict(weights)
    except WRONG as error:
        raise ValueError(f"{os.fspath(path)}: can't be loaded as a {name}: {error}") from None
    random = _buffer(model).random
    random.seed, *counters = meta["random"]
    random.set(*counters)
    return model.eval()


def find_weights(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
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


def load_checkpoint(path: str | os.PathLike[str], model: Module, optimizer: Optimizer) -> Any:
    """Put a checkpoint's weights and optimizer state into these two; returns its `progress`.

    ValueError, and nothing is changed, if it is of another model or optimizer.
    """
    meta, arrays = read_checkpoint(path)
    where = os.fspath(path)
    ours = json.loads(json.dumps(_describe(model)))
    ours.pop("preparation", None)  # of pictures of one's own: the run is the same
    theirs = {**meta["config"], **{key: meta.get(key) for key in ours if key != "config"}}
    ours |= ours.pop("config")
    differ = [key for key in ours | theirs if ours.get(key) != theirs.get(key)]
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
    buffer = _buffer(model)
    buffer.random.seed, *counters = meta["random"]
    buffer.random.set(*counters)
    if buffer.scaled and "loss_scale" in meta:
        buffer.loss_scale[0], buffer.loss_scale[1] = meta["loss_scale"]
    return meta["progress"]


def check_fit(kind: Any, config: dict[str, Any], weights: dict[str, np.ndarray]) -> None:
    """ValueError unless these are the weights, by shape, of a `kind` with this configuration."""
    found = {name: array.shape for name, array in weights.items()}
    expected: set[str] = set()
    wrong = ""
    for name, shape in kind.expected_shapes(config):
        expected.add(name)
        if found.get(name) != shape:
            wrong = f"{name} is {found.get(name, 'missing')}, not {shape}"
            break  # what comes after may be a claim without end
    else:
        if len(expected) < len(found):
            wrong = f"{min(found.keys() - expected):.80} is unexpected"
    if wrong:
        raise ValueError(
            f"the weights are not those of the model's configuration: {wrong} (was a layer "
            f"replaced? make a {kind.__name__} of the new sizes instead)"
        )


def _with_classes(config: dict[str, Any], classes: dict[str, Any]) -> dict[str, Any]:
    """The configuration with classes in place of their names, which must be right."""
    for key, value in classes.items():
        name, found = getattr(value, "__name__", value), config.get(key)
        if name != found:
            said = f"says {found!r:.60}" if key in config else "is of a model without one"
            raise ValueError(f"{key}={name} was given, but the file {said}")
    return config | classes


def _buffer(model: Module) -> ParameterBuffer:
    """Where the model's weights are, gathered."""
    parameters = model.parameters()
    if not parameters or parameters[0].buffer is None:
        raise ValueError(f"{type(model).__name__} has no weights that could be saved or loaded")
    return parameters[0].buffer


def _describe(model: Module) -> dict[str, Any]:
    """What must agree for a run to be the same one."""
    config = getattr(model, "config", {})
    found = {
        "kind": type(model).__name__,
        "config": {k: v.__name__ if isinstance(v, type) else v for k, v in config.items()},
        "dtype": str(_buffer(model).dtype),
    }
    takes = inspect.signature(type(model)).parameters
    takes_all = any(p.kind is p.VAR_KEYWORD for p in takes.values())
    for key in KEPT:
        if (key in takes or takes_all) and hasattr(model, key):
            value = getattr(model, key)
            found[key] = value.tolist() if isinstance(value, np.ndarray) else value
    return found


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


# ---- reading a file that somebody else may have made ---------------------------------------


def read_checkpoint(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
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
                if meta.setdefault("kind", "Mixer") == "Mixer":  # files from before it was recorded
                    meta.setdefault("preparation", _guess_preparation(meta))
                return meta, arrays
    except ValueError as error:
        raise ValueError(f"{where}: damaged or not a checkpoint of minimixer ({error})") from None
    raise ValueError(
        f"{where}: is of version {version!r:.20}, this minimixer reads version {VERSION}; "
        "load it with the minimixer that wrote it"
    )


def is_checkpoint(path: str | os.PathLike[str]) -> bool:
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
    other: Any = ... if meta.get("kind", "Mixer") == "Mixer" else []  # other kinds may have none
    names = meta.get("class_names", other)
    right = {
        "kind": _is_name(meta.get("kind", "Mixer")),
        "config": isinstance(meta.get("config"), dict) and all(map(_is_name, meta["config"])),
        "dtype": meta.get("dtype") in ("float32", "float64"),
        "mean": _is_list(meta.get("mean", other), _is_real),
        "std": _is_list(meta.get("std", other), _is_real),
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
        "arrays": _is_list(meta.get("arrays"), _is_name),
    }
    wrong = [key for key, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} is not what minimixer writes")


def _is_name(value: Any) -> bool:
    """That a message may repeat: it can't clear the terminal."""
    return isinstance(value, str) and value.isprintable()


def _is_list(value: Any, is_right: Callable[[Any], bool], length: int | None = None) -> bool:
    return isinstance(value, list) and all(map(is_right, value)) and length in (None, len(value))


def _is_real(value: Any) -> bool:
    return type(value) is float and math.isfinite(value)


def _is_count(value: Any, end: int) -> bool:
    return type(value) is int and 0 <= value < end
