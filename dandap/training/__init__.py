"""Training of the adapter: reading each article once, or TRL's plain way; checkpoints; the best.

This package imports base, tree, runs and data; not answering, which stands beside it.
"""
