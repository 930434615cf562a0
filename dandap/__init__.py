"""Fine-tune Korean LLMs to answer questions about articles in few words."""

from pathlib import Path

ROOT = Path(__file__).parent.parent  # the project's folder, with recipes/ and data/
