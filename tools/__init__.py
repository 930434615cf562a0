"""Hold the tools beside the three scripts: explore, compare, refine, augment, make_demo.

Each runs as `python -m tools.NAME` or by its path. They import tasks and dandap, and nothing
imports them but benchmarks and tests.
"""
