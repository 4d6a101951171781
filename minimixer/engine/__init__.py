"""Reverse-mode differentiation of programs on arrays: Tensor, its operations, their gradients.

The room imports no other. Start with `autograd.py`.
"""
