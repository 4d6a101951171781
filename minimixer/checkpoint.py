"""Saving and resuming: `training/checkpoint.py`, by its short name."""

from .training.checkpoint import load_checkpoint as load_checkpoint
from .training.checkpoint import load_model as load_model
from .training.checkpoint import read_checkpoint as read_checkpoint
from .training.checkpoint import save_checkpoint as save_checkpoint
