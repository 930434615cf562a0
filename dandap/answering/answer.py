"""An answer, its record, and how answers are decoded."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import metrics
from dandap.data.encode import Example
from tasks.task import Task


@dataclass(frozen=True)
class Decoding:
    """How answers are decoded; temperature 0 is greedy, beams are for `generate` alone."""

    stop_ids: list[int]
    pad_id: int
    max_new_tokens: int
    min_new_tokens: int = 0  # an answer cannot stop before
    samples: int = 1
    temperature: float = 0.0
    seed: int = 42
    beams: int = 1
    repetition_penalty: float = 1.0  # 1: none


@dataclass
class Answer:
    """The model's answer to a question.

    A decoder fills the first three fields, `Answerer` the text and its span.
    """

    # Without padding; the stop token is included if there was one.
    token_ids: list[int] = field(default_factory=list)
    stopped: bool = False  # False: cut at max_new_tokens
    log_probability: float = 0.0  # of a token, on average; the model's own, at temperature 1
    text: str = ""
    # The text's first place in the article as the model read it, in characters.
    span: tuple[int, int] | None = None
    # The log-probability of every choice, where there were choices.
    choices: dict[str, float] | None = None

    @property
    def content_ids(self) -> list[int]:
        """Return the ids without the stop token."""
        return self.token_ids[:-1] if self.stopped else self.token_ids


def find_span(text: str, context: str) -> tuple[int, int] | None:
    """Return the text's first place in the article as [start, end) characters, or None."""
    start = context.find(text) if text else -1
    return None if start < 0 else (start, start + len(text))


def make_record(task: Task, example: Example, answers: Sequence[Answer]) -> dict[str, Any]:
    """Return the line of predictions.jsonl for a question's answer.

    Of several samples it is the one most like the others (`metrics.consensus`); all texts are
    listed under "samples".
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
