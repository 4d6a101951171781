"""A script's settings: one table says each one's name, default, range and meaning.

    SETTINGS = {
        "epochs": Setting(6, Between(1, 1e9), "passes over the training images", on_gpu=40),
        "schedule": Setting("cosine", OneOf("cosine", "linear"), "how the learning rate falls"),
    }

Command line, --help, and what is refused, from the command line or from a checkpoint, are made from
it. Settings are what makes a run the run it is, and are kept in its checkpoint; options such as
--device are apart.
"""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# Of a Mixer, but for its images and classes: P, N, C, D_S, D_C.
SIZES = ("patch_size", "num_blocks", "hidden_dim", "tokens_mlp_dim", "channels_mlp_dim")


class Between:
    """Numbers from `least` to `most`. NaN is none of them."""

    def __init__(self, least: float, most: float = math.inf):
        self.least, self.most = least, most

    def __contains__(self, value: float) -> bool:
        return self.least <= value <= self.most

    def __str__(self) -> str:
        least = f"{self.least:g}"
        return f"at least {least}" if self.most == math.inf else f"from {least} to {self.most:g}"


class OneOf:
    """One of these words; of them "" is what nobody has to write."""

    def __init__(self, *words: str):
        self.words = words

    def __contains__(self, value: str) -> bool:
        return value in self.words

    def __str__(self) -> str:
        *others, last = [word for word in self.words if word]
        return f"{', '.join(others)} or {last}"


class Text:
    """Any: what it names will tell whether it is right."""

    def __contains__(self, value: str) -> bool:
        return True


class Setting(NamedTuple):
    """Its default, what it may be, and what it is; and other defaults that hold elsewhere."""

    default: Any
    allowed: Between | OneOf | Text
    text: str
    on_gpu: Any = None
    new_model: Any = None  # of finetune.py --variant

    @property
    def help(self) -> str:
        named = {"default": self.default, "new model": self.new_model, "on a GPU": self.on_gpu}
        notes = [f"{name}: {value}" for name, value in named.items() if value not in (None, "")]
        return f"{self.text} ({'; '.join(notes)})" if notes else self.text

    def but(self, **changes: Any) -> "Setting":
        """The same with another default, say, as it is in another script."""
        return self._replace(**changes)


Settings = Mapping[str, Setting]


def dashes(name: str) -> str:
    return "--" + name.replace("_", "-")


def take_defaults(
    options: argparse.Namespace, given: set[str], settings: Settings, case: str
) -> None:
    """The defaults that hold in a case, "on_gpu" say, for what was not `given`."""
    for name, setting in settings.items():
        value = getattr(setting, case)
        if value is not None and name not in given:
            setattr(options, name, value)


def check_settings(options: argparse.Namespace, settings: Settings) -> None:
    """ValueError, with the option, unless each is what it may be."""
    for name, setting in settings.items():
        if getattr(options, name) not in setting.allowed:
            raise ValueError(f"{dashes(name)} must be {setting.allowed}")


def check_given(
    options: argparse.Namespace, given: set[str], settings: Settings, stored: Mapping[str, Any],
    checkpoint: Path,
) -> None:  # fmt: skip
    """ValueError if other settings were asked for than the `stored` ones of the run to resume."""
    for name in sorted(given & settings.keys()):
        if name.startswith("data") or getattr(options, name) == stored[name]:
            continue
        anew = f"--weights {checkpoint}" + (" --head keep" if "head" in stored else "")
        raise ValueError(
            f"{dashes(name)} is {stored[name]!r} in the run to resume; leave it out, or begin "
            f"a new run from its weights, with a schedule of its own: {anew}"
        )
