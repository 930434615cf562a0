"""Dandap gives short answers to questions about Korean news.

From the ground up, its packages are data, runs, tree and base, and on these training and answering.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # the project's folder: recipes/ and data/ lie there
