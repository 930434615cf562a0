"""Render and tokenize prompts and answers, identically in training and answering.

Only the article of a long prompt is ever shortened.
"""

from __future__ import annotations

import json
import sys
from array import array
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from dandap.console import track
from dandap.data.chat_template import (
    PLAIN,
    Chat,
    Messages,
    Prompt,
    mark_control_tokens,
    without_spaces,
)
from dandap.data.korean import nearest_first, split_sentences
from dandap.data.rows import Row, by_article, template_fields
from dandap.errors import InputError
from prompts import Template, render

if TYPE_CHECKING:  # transformers takes seconds to load
    import pyarrow as pa
    from transformers import GenerationConfig, PreTrainedTokenizerBase

SAMPLE = Row("sample", "기사", "질문", ("답",))
CHECKED = 8  # prompts without an answer to check
LARGE = 5_000  # questions; fewer take seconds and are not cached
BATCH = 64  # articles per tokenizer call, which uses all cores

Encoded = tuple[array, array, str | None]  # prompt ids, answer ids, the article if shortened


@dataclass(frozen=True, slots=True)
class Example:
    """One question as the model reads it; `answer_ids` end with a stop token, or are empty."""

    row: Row
    prompt_ids: Sequence[int]  # arrays: 4 bytes per token instead of 36
    answer_ids: Sequence[int]
    trimmed: int = 0  # characters cut from the article
    # The article as encoded: shortened, or with the white space of another row of this article.
    context: str = ""


class Encoder:
    """Encodes rows with one tokenizer and one template.

    Special tokens come from the template only; in row text they are plain text. Chat prompts
    are rendered with the model's chat template, and an answer ends with its end-of-turn token. A
    plain prompt and its answer are tokenized separately, so that no token spans both.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, sample: Row = SAMPLE
    ):
        self.tokenizer, self.template, self.sample = tokenizer, template, sample
        if tokenizer.eos_token_id is None:
            raise InputError("the tokenizer has no eos_token. Set it in tokenizer_config.json.")
        parts = self.render(sample.context, sample, "")
        self.chat = None if "prompt" in parts else Chat(tokenizer, _messages(parts))
        self.control_ids = self.chat.control_ids if self.chat else mark_control_tokens(tokenizer)
        # A tokenizer that starts an empty text with BOS also starts prompts with it.
        bos = tokenizer.bos_token_id
        self.starts_with_bos = bos is not None and bos in tokenizer("").input_ids[:1]
        list(self._encode([[sample]], sys.maxsize, bool(sample.answers)))  # checks the answer

    def render(self, context: str, row: Row, answer: str) -> Template:
        """Return the template's parts, filled with a row's texts."""
        return render(self.template, template_fields(row, context, answer))

    def prompt_text(self, parts: Template) -> str:
        """Return the prompt text of a filled template."""
        return self.chat.render([_messages(parts)], True)[0] if self.chat else parts["prompt"]

    def encode_prompt(self, context: str, row: Row) -> list[int]:
        """Return the token ids of a prompt."""
        return self._prompts([(context, row)])[0].ids

    def encode_answer(
        self, context: str, row: Row, answer: str, prompt_ids: Sequence[int]
    ) -> list[int]:
        """Return the token ids of an answer after `prompt_ids`, with its stop token."""
        return self._answers([(context, row)], [answer], [Prompt("", list(prompt_ids))])[0]

    def stop_ids(self, generation_config: GenerationConfig | None = None) -> list[int]:
        """Return the stop token ids of the template, the tokenizer and the generation config."""
        item = (self.sample.context, self.sample)
        trained = self._answers([item], [self.sample.answers[0]], self._prompts([item]))[0][-1]
        configured = getattr(generation_config, "eos_token_id", None) or []
        configured = [configured] if isinstance(configured, int) else configured
        return sorted({trained, self.tokenizer.eos_token_id, *configured})

    def decode(self, answer_ids: Sequence[int]) -> str:
        """Return an answer's text, without control tokens and surrounding white space."""
        ids = [token for token in answer_ids if token not in self.control_ids]
        return str(self.tokenizer.decode(ids)).strip()

    def encode(
        self, rows: list[Row], prompt_limit: int, answers: bool, on_overflow: str = "trim"
    ) -> list[Example]:
        """Return examples in the rows' order, with prompts of at most `prompt_limit` tokens.

        `on_overflow` shortens articles: "trim" cuts the end, "select" keeps the sentences most
        similar to the questions, "error" raises InputError. All questions on an article get the
        same text. Large data is cached.
        """
        groups = by_article(row.article for row in rows)
        articles = [[rows[index] for index in group] for group in groups]
        cached = len(rows) >= LARGE and self.tokenizer.is_fast
        encode = self._load_encoded if cached else self._encode
        encoded = encode(articles, prompt_limit, answers, on_overflow)
        examples: list[Example] = [None] * len(rows)  # type: ignore[list-item]
        places = ((index, rows[group[0]].context) for group in groups for index in group)
        for (index, whole), (prompt_ids, answer_ids, short) in zip(places, encoded, strict=True):
            context = whole if short is None else short
            # Surrounding white space may differ between rows of one article.
            trimmed = len(whole.strip()) - len(context.strip())
            examples[index] = Example(rows[index], prompt_ids, answer_ids, trimmed, context)
        long = [example.row.id for example in examples if len(example.prompt_ids) > prompt_limit]
        if long:
            got = f"{len(long)} questions have prompts of more than {prompt_limit} tokens"
            hint = "Raise max_length, or cut articles with --on_overflow trim or select."
            raise InputError(f"{got}, first {long[0]}. {hint}")
        return examples

    def _encode(
        self, articles: list[list[Row]], prompt_limit: int, answers: bool, how: str = "trim"
    ) -> Iterator[Encoded]:
        """Yield the encoded questions by article; raise InputError if an answer changes."""
        for start in range(0, len(articles), BATCH):
            batch = articles[start : start + BATCH]
            items = [(rows[0].context, row) for rows in batch for row in rows]
            prompts = self._prompts(items)
            shortened: list[str | None] = [None] * len(items)
            end = 0
            for rows in batch if how != "error" else []:
                part = slice(end, end := end + len(rows))
                if max(len(prompt.ids) for prompt in prompts[part]) > prompt_limit:
                    context = self._shorten(rows, prompt_limit, how)
                    items[part] = [(context, row) for row in rows]
                    shortened[part] = [context] * len(rows)
                    prompts[part] = self._prompts(items[part])
            texts = [row.answers[0] if answers else "" for _, row in items]
            ids = self._answers(items, texts, prompts) if answers else [[]] * len(items)
            for i, (context, row) in enumerate(items):
                # Prompts without answers are spot-checked.
                if answers or (start == 0 and i < CHECKED):
                    self._check(context, row, texts[i], prompts[i], ids[i])
                yield array("i", prompts[i].ids), array("i", ids[i]), shortened[i]

    def _load_encoded(self, articles: list[list[Row]], *settings: Any) -> Iterator[Encoded]:
        import pyarrow as pa

        from dandap.data.cache import load_cached

        def parts() -> Iterator[str]:
            tokenizer = self.tokenizer
            yield tokenizer.backend_tokenizer.to_str()
            special = tokenizer.special_tokens_map
            yield json.dumps([tokenizer.chat_template, special, self.template, settings])
            for rows in articles:
                texts = [[r.question, r.answers[:1], r.choices, dict(r.fields)] for r in rows]
                yield json.dumps([rows[0].context, texts])

        ids, text = pa.list_(pa.int32()), pa.string()
        schema = pa.schema({"prompt_ids": ids, "answer_ids": ids, "shortened": text})

        def build() -> Iterator[pa.RecordBatch]:
            encoded = self._encode(articles, *settings)
            encoded = track(encoded, "encoding", "questions", sum(map(len, articles)))
            while batch := list(islice(encoded, 1000)):
                prompts, answers, shortened = zip(*batch, strict=True)
                arrays = [pa.array(map(np.asarray, column), ids) for column in (prompts, answers)]
                yield pa.record_batch([*arrays, pa.array(shortened, text)], schema=schema)

        for batch in load_cached(parts(), schema, build):
            prompts, answers = (batch[i].to_numpy(zero_copy_only=False) for i in range(2))
            for prompt, answer, short in zip(prompts, answers, batch[2].to_pylist(), strict=True):
                yield array("i", prompt.tobytes()), array("i", answer.tobytes()), short

    def _prompts(self, items: list[tuple[str, Row]]) -> list[Prompt]:
        parts = [self.render(context, row, "") for context, row in items]
        if self.chat:
            return self.chat.encode(list(map(_messages, parts)))
        texts = [each["prompt"] for each in parts]
        bos = [self.tokenizer.bos_token_id] if self.starts_with_bos else []
        ids = self._plain_ids(texts)
        return [Prompt(text, bos + each) for text, each in zip(texts, ids, strict=True)]

    def _answers(
        self, items: list[tuple[str, Row]], answers: list[str], prompts: list[Prompt]
    ) -> list[list[int]]:
        parts = [self.render(*item, answer) for item, answer in zip(items, answers, strict=True)]
        texts = [each.get("answer", answer) for each, answer in zip(parts, answers, strict=True)]
        eos_id = self.tokenizer.eos_token_id
        if self.chat is None:
            return [[*ids, eos_id] for ids in self._plain_ids(texts)]
        conversations = [_messages(each, text) for each, text in zip(parts, texts, strict=True)]
        found = []
        for prompt, whole, text in zip(
            prompts, self.chat.encode(conversations, prompts), texts, strict=True
        ):
            count = len(prompt.ids)
            tail = whole.ids[count:]
            stop = next((i for i, token in enumerate(tail) if token in self.control_ids), None)
            if stop is not None and whole.ids[:count] == prompt.ids:
                found.append(tail[: stop + 1])
                continue
            # The generation prompt has more than the rendered turn (a thinking block), or turns
            # have no end token. SentencePiece adds a leading space, but not after a line break.
            newline, after, alone = self._plain_ids(["\n", "\n" + text, text])
            ids = after[len(newline) :] if after[: len(newline)] == newline else alone
            found.append([*ids, eos_id if self.chat.stop_id is None else self.chat.stop_id])
        return found

    def _check(self, context: str, row: Row, answer: str, prompt: Prompt, ids: list[int]) -> None:
        parts = self.render(context, row, answer)
        answer = parts.get("answer", answer)
        if self.chat:
            self.chat.check(prompt.text, _messages(parts), row.id)
        if not ids:
            return
        trained = self.decode(ids[:-1])
        # Compare after a round trip: the vocabulary may lack characters.
        spelled = self.decode(self._plain_ids([answer])[0]) if trained != answer else answer
        is_same = without_spaces(trained) in (without_spaces(answer), without_spaces(spelled))
        if not is_same or not self.control_ids.isdisjoint(ids[:-1]):
            tokens = self.tokenizer.convert_ids_to_tokens(ids)
            raise InputError(
                f"question {row.id}: the answer is {answer!r}, but with this tokenizer and "
                f"template {trained!r} would be trained ({tokens}). {PLAIN}"
            )

    def _plain_ids(self, texts: list[str]) -> list[list[int]]:
        return self.tokenizer(texts, add_special_tokens=False, split_special_tokens=True).input_ids

    def _shorten(self, rows: list[Row], prompt_limit: int, how: str) -> str:
        """Return the longest version of the article with which all prompts fit."""

        def longest(shortened: Callable[[int], str], high: int) -> str:
            def fits(size: int) -> bool:
                prompts = self._prompts([(shortened(size), row) for row in rows])
                return max(len(prompt.ids) for prompt in prompts) <= prompt_limit

            if not fits(0):
                name = max(rows, key=lambda row: len(row.question)).id
                got = f"its prompt takes more than {prompt_limit} tokens even without the article"
                hint = "Raise max_length or lower max_new_tokens."
                raise InputError(f"question {name}: {got}. {hint}")
            low = 0  # fits(low), not fits(high)
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if fits(middle) else (low, middle)
            return shortened(low)

        text = rows[0].context
        if how == "select":
            sentences = split_sentences(text)
            order = nearest_first(sentences, [row.question for row in rows])

            def nearest(count: int) -> str:
                return "".join(sentences[i] for i in sorted(order[:count])).strip()

            if selected := longest(nearest, len(sentences)):
                return selected
            text = sentences[order[0]]  # even one sentence is too long
        return longest(lambda characters: text[:characters].rstrip(), len(text))


def _messages(parts: Template, answer: str | None = None) -> Messages:
    turns = [{"role": role, "content": parts[role]} for role in ("system", "user") if role in parts]
    return turns if answer is None else [*turns, {"role": "assistant", "content": answer}]
