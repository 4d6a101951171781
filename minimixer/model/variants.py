"""The sizes of a Mixer: the paper's seven variants, which sizes fit together, and of which shapes
they make the weights.

>>> from minimixer.model.variants import variant
>>> variant("mixer_s32")["hidden_dim"]
512
"""

from collections.abc import Callable, Iterator
from typing import Any, TypedDict, Unpack

from ..engine.checks import check_number, check_sizes
from ..nn.layers import LayerNorm, Module

# Table 1 of the paper: N, C, P, D_S, D_C for 224 x 224 images.
VARIANTS = {
    "mixer_s32": (8, 512, 32, 256, 2048),
    "mixer_s16": (8, 512, 16, 256, 2048),
    "mixer_b32": (12, 768, 32, 384, 3072),
    "mixer_b16": (12, 768, 16, 384, 3072),
    "mixer_l32": (24, 1024, 32, 512, 4096),
    "mixer_l16": (24, 1024, 16, 512, 4096),
    "mixer_h14": (32, 1280, 14, 640, 5120),
}


class Sizes(TypedDict, total=False):
    """The arguments of Mixer that say what it computes: what a checkpoint records."""

    image_size: int | tuple[int, int]
    patch_size: int
    num_blocks: int
    hidden_dim: int
    tokens_mlp_dim: int
    channels_mlp_dim: int
    in_channels: int
    num_classes: int
    stochastic_depth: float
    approximate: str
    norm: Callable[[int], Module]


class Arguments(Sizes, total=False):
    """All arguments of Mixer, for whoever hands some of them on."""

    mean: Any
    std: Any
    class_names: Any
    seed: int | None
    dtype: str
    precision: str
    checkpoint_blocks: bool
    preparation: str | None


class Changes(TypedDict, total=False):
    """Those that say what a file of weights does not say, or another thing than it."""

    num_classes: int | None
    in_channels: int | None
    approximate: str | None
    mean: Any
    std: Any
    image_size: Any
    class_names: Any
    preparation: str | None
    norm: Callable[[int], Module]


def variant(name: str, **changes: Unpack[Arguments]) -> dict[str, Any]:
    """The arguments of Mixer for a variant of the paper. ValueError for an unknown name."""
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; there are {', '.join(VARIANTS)}")
    keys = ("num_blocks", "hidden_dim", "patch_size", "tokens_mlp_dim", "channels_mlp_dim")
    return {"image_size": 224, **dict(zip(keys, VARIANTS[name], strict=True)), **changes}


def check_config(**config: Any) -> dict[str, Any]:
    """The architecture, checked and complete: what a checkpoint records. ValueError if wrong.
    "norm" is in it if it is another than LayerNorm."""
    unknown = set(config) - set(Sizes.__annotations__)
    if unknown:
        raise TypeError(f"Mixer has no {', '.join(map(repr, sorted(unknown))):.80}")
    config = {"in_channels": 3, "num_classes": 1000, "stochastic_depth": 0.0,
              "approximate": "tanh", "norm": LayerNorm, **config}  # fmt: skip
    missing = set(Sizes.__annotations__) - set(config)
    if missing:
        raise TypeError(f"Mixer needs {', '.join(sorted(missing))}")
    size = config["image_size"]
    height, width = size if isinstance(size, (tuple, list)) and len(size) == 2 else (size, size)
    sizes = ("patch_size", "in_channels", "num_blocks", "hidden_dim", "tokens_mlp_dim",
             "channels_mlp_dim", "num_classes")  # fmt: skip
    check_sizes(image_height=height, image_width=width, **{key: config[key] for key in sizes[:-1]})
    if config["num_classes"] != 0 or isinstance(config["num_classes"], bool):  # 0: no head
        check_sizes(num_classes=config["num_classes"])
    config |= {key: int(config[key]) for key in sizes}  # from NumPy's integers, which JSON refuses
    config["image_size"] = (int(height), int(width))
    patch = config["patch_size"]
    if height % patch or width % patch:
        raise ValueError(f"a {height} x {width} image can't be cut into {patch} x {patch} patches")
    if config["approximate"] not in ("tanh", "none"):
        raise ValueError(f"approximate must be 'tanh' or 'none', got {config['approximate']!r}")
    config["stochastic_depth"] = check_number("stochastic_depth", config["stochastic_depth"], 0, 1)
    norm = config["norm"]
    if isinstance(norm, str):
        raise TypeError(f"norm {norm!r:.60} is only a name: give the class itself, norm=...")
    if not (isinstance(norm, type) and issubclass(norm, Module)):
        raise TypeError(
            f"norm must be a class of Modules, made as norm(channels), got {norm!r:.60}"
        )
    if norm is LayerNorm:
        del config["norm"]
    return config


def check_names(class_names: Any, num_classes: int) -> list[str] | None:
    """The names of the classes, a list (else TypeError), one for each (else ValueError)."""
    if class_names is None:
        return None
    if isinstance(class_names, str) or not hasattr(class_names, "__iter__"):
        raise TypeError(f"class_names must be a list of names, got {class_names!r:.40}")
    names = [str(name) for name in class_names]
    if len(names) != num_classes:
        raise ValueError(f"{len(names)} class names for {num_classes} classes")
    return names


def check_preparation(preparation: Any, size: tuple[int, int, int]) -> str | None:
    """ValueError unless it is None, or "digit" for a model of MNIST's images."""
    if preparation not in (None, "digit"):
        raise ValueError(f"preparation must be None or 'digit', got {preparation!r:.40}")
    if preparation and size != (28, 28, 1):
        raise ValueError("preparation 'digit' is for images of 28 x 28 with 1 channel")
    return preparation


def expected_shapes(config: dict[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """(name, shape) of every weight, one after the other. The norms come last: by the time one is
    made, to see what it has, whoever compares with a file's weights knows that C is no mere claim.
    """
    config = check_config(**config)
    (height, width), patch, c = config["image_size"], config["patch_size"], config["hidden_dim"]
    s, d_s = (height // patch) * (width // patch), config["tokens_mlp_dim"]
    d_c, k = config["channels_mlp_dim"], config["num_classes"]
    yield from {
        "stem.weight": (patch * patch * config["in_channels"], c),
        "stem.bias": (c,),
    }.items()
    if k:
        yield from {"head.weight": (c, k), "head.bias": (k,)}.items()
    block = {"token_mixing.w1": (s, d_s), "token_mixing.b1": (d_s,),
             "token_mixing.w2": (s, d_s), "token_mixing.b2": (s,),
             "channel_mixing.w1": (c, d_c), "channel_mixing.b1": (d_c,),
             "channel_mixing.w2": (d_c, c), "channel_mixing.b2": (c,)}  # fmt: skip
    for i in range(config["num_blocks"]):
        yield from ((f"blocks.{i}.{name}", shape) for name, shape in block.items())
    norm = {name: w.shape for name, w in config.get("norm", LayerNorm)(c).state_dict().items()}
    places = (f"blocks.{i}.norm{n}" for i in range(config["num_blocks"]) for n in (1, 2))
    for place in (*places, "norm"):
        yield from ((f"{place}.{name}", shape) for name, shape in norm.items())
