"""Sentence embeddings, by sentence-transformers, which is an extra: pip install -r requirements-extra.txt."""

from collections.abc import Sequence
from functools import cache, lru_cache

from dandap.errors import InputError, first_line

MISSING = "sentence-transformers is not installed: pip install -r requirements-extra.txt"


def load_encoder(model: str):
    """The embedding model; InputError if it, or the library, is not there."""
    loaded = _load_once(model)
    if isinstance(loaded, InputError):
        raise loaded
    return loaded


@cache
def _load_once(model: str):
    """The model, or why it cannot be had: a hub that is out of reach is tried for half a minute, once."""
    try:
        from sentence_transformers import SentenceTransformer
    except ModuleNotFoundError as error:
        if error.name != "sentence_transformers":
            raise
        return InputError(MISSING)
    try:
        return SentenceTransformer(model)
    except (OSError, ValueError) as error:
        return InputError(f"the embedding model {model!r} cannot be loaded ({first_line(error)}); name a folder or a hub id.")


def embed(texts: Sequence[str], model: str) -> list[list[float]]:
    """A vector for each text, as the model gives it."""
    return _embed(tuple(texts), model)


@lru_cache(maxsize=2)  # a test file's answers are scored and submitted
def _embed(texts: tuple[str, ...], model: str) -> list[list[float]]:
    return load_encoder(model).encode(list(texts), convert_to_numpy=True, show_progress_bar=False).tolist()


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two vectors; 0 if either is zero."""
    lengths = (sum(x * x for x in one) * sum(y * y for y in other)) ** 0.5
    return sum(x * y for x, y in zip(one, other, strict=True)) / lengths if lengths else 0.0
