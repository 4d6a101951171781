"""What others call a Mixer's weights, and how they lay them out.

The authors' files (.npz) name arrays by path, MixerBlock_0/token_mixing/Dense_0/kernel, and keep
every matrix as (in, out); an older layout has other names. timm (.safetensors) follows PyTorch:
(out, in), and the stem is a convolution, (C, in, P, P). minimixer's own matrices are (in, out), but
for token mixing's second, (S, D_S), and the stem, (P*P*in, C). Each weight thus needs at most a
transposition, which is its own way back.

>>> from minimixer.weights.layouts import entries
>>> [(entry.theirs, entry.ours) for entry in entries("timm", num_blocks=1)][2:4]
[('blocks.0.norm1.weight', 'blocks.0.norm1.weight'), ('blocks.0.norm1.bias', 'blocks.0.norm1.bias')]

Next: `pretrained.py`, models from such files.
"""

import re
from typing import NamedTuple

import numpy as np

LAYOUTS = ("npz", "timm")
PREFIXES = ("module.", "model.", "_orig_mod.")  # what training scripts put before timm's names


class Entry(NamedTuple):
    """One weight: its name in their layout and in ours, and how to turn one into the other."""

    theirs: str
    ours: str
    flip: bool = False  # a matrix that they keep transposed
    stem: bool = False


def entries(layout: str, num_blocks: int) -> list[Entry]:
    """All 12 N + 6 weights in a layout, "npz" (the authors' current one) or "timm"."""
    norm, weight = ("scale", "kernel") if layout == "npz" else ("weight", "weight")
    slash = "/" if layout == "npz" else "."
    stem, last = ("stem", "pre_head_layer_norm") if layout == "npz" else ("stem.proj", "norm")
    found = [Entry(f"{stem}{slash}{weight}", "stem.weight", stem=True)]
    found.append(Entry(f"{stem}{slash}bias", "stem.bias"))
    for i in range(num_blocks):
        ours = f"blocks.{i}."
        block = f"MixerBlock_{i}/" if layout == "npz" else f"blocks.{i}."
        for number in (1, 2):
            name = f"LayerNorm_{number - 1}" if layout == "npz" else f"norm{number}"
            found.append(Entry(f"{block}{name}{slash}{norm}", f"{ours}norm{number}.weight"))
            found.append(Entry(f"{block}{name}{slash}bias", f"{ours}norm{number}.bias"))
        for mixing in ("token", "channel"):
            mlp = f"{block}{mixing}_mixing/" if layout == "npz" else f"{block}mlp_{mixing}s."
            for number in (1, 2):
                dense = f"Dense_{number - 1}" if layout == "npz" else f"fc{number}"
                flip = (layout == "timm") != (mixing == "token" and number == 2)
                own = f"{ours}{mixing}_mixing."
                found.append(Entry(f"{mlp}{dense}{slash}{weight}", f"{own}w{number}", flip))
                found.append(Entry(f"{mlp}{dense}{slash}bias", f"{own}b{number}"))
    found.append(Entry(f"{last}{slash}{norm}", "norm.weight"))
    found.append(Entry(f"{last}{slash}bias", "norm.bias"))
    found.append(Entry(f"head{slash}{weight}", "head.weight", flip=layout == "timm"))
    return [*found, Entry(f"head{slash}bias", "head.bias")]


def to_ours(entry: Entry, array: np.ndarray, layout: str) -> np.ndarray:
    """A weight of theirs in our layout. A stem keeps its axes, of which there should be four,
    (P, P, in, C), for now."""
    if entry.stem:
        return array.transpose(2, 3, 1, 0) if layout == "timm" and array.ndim == 4 else array
    return array.T if entry.flip else array


def to_theirs(entry: Entry, array: np.ndarray, layout: str, patch: int) -> np.ndarray:
    """And back, contiguous."""
    if entry.stem:
        array = array.reshape(patch, patch, -1, array.shape[-1])
        array = array.transpose(3, 2, 0, 1) if layout == "timm" else array
    return np.ascontiguousarray(array.T if entry.flip else array)


def current_names(arrays: dict[str, np.ndarray]) -> tuple[str, dict[str, np.ndarray]]:
    """("npz" or "timm", the arrays under the names of `entries`). ValueError if it is neither."""
    stripped = {}
    for name, array in arrays.items():
        while prefix := next((p for p in PREFIXES if name.startswith(p)), None):
            name = name[len(prefix) :]
        if name in stripped:
            raise ValueError(f"{name:.80} comes with and without a prefix")
        stripped[name] = array
    if "stem.proj.weight" in stripped:
        return "timm", stripped
    if any(name.startswith("Mixer/") for name in arrays):
        arrays = _from_the_older_layout(arrays)
    if "stem/kernel" in arrays:
        return "npz", arrays
    shown = ", ".join(sorted(arrays)[:3]) or "nothing"
    raise ValueError(
        f"not a Mixer in the authors' layout (stem/kernel) nor timm's (stem.proj.weight): it holds "
        f"{shown:.200} and so on"
    )


def _from_the_older_layout(arrays: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Mixer/encoderblock_i/token_mixing_phase_0/kernel1 and so on, with axes of length 1, and
    LayerNorms that are numbered among all parts of a block."""
    renamed: dict[str, np.ndarray] = {}
    norms: dict[str, list[int]] = {}
    for name in arrays:
        if found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/scale", name):
            norms.setdefault(found[1], []).append(int(found[2]))
    for name, array in arrays.items():
        new = name.replace("embedding/", "stem/", 1) if name.startswith("embedding/") else name
        new = re.sub(r"^Mixer/encoder_norm/", "pre_head_layer_norm/", new)
        if found := re.fullmatch(
            r"Mixer/encoderblock_(\d+)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", name
        ):
            number = int(found[4]) - 1
            new = f"MixerBlock_{found[1]}/{found[2]}_mixing/Dense_{number}/{found[3]}"
            array = array.squeeze()
        elif found := re.fullmatch(r"Mixer/encoderblock_(\d+)/LayerNorm_(\d+)/(scale|bias)", name):
            order = sorted(norms.get(found[1], []))
            number = order.index(int(found[2])) if int(found[2]) in order else int(found[2])
            new = f"MixerBlock_{found[1]}/LayerNorm_{number}/{found[3]}"
        if new in renamed:
            raise ValueError(f"{name:.80} and another entry are both {new:.80}")
        renamed[new] = array
    return renamed
