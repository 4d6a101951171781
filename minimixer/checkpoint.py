"""Checkpoints: everything a run needs to go on, in one file that is whole or not there.

A checkpoint is an ordinary .npz, NumPy's format: `meta`, a JSON text as bytes (configuration,
normalisation, class names, seed, step, progress), and one array for each weight and for each
moment of the optimizer. It is written beside the old one, flushed to disk and renamed over it, so
a kill at any moment leaves one of the two. Reading never unpickles, and allocates nothing that
the file only claims to hold.

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
import zipfile
from typing import Any, BinaryIO

import numpy as np

from .backend import to_numpy
from .files import replace_file
from .loss_scale import SCALE_HOLDS, SMALLEST_SCALE
from .mixer import Mixer
from .optim import Optimizer
from .report import Summary
from .variants import check_config

FORMAT, VERSION = "minimixer checkpoint", 1


def save_checkpoint(
    path: str | os.PathLike, model: Mixer, optimizer: Optimizer | None = None, progress: Any = None
) -> None:
    """Write model, optimizer and `progress` (anything JSON can hold, else TypeError) to `path`.

    Nothing is written, but ValueError raised, if a weight is not finite, or the model's layers are
    no longer those of its configuration. OSError if the disk refuses.
    """
    arrays = {f"weights/{name}": value for name, value in model.state_dict().items()}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"not saved: {', '.join(broken[:3])} and so on hold NaN or infinity")
    _check_fit(check_config(**model.config), str(model.dtype), _part(arrays, "weights/"))
    random = model.random
    meta = {
        "format": FORMAT,
        "version": VERSION,
        **_describe(model),
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
    _check_meta(meta)
    text = json.dumps(meta).encode()
    with replace_file(path) as file:
        np.savez(file, meta=np.frombuffer(text, dtype=np.uint8), **arrays)  # type: ignore[arg-type]


def load_model(path: str | os.PathLike) -> Mixer:
    """The model in a checkpoint, on the CPU, in eval mode. ValueError if it can't be had."""
    meta, arrays = read_checkpoint(path)
    weights = _part(arrays, "weights/")
    try:
        config = check_config(**meta["config"])
        _check_fit(config, meta["dtype"], weights)  # before anything is allocated
        described = {key: meta[key] for key in ("mean", "std", "class_names", "dtype")}
        model = Mixer(**config, **described, seed=None)
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise ValueError(f"{os.fspath(path)}: can't be loaded as a Mixer: {error}") from None
    model.random.seed, *counters = meta["random"]
    model.random.set(*counters)
    model.eval()
    return model


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
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            arrays = _read_arrays(file, size)
            meta = json.loads(arrays.pop("meta").tobytes())
            version = meta["version"] if meta["format"] == FORMAT else None
            if version == VERSION:
                _check_meta(meta)
                if meta["arrays"] != sorted(arrays):
                    raise ValueError("some of its arrays are missing or renamed")
        except Exception as error:  # whatever a damaged or hostile file may lead to
            reason = str(error) or type(error).__name__
            raise ValueError(
                f"{where}: damaged or not a checkpoint of minimixer ({reason:.200})"
            ) from None
    if version != VERSION:
        raise ValueError(
            f"{where}: is of version {version!r:.20}, this minimixer reads version {VERSION}; "
            "load it with the minimixer that wrote it"
        )
    return meta, arrays


def _read_arrays(file: BinaryIO, size: int) -> dict[str, np.ndarray]:
    arrays: dict[str, np.ndarray] = {}
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            # Stored, not compressed, and together no more than the file: so nothing is a bomb.
            stored = member.compress_type == zipfile.ZIP_STORED
            size -= member.file_size
            if not stored or member.file_size != member.compress_size or size < 0:
                raise ValueError("it is packed in another way")
            name = member.filename.removesuffix(".npy")
            if name in arrays:
                raise ValueError(f"{name:.60} comes twice")
            arrays[name] = parse_array(archive.read(member))  # which compares the checksum
    return arrays


# NumPy's header, as far as it is needed: a regular expression, where NumPy evaluates an expression.
_HEADER = re.compile(
    rb"\{'descr': '(<f2|<f4|<f8|\|u1)', 'fortran_order': (True|False), "
    rb"'shape': \(([\d, ]{0,200})\), \} *\n"
)


def parse_array(data: bytes) -> np.ndarray:
    """A .npy file's bytes as an array of plain numbers, whose size must be exactly right."""
    start = 10 + int.from_bytes(data[8:10], "little")
    header = _HEADER.fullmatch(data[10:start])
    if data[:8] != b"\x93NUMPY\x01\x00" or header is None:
        raise ValueError("an array is not of plain numbers in NumPy's format")
    dtype = np.dtype(header[1].decode())
    shape = tuple(int(length) for length in header[3].decode().split(",") if length.strip())
    if math.prod(shape) * dtype.itemsize != len(data) - start:
        raise ValueError(f"an array of shape {shape} in {len(data) - start} bytes")
    array = np.frombuffer(data, dtype, offset=start)
    return array.reshape(shape[::-1]).T if header[2] == b"True" else array.reshape(shape)


def _check_meta(meta: dict[str, Any]) -> None:
    """Are all entries there, each of its type?"""
    optimizer, random = meta["optimizer"], meta["random"]
    scale = meta.get("loss_scale", [1.0, 0.0])  # float16's
    names = meta["class_names"]
    numbers = [*meta["mean"], *meta["std"]]
    right = {
        "config": isinstance(meta["config"], dict),
        "dtype": meta["dtype"] in ("float32", "float64"),
        "mean, std": all(isinstance(x, float) for x in numbers),
        "class_names": names is None or all(isinstance(name, str) for name in names),
        "random": len(random) == 3 and all(type(n) is int and 0 <= n < 1 << 64 for n in random),
        "loss_scale": isinstance(scale, list)
        and [type(n) for n in scale] == [float, float]
        and SMALLEST_SCALE <= scale[0] <= 2.0**48
        and 0 <= scale[1] <= SCALE_HOLDS,
        "optimizer": optimizer is None
        or (type(optimizer["step"]) is int and 0 <= optimizer["step"] < 1 << 53),
        "progress": "progress" in meta,
    }
    wrong = [key for key, is_right in right.items() if not is_right]
    if wrong:
        raise ValueError(f"{', '.join(wrong)} is not what minimixer writes")
