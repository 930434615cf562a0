"""Prompts and answers are rendered and encoded as token ids, in training and inference alike.

Where a prompt is too long the article is cut, and nothing else.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

from dandap.console import track
from dandap.data.chat_template import Chat, Prompt, mark_control_tokens
from dandap.data.in_processes import map_in_processes
from dandap.data.rows import Row, by_article, template_fields
from dandap.data.sentences import nearest_first, split_sentences
from dandap.errors import InputError
from prompts import Template, render

if TYPE_CHECKING:  # for annotations alone: transformers takes seconds to load
    from transformers import GenerationConfig, PreTrainedTokenizerBase

SAMPLE = Row("sample", "기사", "질문", ("답",))
CHECKED = 8  # of rows to answer, whose prompts are looked at
MANY = 1000  # articles, from which on processes are worth their start


@dataclass(frozen=True, slots=True)
class Example:
    """Holds one question as the model sees it.

    `answer_ids` end with a stop token; they are empty when there is no answer.
    """

    row: Row
    # An encoder makes arrays of 4 bytes a token, where a list's integers take 36.
    prompt_ids: Sequence[int]
    answer_ids: Sequence[int]
    trimmed: int = 0  # characters cut from the article
    # The article as the model reads it: the row's, or another row's that differs from it in the
    # white space around it.
    context: str = ""


class Encoded(NamedTuple):
    """Holds what a process returns of a question: not its row, whose copy would be the article's.

    `shortened` is the article as the model reads it, None where it is whole.
    """

    prompt_ids: array
    answer_ids: array
    trimmed: int
    shortened: str | None


class Encoder:
    """Encodes rows with one tokenizer and one template.

    The prompt owns its special tokens: text of a row that spells one stays text. A chat prompt is
    the model's chat template with the generation prompt; its answer is what the template puts
    after that, up to the turn's end token. A plain prompt and its answer are encoded apart (tokens
    would merge across the seam) and joined by id.
    """

    def __init__(
        self, tokenizer: PreTrainedTokenizerBase, template: Template, sample: Row = SAMPLE
    ):
        self.tokenizer, self.template, self.sample = tokenizer, template, sample
        if tokenizer.eos_token_id is None:
            raise InputError(
                "the tokenizer has no end-of-sequence token; set eos_token in its "
                "tokenizer_config.json."
            )
        parts = self.render(sample.context, sample, "")
        self.chat = None if "prompt" in parts else Chat(tokenizer, _messages(parts))
        self.control_ids = self.chat.control_ids if self.chat else mark_control_tokens(tokenizer)
        # A tokenizer that starts texts with BOS does so in prompts too; what it makes of an empty
        # text shows it.
        self.starts_with_bos = (
            tokenizer.bos_token_id is not None
            and tokenizer.bos_token_id in tokenizer("").input_ids[:1]
        )
        self._bos = [tokenizer.bos_token_id] if self.starts_with_bos else []
        prompt_ids = self.encode_prompt(sample.context, sample)
        for answer in sample.answers[:1]:
            self._check_answer(
                sample,
                sample.context,
                self.encode_answer(sample.context, sample, answer, prompt_ids),
            )

    def render(self, context: str, row: Row, answer: str) -> Template:
        """Return the template's parts, filled with a row's texts."""
        return render(self.template, template_fields(row, context, answer))

    def encode_prompt(self, context: str, row: Row) -> list[int]:
        """Return the ids of a prompt, up to where the answer starts."""
        parts = self.render(context, row, "")
        if "prompt" in parts:
            return self._bos + self._plain_ids(parts["prompt"])
        return self.chat.ids(_messages(parts), add_generation_prompt=True)

    def prompt_text(self, parts: dict[str, str]) -> str:
        """Return the text of a prompt, as `encode_prompt` encodes it, of a template's parts."""
        return parts["prompt"] if "prompt" in parts else self.chat.text(_messages(parts))

    def encode_answer(
        self, context: str, row: Row, answer: str, prompt_ids: Sequence[int]
    ) -> list[int]:
        """Return the ids that follow `prompt_ids`, the stop token last."""
        parts = self.render(context, row, answer)
        answer = parts.get("answer", answer)
        if self.chat is None:
            return [*self._plain_ids(answer), self.tokenizer.eos_token_id]
        return self._after(prompt_ids, self.chat.ids(_answered(parts, answer)), answer)

    def _after(self, prompt_ids: Sequence[int], ids: list[int], answer: str) -> list[int]:
        """Return what of a whole conversation's ids is the answer, up to its stop token."""
        tail = ids[len(prompt_ids) :]
        stop = next((i for i, token in enumerate(tail) if token in self.control_ids), None)
        if ids[: len(prompt_ids)] == list(prompt_ids) and stop is not None:
            return tail[: stop + 1]
        # The generation prompt holds more than a turn shows afterwards (a thinking block), or a
        # turn ends without a token.
        stop_id = self.tokenizer.eos_token_id if self.chat.stop_id is None else self.chat.stop_id
        return [*self._ids_within(answer), stop_id]

    def _encode_prompts(self, items: list[tuple[str, Row]]) -> list[Prompt]:
        """Return `encode_prompt` of each with its text, at one call of the tokenizer."""
        parts = [self.render(context, row, "") for context, row in items]
        if self.chat is None:
            texts = [each["prompt"] for each in parts]
            found = self._plain_ids(texts)
            return [Prompt(text, self._bos + ids) for text, ids in zip(texts, found, strict=True)]
        return self.chat.prompts([_messages(each) for each in parts])

    def _encode_answers(
        self, context: str, rows: list[Row], prompts: list[Prompt]
    ) -> list[list[int]]:
        """Return `encode_answer` of each row's first answer, at one call of the tokenizer."""
        answers, conversations = [], []
        for row in rows:
            parts = self.render(context, row, row.answers[0])
            answers.append(parts.get("answer", row.answers[0]))
            conversations.append(_answered(parts, answers[-1]))
        if self.chat is None:
            return [[*ids, self.tokenizer.eos_token_id] for ids in self._plain_ids(answers)]
        whole = self.chat.whole_ids(conversations, prompts)
        return [
            self._after(prompt.ids, ids, answer)
            for prompt, ids, answer in zip(prompts, whole, answers, strict=True)
        ]

    def stop_ids(self, generation_config: GenerationConfig | None = None) -> list[int]:
        """Return every id that ends an answer: the template's, the tokenizer's and the model's."""
        prompt_ids = self.encode_prompt(self.sample.context, self.sample)
        learned = self.encode_answer(
            self.sample.context, self.sample, self.sample.answers[0], prompt_ids
        )[-1]
        configured = getattr(generation_config, "eos_token_id", None) or []
        configured = [configured] if isinstance(configured, int) else configured
        return sorted({learned, self.tokenizer.eos_token_id, *configured})

    def decode(self, answer_ids: Sequence[int]) -> str:
        """Return an answer's text, without control tokens and surrounding white space."""
        return self.tokenizer.decode([i for i in answer_ids if i not in self.control_ids]).strip()

    def encode(
        self, rows: list[Row], prompt_limit: int, answers: bool, on_overflow: str
    ) -> list[Example]:
        """Return examples in the rows' order; those of large data are cached."""
        from dandap.data.encoded import encode_kept

        return encode_kept(self, rows, prompt_limit, answers, on_overflow)

    def encode_rows(
        self,
        rows: list[Row],
        prompt_limit: int,
        answers: bool,
        on_overflow: str = "trim",
    ) -> list[Example]:
        """Return examples in the rows' order, no prompt longer than `prompt_limit` tokens.

        An article too long for it loses its end (trim), or the sentences farthest from its
        questions (select), or is an InputError (error). All questions of an article get the same
        text, so that it can be read once for all of them.
        """
        shorten = {"trim": self._trim, "select": self._select, "error": None}[on_overflow]
        groups = by_article(row.article for row in rows)

        def encode(indices: list[int]) -> list[Encoded]:
            group = [rows[index] for index in indices]
            encoded = self._encode_article(group, prompt_limit, answers, shorten)
            for index, each in zip(indices, encoded, strict=True):
                self._check(_example(each, rows[index], group[0]), index)
            return encoded

        shared = track(
            map_in_processes(encode, groups, MANY), "encoding", "articles", total=len(groups)
        )
        examples: list[Example] = [None] * len(rows)  # none of them is None at the end
        for indices, encoded in zip(groups, shared, strict=True):
            for index, each in zip(indices, encoded, strict=True):
                examples[index] = _example(each, rows[index], rows[indices[0]])
        if shorten is None:
            _refuse_long(examples, prompt_limit)
        return examples

    def _encode_article(
        self,
        rows: list[Row],
        prompt_limit: int,
        answers: bool,
        shorten: Callable[[list[Row], int], str] | None,
    ) -> list[Encoded]:
        # Rows of one article may differ in the white space around it; the first one's is read, and
        # that white space does not count as trimmed.
        context = rows[0].context
        prompts = self._encode_prompts([(context, row) for row in rows])
        if shorten and max(len(prompt.ids) for prompt in prompts) > prompt_limit:
            context = shorten(rows, prompt_limit)
            prompts = self._encode_prompts([(context, row) for row in rows])
        trimmed = len(rows[0].context.strip()) - len(context.strip())
        shortened = None if context == rows[0].context else context
        said = self._encode_answers(context, rows, prompts) if answers else [[]] * len(rows)
        return [
            Encoded(array("i", prompt.ids), array("i", ids), trimmed, shortened)
            for prompt, ids in zip(prompts, said, strict=True)
        ]

    def _trim(self, rows: list[Row], prompt_limit: int) -> str:
        """Return the longest beginning of the article with which every question's prompt fits.

        The text is cut, and encoded again; ids are never cut.
        """
        context = rows[0].context

        def beginning(characters: int) -> str:
            return context[:characters].rstrip()

        return self._longest(rows, prompt_limit, len(context), beginning)

    def _select(self, rows: list[Row], prompt_limit: int) -> str:
        """Return as many sentences nearest to the questions as fit, in the article's order."""
        sentences = split_sentences(rows[0].context)
        order = nearest_first(sentences, [row.question for row in rows])

        def nearest(count: int) -> str:
            return "".join(sentences[i] for i in sorted(order[:count])).strip()

        selected = self._longest(rows, prompt_limit, len(order), nearest)
        # A nearest sentence that is too long by itself is trimmed, or nothing would be left.
        return selected or self._trim(
            [replace(row, context=sentences[order[0]]) for row in rows], prompt_limit
        )

    def _longest(
        self, rows: list[Row], prompt_limit: int, whole: int, shortened: Callable[[int], str]
    ) -> str:
        """Return `shortened(n)` for the largest n below `whole` with which every prompt fits.

        InputError names the longest question if even `shortened(0)` does not fit. The search
        halves what is left: an article of 2,000 characters is cut 11 times, not 2,000 times.
        """

        def fits(size: int) -> bool:
            return all(
                len(self.encode_prompt(shortened(size), row)) <= prompt_limit for row in rows
            )

        if not fits(0):
            longest = max(rows, key=lambda row: len(row.question))
            raise InputError(
                f"question {longest.id}: its prompt takes more than {prompt_limit} tokens even "
                "without the article. Raise max_length, lower max_new_tokens or shorten the "
                "template."
            )
        low, high = 0, whole  # fits(low) holds, fits(high) does not
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if fits(middle) else (low, middle)
        return shortened(low)

    def _plain_ids(self, text: str | list[str]) -> list:
        """Return the ids of a text, or of each of several."""
        return self.tokenizer(text, add_special_tokens=False, split_special_tokens=True).input_ids

    def _ids_within(self, text: str) -> list[int]:
        """Return the ids of a text that stands within another.

        It is encoded after a line break, which is taken off again, because SentencePiece puts a
        space at the start of what it is given.
        """
        newline, ids = self._plain_ids("\n"), self._plain_ids("\n" + text)
        return ids[len(newline) :] if ids[: len(newline)] == newline else self._plain_ids(text)

    def _check(self, example: Example, number: int) -> None:
        """Refuse an example whose answer is not what is taught, or whose prompt is not whole.

        This comes before anything is trained or answered. Of rows to answer only the first CHECKED
        prompts count: a later row that the template changes is still answered.
        """
        row, context = example.row, example.context
        if self.chat and (example.answer_ids or number < CHECKED):
            self.chat.check(_messages(self.render(context, row, "")), row.id)
        if example.answer_ids:
            self._check_answer(row, context, example.answer_ids)

    def _check_answer(self, row: Row, context: str, taught: Sequence[int]) -> None:
        """Refuse supervised ids that do not decode to the answer or hold a control token in it."""
        meant = self.render(context, row, row.answers[0]).get("answer", row.answers[0])
        said = self.decode(taught[:-1])
        # What a vocabulary cannot say is lost either way, so the answer by itself is decoded too.
        is_said = _bare(said) == _bare(meant) or _bare(said) == _bare(
            self.decode(self._plain_ids(meant))
        )
        if not is_said or any(token in self.control_ids for token in taught[:-1]):
            raise InputError(
                f"question {row.id}: the answer is {meant!r}, but with this tokenizer and template "
                f"{said!r} would be learned ({self.tokenizer.convert_ids_to_tokens(taught)}). "
                "Choose a plain template (--template, one with a 'prompt') or another base."
            )


def _example(encoded: Encoded, row: Row, first: Row) -> Example:
    """Return a row's example; `first` is the first row of its article, whose text is read."""
    context = first.context if encoded.shortened is None else encoded.shortened
    return Example(row, encoded.prompt_ids, encoded.answer_ids, encoded.trimmed, context)


def _bare(text: str) -> str:
    return "".join(text.split())


def _refuse_long(examples: list[Example], prompt_limit: int) -> None:
    long = [example.row.id for example in examples if len(example.prompt_ids) > prompt_limit]
    if long:
        raise InputError(
            f"{len(long)} questions have prompts of more than {prompt_limit} tokens (on_overflow "
            f"error), first {long[0]}. Raise max_length, or let articles be cut: --on_overflow "
            "trim or select."
        )


def _messages(parts: dict[str, str]) -> list[dict[str, str]]:
    return [{"role": role, "content": parts[role]} for role in ("system", "user") if role in parts]


def _answered(parts: dict[str, str], answer: str) -> list[dict[str, str]]:
    return [*_messages(parts), {"role": "assistant", "content": answer}]
