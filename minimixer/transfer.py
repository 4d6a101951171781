"""The modules of `weights` and `pictures`, by the name that they had together."""

from typing import Any

from . import pictures, weights


def __getattr__(name: str) -> Any:
    room = pictures if name in dir(pictures) else weights
    return getattr(room, name)
