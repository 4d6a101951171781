"""A model like another: what changes a shape, or how blocks are skipped, makes a new one.

>>> from minimixer import Mixer
>>> from minimixer.weights.remake import remake
>>> model = Mixer(image_size=4, patch_size=2, num_classes=2, num_blocks=2, hidden_dim=8,
...               tokens_mlp_dim=3, channels_mlp_dim=16)
>>> remake(model, stochastic_depth=0.1, class_names=["cat", "dog"]).blocks[1].drop1.p
0.1

Next: `higher_resolution.py`.
"""

from typing import Any, Unpack

import numpy as np

from ..model.mixer import Mixer
from ..model.variants import Arguments


def remake(
    model: Mixer, weights: dict[str, np.ndarray] | None = None, **changes: Unpack[Arguments]
) -> Mixer:
    """A new Mixer of the same kind, device, precision, mode and seed, but for `changes`: arguments
    of Mixer. `weights` by name, or else the old ones, which must fit (ValueError)."""
    described: dict[str, Any] = {
        **model.config, "mean": model.mean, "std": model.std, "class_names": model.class_names,
        "dtype": str(model.dtype), "checkpoint_blocks": model.checkpoint_blocks,
    }  # fmt: skip
    if not {"image_size", "in_channels", "num_classes", "class_names"} & changes.keys():
        described["preparation"] = model.preparation  # else it is for other images
    described |= changes
    new = Mixer(**described, seed=None)
    new.load_state_dict(model.state_dict() if weights is None else weights)
    new.random.seed = model.random.seed
    new.to(model.device)
    if model.precision != "float32":
        new.set_precision(model.precision)
    new.train(model.training)
    return new
