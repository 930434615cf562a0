"""Tools next to the scripts: explore, compare, submit, refine, augment.

Each runs as `python -m tools.NAME` or by its path. Only benchmarks and tests import them.
"""
