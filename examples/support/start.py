"""Before the first step: a device, its precision, a model from a file, and what the data are."""

import zlib
from pathlib import Path

import numpy as np

from minimixer import Mixer, backend
from minimixer.weights.remake import remake
from support.run import Run
from support.settings import SIZES, check_settings, dashes, take_defaults
from support.stopping import say


def prepare(run: Run, *cases: str) -> str:
    """The device to train on. Settings that were not given are those of a GPU there, and of the
    other `cases`; those of a run to resume are its own. ValueError if one is not what it may be."""
    options = run.options
    if not options.resume:
        for case in (*cases, *(["on_gpu"] if options.device != "cpu" else [])):
            take_defaults(options, run.given, run.settings, case)
    check_settings(options, run.settings)
    return run.world.use(options.device)


def load_model(
    run: Run, source: str | Path, shape: tuple[int, ...], classes: int, preparation: str | None
) -> Mixer:
    """The model of --weights, or of the run to resume, for images (H, W, channels) of `shape`:
    `options` learns its sizes. ValueError if it is for others, or has not the sizes asked for."""
    options, model = run.options, run.stored_model(source)
    met = (model.height, model.width, model.in_channels, model.num_classes)
    if met != (*shape, classes):
        raise ValueError(f"{source} is for images (H, W, channels) of {met[:3]} and {met[3]} "
                         f"classes; the data have {shape} and {classes}")  # fmt: skip
    for name in SIZES:
        asked = name in run.given or options.resume
        if asked and getattr(options, name) != model.config[name]:
            raise ValueError(f"{dashes(name)} is {model.config[name]} in {source}; leave it out")
        setattr(options, name, model.config[name])
    if not options.resume:
        model = remake(model, stochastic_depth=options.stochastic_depth, preparation=preparation)
        model.random.seed = options.seed
    model.checkpoint_blocks = options.checkpoint_blocks
    return model


def set_precision(run: Run, model: Mixer) -> None:
    """--precision; unless it was asked for, float32 on a GPU that lacks it, which is said."""
    options = run.options
    try:
        backend.check_precision(options.precision, model.device)
    except ValueError as error:
        if "precision" in run.given or options.resume:
            raise
        say(f"training in float32: {error}")
        options.precision = "float32"
    model.set_precision(options.precision)


def fingerprint(*parts: np.ndarray | bytes) -> int:
    """A number that tells data sets apart."""
    found = 0
    for part in parts:
        found = zlib.crc32(part if isinstance(part, bytes) else part.tobytes(), found)
    return found
