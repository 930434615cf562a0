"""Decoding settings, answers, and their records."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import metrics
from dandap.data.encode import Example
from tasks.task import Task


@dataclass(frozen=True)
class Decoding:
    """Decoding settings; temperature 0 is greedy, beams require `generate`."""

    stop_ids: list[int]
    pad_id: int
    max_new_tokens: int
    min_new_tokens: int = 0
    samples: int = 1
    temperature: float = 0.0
    seed: int = 42
    beams: int = 1
    repetition_penalty: float = 1.0  # 1: none


@dataclass
class Answer:
    """An answer. Decoders set the first three fields, `Answerer` the text and span."""

    token_ids: list[int] = field(default_factory=list)  # without padding, with the stop token
    stopped: bool = False  # False: cut at max_new_tokens
    log_probability: float = 0.0  # mean per token, at temperature 1
    text: str = ""
    span: tuple[int, int] | None = None  # characters of the text's first occurrence in the article
    choices: dict[str, float] | None = None  # log-probability of each choice

    @property
    def content_ids(self) -> list[int]:
        """Return the token ids without the stop token."""
        return self.token_ids[:-1] if self.stopped else self.token_ids


def find_span(text: str, context: str) -> tuple[int, int] | None:
    """Return [start, end) of the text's first occurrence in the article, or None."""
    start = context.find(text) if text else -1
    return None if start < 0 else (start, start + len(text))


def make_record(task: Task, example: Example, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return a question's record for predictions.jsonl.

    Of several samples, `metrics.consensus` selects the prediction; "samples" lists all texts.
    """
    texts = [answer.text for answer in answers]
    answer, row = answers[metrics.consensus(texts)], example.row
    record: dict[str, Any] = {
        "id": row.id,
        "question": row.question,
        "prediction": answer.text,
        "gold": list(row.answers),
        "char_f1": metrics.char_f1(answer.text, row.answers) if row.answers else None,
        "exact_match": metrics.exact_match(answer.text, row.answers) if row.answers else None,
        "log_probability": round(answer.log_probability, 4),
        "span": answer.span and list(answer.span),
        "token_ids": answer.token_ids,
        "ended": "stopped" if answer.stopped else "cut",
        "trimmed_characters": example.trimmed,
        "article": row.article,
        "kind": task.kind(row),
    }
    if answer.choices:
        record["choices"] = answer.choices
    if len(texts) > 1:
        record["samples"] = texts
    return record
