"""Dandap: short answers about Korean news. The packages, from the ground up: data, runs, tree, base; training and answering."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # of the project: recipes/ and data/ lie there
