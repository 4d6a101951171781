"""Fast forms for NumPy: in blocks that fit a cache, on all cores. Start with `blocks.py`."""
