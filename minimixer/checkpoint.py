"""Saving and resuming: `training/checkpoint.py`, by its short name."""

from .training.checkpoint import *  # noqa: F403
