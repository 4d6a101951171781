"""Which weights stay as they are: chosen by name.

>>> from minimixer import Mixer
>>> from minimixer.weights.freeze import freeze
>>> model = Mixer(image_size=4, patch_size=2, num_classes=2, num_blocks=2, hidden_dim=8,
...               tokens_mlp_dim=3, channels_mlp_dim=16)
>>> freeze(model, "stem.*", "blocks.*")
>>> [name for name, p in model.named_parameters() if p.requires_grad]
['norm.weight', 'norm.bias', 'head.weight', 'head.bias']

An optimizer that is made afterwards leaves them alone, and backward computes nothing for them.
"""

from fnmatch import fnmatchcase

from ..nn.layers import Module


def freeze(model: Module, *patterns: str) -> None:
    """Parameters whose names match a pattern (*, ?, [abc]) get no gradient from now on, all others
    do. ValueError, and nothing is changed, for a pattern that matches none."""
    parameters = dict(model.named_parameters())
    chosen: set[str] = set()
    for pattern in patterns:
        found = {name for name in parameters if fnmatchcase(name, pattern)}
        if not found:
            shown = ", ".join(list(parameters)[:3])
            raise ValueError(f"freeze: no parameter is called {pattern!r}; there are {shown} ...")
        chosen |= found
    for name, parameter in parameters.items():
        parameter.requires_grad = name not in chosen
