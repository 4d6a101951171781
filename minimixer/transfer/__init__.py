"""From outside weights and pictures to a fine-tuned model. The tutorial ends before this; the core
comes here only for `Mixer.from_pretrained`, `export` and `resize`.

    arrays.py             arrays by name from files that somebody else made
    layouts.py            what others call a Mixer's weights
    pretrained.py         models from such files, and such files from models
    remake.py             a model like another
    higher_resolution.py  a model for larger images
    freeze.py             which weights stay as they are
    probe.py              a linear classifier on frozen features, in closed form
    folders.py            labelled pictures on disk: finding and decoding them
    tiff.py               what a TIFF claims, before anybody believes it
    digits.py             a digit of one's own as MNIST has it
    augment.py            crops, flips, RandAugment, mixup: pictures changed at random
    loader.py             batches of pictures, decoded by several processes

timm's weights need safetensors (pip install -e '.[weights]'), pictures Pillow ('.[images]').
"""

from .. import on_demand

__getattr__, __dir__ = on_demand(__name__)
