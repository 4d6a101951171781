"""A training step recorded once on a GPU, and replayed: one launch instead of hundreds.

    recorded.py     when to record, and when to replay: `minimixer.record`
    recording.py    a list of requests to a GPU, and the memory that they use
    fingerprint.py  whether a model is still the same
    staging.py      batches to a GPU and results back, while both sides work on

Next: `recorded.py`.
"""
