"""Dandap gives short answers to questions about Korean news.

From the ground up, its packages are data, runs, tree and base, on these training and answering, and
on answering the page of app.py.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # the project's folder: recipes/ and data/ lie there
