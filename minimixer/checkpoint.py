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
>>> path = Path(tempfile.mkdtemp()) / "checkpoint.npz"
>>> save_checkpoint(path, model)
>>> Mixer.load(path).class_names
['cat', 'dog']

Next: the scripts in `examples/`.
"""

import io
import json
import math
import os
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .backend import to_numpy
from .idx import replace_file
from .mixer import Mixer, check_config
from .optim import Optimizer
from .report import Summary

FORMAT, VERSION = "minimixer checkpoint", 1


def save_checkpoint(
    path: str | os.PathLike, model: Mixer, optimizer: Optimizer | None = None, progress: Any = None
) -> None:
    """Write model, optimizer and `progress` (anything JSON can hold) to `path`.

    ValueError, and nothing is written, if a weight is not finite. OSError if the disk refuses.
    """
    arrays = {f"weights/{name}": value for name, value in model.state_dict().items()}
    broken = [name for name, value in arrays.items() if not np.isfinite(value).all()]
    if broken:
        raise ValueError(f"not saved: {', '.join(broken[:3])} and so on hold NaN or infinity")
    random = model.random
    meta = {
        "format": FORMAT,
        "version": VERSION,
        "config": model.config,
        "dtype": str(model.dtype),
        "mean": model.mean.tolist(),
        "std": model.std.tolist(),
        "class_names": model.class_names,
        "random": [random.seed, *to_numpy(random.counters).tolist()],
        "optimizer": None,
        "progress": progress,
    }
    if optimizer is not None:
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        state = optimizer.state_dict()
        meta["optimizer"] = {"kind": type(optimizer).__name__, "step": state.pop("step")}
        for moment, values in state.items():
            for parameter, value in zip(optimizer.parameters, values, strict=True):
                arrays[f"optimizer/{moment}/{names[id(parameter)]}"] = value
    text = json.dumps(meta).encode()
    with replace_file(path) as file:
        np.savez(file, meta=np.frombuffer(text, dtype=np.uint8), **arrays)  # type: ignore[arg-type]


def load_model(path: str | os.PathLike) -> Mixer:
    """The model in a checkpoint, on the CPU, in eval mode. ValueError if it can't be had."""
    meta, arrays = read_checkpoint(path)
    weights = _part(arrays, "weights/")
    try:
        config = check_config(**meta["config"])
        # Before any weight is allocated: are there as many as the configuration claims?
        claimed = 12 * config["num_blocks"] + 6
        if claimed == len(weights):
            claimed = Summary(config).parameters
        if claimed != sum(array.size for array in weights.values()):
            raise ValueError("its configuration does not fit its weights")
        model = Mixer(
            **config,
            mean=meta["mean"],
            std=meta["std"],
            class_names=meta["class_names"],
            seed=None,
            dtype=meta["dtype"],
        )
        model.load_state_dict(weights)
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{os.fspath(path)}: can't be loaded as a Mixer: {error}") from None
    model.eval()
    return model


def load_checkpoint(path: str | os.PathLike, model: Mixer, optimizer: Optimizer) -> Any:
    """Put a checkpoint's weights and optimizer state into these two; returns its `progress`.

    ValueError, and nothing is changed, if it is of another model or optimizer.
    """
    meta, arrays = read_checkpoint(path)
    where = os.fspath(path)
    if meta.get("config") != json.loads(json.dumps(model.config)):
        theirs = meta.get("config") or {}
        differ = [k for k, v in model.config.items() if theirs.get(k) != json.loads(json.dumps(v))]
        raise ValueError(f"{where}: is of another model; it differs in {', '.join(differ)}")
    stored = meta.get("optimizer") or {}
    if stored.get("kind") != type(optimizer).__name__:
        raise ValueError(f"{where}: holds no state of {type(optimizer).__name__}")
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    state: dict[str, Any] = {"step": stored["step"]}
    for moment in optimizer.moments:
        found = _part(arrays, f"optimizer/{moment}/")
        wanted = [names[id(parameter)] for parameter in optimizer.parameters]
        state[moment] = [found[name] for name in wanted if name in found]
    old = model.state_dict()
    model.load_state_dict(_part(arrays, "weights/"))
    try:
        optimizer.load_state_dict(state)
    except ValueError as error:
        model.load_state_dict(old)
        raise ValueError(f"{where}: {error}") from None
    model.random.seed, *counters = meta["random"]
    model.random.set(*counters)
    return meta["progress"]


def _part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {name[len(prefix) :]: a for name, a in arrays.items() if name.startswith(prefix)}


def read_checkpoint(path: str | os.PathLike) -> tuple[dict[str, Any], dict[str, np.ndarray]]:
    """(meta, arrays by name) of a checkpoint. ValueError for any other file; FileNotFoundError."""
    where = os.fspath(path)
    advice = "give a checkpoint that minimixer wrote"
    size = Path(path).stat().st_size
    arrays: dict[str, np.ndarray] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                # Stored, not compressed: so no member is larger than the file, and none is a bomb
                if member.compress_type != zipfile.ZIP_STORED or member.file_size > size:
                    raise ValueError("it is packed in another way")
                size -= member.file_size
                data = archive.read(member)  # compares the checksum
                arrays[member.filename.removesuffix(".npy")] = _parse_array(data)
        meta = json.loads(arrays.pop("meta").tobytes())
        if not isinstance(meta, dict) or meta.get("format") != FORMAT:
            raise ValueError("it says nothing of minimixer")
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as error:
        raise ValueError(f"{where}: damaged or not a checkpoint ({error}); {advice}") from None
    except (KeyError, ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not a checkpoint ({error}); {advice}") from None
    if meta.get("version") != VERSION:
        raise ValueError(
            f"{where}: is a checkpoint of version {meta.get('version')}, this minimixer reads "
            f"version {VERSION}; load it with the minimixer that wrote it"
        )
    return meta, arrays


def _parse_array(data: bytes) -> np.ndarray:
    """A .npy file's bytes as an array of plain numbers, whose size must be exactly right."""
    file = io.BytesIO(data)
    if np.lib.format.read_magic(file) != (1, 0):
        raise ValueError("an array of another .npy version")
    shape, fortran_order, dtype = np.lib.format.read_array_header_1_0(file)
    if dtype not in (np.uint8, np.float32, np.float64) or not dtype.isnative:
        raise ValueError(f"an array of {dtype}")
    if fortran_order or math.prod(shape) * dtype.itemsize != len(data) - file.tell():
        raise ValueError(f"an array of shape {shape} in {len(data)} bytes")
    return np.frombuffer(data, dtype, offset=file.tell()).reshape(shape)
