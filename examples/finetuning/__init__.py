"""Parts of finetune.py: what it starts from, and --probe ridge."""
