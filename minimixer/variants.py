"""The sizes of a Mixer: the paper's seven variants, and which sizes fit together.

>>> variant("mixer_s32")["hidden_dim"]
512

Next: `images.py`, from images to tokens.
"""

from typing import Any

from .checks import check_number, check_sizes

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


def variant(name: str, **changes: Any) -> dict[str, Any]:
    """The arguments of Mixer for a variant of the paper. ValueError for an unknown name."""
    if name not in VARIANTS:
        raise ValueError(f"unknown variant {name!r}; there are {', '.join(VARIANTS)}")
    keys = ("num_blocks", "hidden_dim", "patch_size", "tokens_mlp_dim", "channels_mlp_dim")
    return {"image_size": 224, **dict(zip(keys, VARIANTS[name], strict=True)), **changes}


_CONFIG_KEYS = {
    "image_size", "patch_size", "in_channels", "num_classes", "num_blocks", "hidden_dim",
    "tokens_mlp_dim", "channels_mlp_dim", "stochastic_depth", "approximate",
}  # fmt: skip


def check_config(**config: Any) -> dict[str, Any]:
    """The architecture, checked and complete: what a checkpoint records. ValueError if wrong."""
    unknown = set(config) - _CONFIG_KEYS
    if unknown:
        raise TypeError(f"Mixer has no {', '.join(map(repr, sorted(unknown))):.80}")
    config = {"in_channels": 3, "num_classes": 1000, "stochastic_depth": 0.0,
              "approximate": "tanh", **config}  # fmt: skip
    missing = _CONFIG_KEYS - set(config)
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
    return config
