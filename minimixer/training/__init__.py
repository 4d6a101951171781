"""Training: how weights change, what they learn from, how a run is saved.

Start with `schedules.py`.
"""
