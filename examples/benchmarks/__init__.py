"""Parts of benchmark.py: other packages' Mixers, several processes, where the time goes."""
