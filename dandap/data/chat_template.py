"""Check a model's chat template, and extend it so that the prompt ends where the answer starts.

    ...article, question <end> <assistant> <channel> 답 <end> newline
    |---- generation prompt ----------------|           only where the template has one
    |---- prompt, in training and in inference --------| |--- answer and its stop token: trained

Text between the generation prompt and the answer (a header, a channel, an empty thinking block)
belongs to the prompt. It is appended to the tokenizer's template, which is saved with the adapter.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from dandap.errors import InputError, first_line

if TYPE_CHECKING:  # transformers takes seconds to load
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
PROBE = {"role": "assistant", "content": "단답의 자리 0729"}  # no template contains this answer
SECONDS = 20  # time limit to render a sample; real templates take milliseconds
# Replaces today's date in templates: a prompt must not depend on the day.
DAY = datetime(2024, 7, 26)
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# <|im_end|>, </think>, [INST], but not words that are added tokens.
MARKER = re.compile(r"[<>|#\uff5c]|^\[[\x21-\x7e]+\]$")
PLAIN = "Choose a plain template (--template, one with a 'prompt'), or another base."


class Prompt(NamedTuple):
    """A prompt's text and its token ids."""

    text: str
    ids: list[int]


class Chat:
    """Renders and tokenizes chat turns; row text never becomes a control token.

    `control_ids` are the ids of control tokens; `stop_id` is the end-of-turn token, or None.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages):
        """Check and extend the tokenizer's template with sample turns."""
        self.tokenizer = tokenizer
        if isinstance(tokenizer.chat_template, dict):  # several by name: "default", "tool_use"
            tokenizer.chat_template = tokenizer.chat_template.get("default")
        if not tokenizer.chat_template:
            raise InputError(f"the model's tokenizer has no chat template. {PLAIN}")
        self.control_ids = mark_control_tokens(tokenizer)
        added = tokenizer.added_tokens_decoder
        spelled = [re.escape(added[i].content) for i in self.control_ids if i in added]
        # transformers marks control tokens with the last two characters.
        self.controls = re.compile("|".join([*spelled, "[\U000f0000\U000f0001]"]))
        self.blocks = False  # whether the template reads content as a list of blocks
        tokenizer.chat_template = fix_date(tokenizer.chat_template)
        self._limit_time(messages)
        self._fit(messages)

    def render(self, conversations: list, is_prompt: bool = False, tokenize: bool = False) -> Any:
        """Return the text or token ids of conversations, or of their prompts."""
        if self.blocks:
            conversations = [
                [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
                for turns in conversations
            ]
        try:
            return self.tokenizer.apply_chat_template(
                conversations,
                add_generation_prompt=is_prompt,
                tokenize=tokenize,
                # Control tokens in row text are plain text; needs `tokenize`.
                sanitize_control_tokens=tokenize,
                return_dict=False,
                enable_thinking=False,  # for Qwen 3; other templates ignore it
            )
        except Exception as error:  # a template may raise anything
            system = any(turn["role"] == "system" for turn in conversations[0])
            hint = "Choose a template without a system turn (Gemma has none), or another base."
            message = f"the model's chat template fails ({first_line(error)}). "
            raise InputError(message + (hint if system else PLAIN)) from error

    def encode(
        self, conversations: list[Messages], prompts: list[Prompt] | None = None
    ) -> list[Prompt]:
        """Return the prompt of each conversation, or the whole conversation if `prompts` are given.

        The tokenizer is called once. For a whole conversation it tokenizes only the text after the
        prompt's last control token, because tokens do not merge across it.
        """
        is_prompt = prompts is None
        texts = self.render(conversations, is_prompt)
        known: list[list[int]] = [[]] * len(texts)
        rest = list(texts)
        for i, prompt in enumerate(prompts or []):
            positions = range(len(prompt.ids) - 1, 0, -1)
            last = next((n for n in positions if prompt.ids[n] in self.control_ids), 0)
            token = str(self.tokenizer.convert_ids_to_tokens(prompt.ids[last]))
            start = prompt.text.rfind(token)
            if last and start > 0 and texts[i].startswith(prompt.text):
                known[i], rest[i] = prompt.ids[: last + 1], texts[i][start:]
        found = self.tokenizer(rest, add_special_tokens=False).input_ids
        for i, messages in enumerate(conversations):
            # The rest may start with a merged token.
            merged = known[i] and found[i][:1] != known[i][-1:]
            if merged or any(self.controls.search(turn["content"]) for turn in messages):
                found[i] = self.render([messages], is_prompt, tokenize=True)[0]
            elif known[i]:
                found[i] = [*known[i][:-1], *found[i]]
        return list(map(Prompt, texts, found))

    def check(self, text: str, messages: Messages, name: str) -> None:
        """Raise InputError if a turn is missing from the rendered text."""
        for message in messages:
            if without_spaces(message["content"]) not in without_spaces(text):
                turn = f"{message['role']} turn of question {name}"
                raise InputError(f"the model's chat template drops the {turn}. {PLAIN}")

    def _fit(self, messages: Messages) -> None:
        """Choose text or blocks as content, and extend the generation prompt to the answer."""
        [prompt] = self.render([messages], True)
        try:
            self.check(prompt, messages, "sample")
        except InputError as error:
            self.blocks = True
            try:
                [prompt] = self.render([messages], True)
                self.check(prompt, messages, "sample")
            except InputError:
                raise error from None
        [whole] = self.render([[*messages, PROBE]])
        before, found, after = whole.partition(PROBE["content"])
        opening = before.removeprefix(prompt)
        if found and opening and before.startswith(prompt):
            # Jinja drops the last line end of a template.
            template = self.tokenizer.chat_template.removesuffix("\n").removesuffix("\r")
            literal = json.dumps(opening, ensure_ascii=False)  # also a Jinja string
            template += "{{ " + literal + " if add_generation_prompt else '' }}"
            self.tokenizer.chat_template = template
            [prompt] = self.render([messages], True)
        # Close a thinking block that the generation prompt opens.
        if tag := re.search(r"<(\w*think\w*|reasoning)>\s*$", prompt):
            self.tokenizer.chat_template += (
                "{{ '\\n</" + tag[1] + ">\\n\\n' if add_generation_prompt else '' }}"
            )
            [prompt] = self.render([messages], True)
        if not found or PROBE["content"] in after or not prompt.startswith(before):
            got = f"{prompt[-80:]!r} and {whole[-200:]!r}"
            wanted = "does not have the answer exactly once after its prompt"
            raise InputError(f"the model's chat template {wanted} (got {got}). {PLAIN}")
        ids = self.tokenizer(after, add_special_tokens=False).input_ids
        self.stop_id = next((token for token in ids if token in self.control_ids), None)

    def _limit_time(self, messages: Messages) -> None:
        if sys.platform != "linux":  # elsewhere processes cannot be forked safely
            return

        def attempt() -> None:  # without the tokenizer, whose threads do not survive a fork
            with suppress(InputError):  # the parent raises it as well
                self.render([messages], True)
                self.render([[*messages, PROBE]])

        child = multiprocessing.get_context("fork").Process(target=attempt, daemon=True)
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            took = f"took more than {SECONDS} seconds to render a prompt"
            raise InputError(f"the model's chat template {took}. {PLAIN}")


def without_spaces(text: str) -> str:
    """Return a text without white space."""
    return "".join(text.split())


def mark_control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of control tokens, and make transformers escape them in row text.

    Control tokens are the special tokens, and added tokens in the chat template that look like a
    marker. Other added tokens are words.
    """
    added = tokenizer.added_tokens_decoder
    template = tokenizer.chat_template or ""
    special, markers = set(tokenizer.all_special_ids), {}
    for token_id, token in added.items():
        if token.special:
            special.add(token_id)
        elif token.content in template and MARKER.search(token.content.strip()):
            markers[token_id] = token.content
    tokenizer.chat_control_tokens = sorted(markers.values())
    return special | markers.keys()


def fix_date(chat_template: str) -> str:
    """Return the template with DAY instead of today's date."""
    if "macro strftime_now" in chat_template:  # fixed and saved by an earlier version
        return chat_template
    fixed = DATE_CALL.sub(lambda call: json.dumps(DAY.strftime(call[2])), chat_template)
    if unknown := re.search(r"strftime_now\s*\([^)]*\)?", fixed):
        got = f"gets the date with {unknown[0]!r}; expected a literal format such as '%Y-%m-%d'"
        raise InputError(f"the model's chat template {got}. {PLAIN}")
    return fixed
