"""Training of the adapter: reading each article once, or TRL's plain way; checkpoints, and the best adapter kept.

Imports base, tree, runs and data; not answering, which stands beside it.
"""
