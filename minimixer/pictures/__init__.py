"""Pictures of one's own: found on disk, decoded, changed at random, in batches.

    folders.py  labelled pictures on disk: finding and decoding them
    tiff.py     what a TIFF claims, before anybody believes it
    digits.py   a digit of one's own as MNIST has it
    augment.py  crops, flips, RandAugment, mixup: pictures changed at random
    loader.py   batches of pictures, decoded by several processes
    reading.py  pictures as a trained model wants to see them

They need Pillow: pip install pillow.
"""

from .. import on_demand

__getattr__, __dir__ = on_demand(__name__)
