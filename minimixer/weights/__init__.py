"""Other people's weights: reading them, remaking a model for another task, freezing, probing.

    arrays.py             arrays by name from files that somebody else made
    layouts.py            what others call a Mixer's weights
    pretrained.py         models from such files, and such files from models
    remake.py             a model like another
    higher_resolution.py  a model for larger images
    freeze.py             which weights stay as they are
    probe.py              a linear classifier on frozen features, in closed form

timm's weights need safetensors: pip install safetensors.
"""

from .. import on_demand

__getattr__, __dir__ = on_demand(__name__)
