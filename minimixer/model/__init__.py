"""MLP-Mixer: from images to tokens, the block, the model. Start with `images.py`."""
