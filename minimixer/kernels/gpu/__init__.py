"""Fast forms for CuPy: kernels of our own in the .cu files, and cuBLAS. Start with `cuda.py`."""
