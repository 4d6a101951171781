"""What the paper compares Mixer with, from the same engine.

models.py has ViT, ResNet and the two combined, layers.py the layers that they are made of, and
operations.py the Functions that Mixer does without.
"""

from .models import Hybrid as Hybrid
from .models import ResNet as ResNet
from .models import ViT as ViT
