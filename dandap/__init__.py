"""Fine-tune Korean LLMs to answer questions about articles in few words.

From the ground up: data; tree; runs and model; answering; training; page and export.
"""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # the project's folder, with recipes/ and data/
