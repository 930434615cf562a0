"""Tools next to the scripts, each run as `python -m tools.NAME`."""
