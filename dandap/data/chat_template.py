"""Check a model's chat template, and mend it so that the generation prompt ends at the answer.

    ...article, question <end> <assistant> <channel> 답 <end> newline
    |---- generation prompt ----------------|           only where the template has one
    |---- prompt, in training and in inference --------| |--- answer and its stop token: trained

What is between the generation prompt and the answer (a header, a channel, an empty thinking block)
belongs to the prompt. It is appended to the tokenizer's template and saved with the adapter, so
everybody who loads the adapter sends the same prompt.
"""

from __future__ import annotations

import json
import multiprocessing
import re
import sys
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from dandap.errors import InputError, first_line

if TYPE_CHECKING:  # transformers takes seconds to load
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
PROBE = "단답의 자리 0729"  # an answer that no template contains
SECONDS = 20  # for a template to render a sample; real ones take milliseconds
# Templates that ask for today's date get this one: a prompt must not depend on the day.
DAY = datetime(2024, 7, 26)
DATE_CALL = re.compile(r"""strftime_now\(\s*(["'])(.*?)\1\s*\)""")
# <|im_end|>, </think>, [INST]; not a word that is an added token.
MARKER = re.compile(r"[<>|#\uff5c]|^\[[\x21-\x7e]+\]$")
PLAIN = "Choose a plain template (--template, one with a 'prompt'), or another base."


class Prompt(NamedTuple):
    """A prompt's text and its token ids."""

    text: str
    ids: Sequence[int]


class Chat:
    """Renders and tokenizes chat turns; text of rows never becomes a control token.

    `control_ids` are the ids of control tokens, `stop_id` is the one that ends a turn (None if a
    turn ends without a token of its own).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages):
        """Check and mend the tokenizer's template with a sample's turns."""
        self.tokenizer = tokenizer
        if isinstance(tokenizer.chat_template, dict):  # several by name: "default", "tool_use"
            tokenizer.chat_template = tokenizer.chat_template.get("default")
        if not tokenizer.chat_template:
            raise InputError(
                "the model's tokenizer has no chat template, and this template consists of chat "
                "turns. Choose a plain one (--template, one with a 'prompt')."
            )
        self.control_ids = mark_control_tokens(tokenizer)
        added = tokenizer.added_tokens_decoder
        spelled = [re.escape(added[i].content) for i in self.control_ids if i in added]
        # transformers marks control tokens of a text with the last two, and removes them from rows.
        self.controls = re.compile("|".join([*spelled, "[\U000f0000\U000f0001]"]))
        self.blocks = False  # whether the template reads content as a list of blocks
        tokenizer.chat_template = fix_date(tokenizer.chat_template)
        self._limit_time(messages)
        self._fit(messages)

    def ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        """Return the token ids of turns, or of a prompt up to where the answer starts."""
        return self._apply([messages], add_generation_prompt, tokenize=True)[0]

    def texts(
        self, conversations: list[Messages], add_generation_prompt: bool = False
    ) -> list[str]:
        """Return the text of each conversation."""
        return self._apply(conversations, add_generation_prompt, tokenize=False)

    def prompts(self, conversations: list[Messages]) -> list[Prompt]:
        """Return the prompt of each conversation, with the ids of `ids`, in one tokenizer call."""
        texts = self.texts(conversations, add_generation_prompt=True)
        found = self.tokenizer(texts, add_special_tokens=False).input_ids
        return [
            Prompt(text, self.ids(messages, True) if self._spells_control(messages) else ids)
            for messages, text, ids in zip(conversations, texts, found, strict=True)
        ]

    def whole_ids(self, conversations: list[Messages], prompts: list[Prompt]) -> list[list[int]]:
        """Return `ids` of each conversation, given its prompt, in one tokenizer call.

        Only what follows the prompt's last control token is tokenized, not the article again:
        nothing merges across such a token.
        """
        texts, ends, seams = self.texts(conversations), [], []
        for text, prompt in zip(texts, prompts, strict=True):
            places = range(len(prompt.ids) - 1, 0, -1)
            seam = next((at for at in places if prompt.ids[at] in self.control_ids), 0)
            start = prompt.text.rfind(str(self.tokenizer.convert_ids_to_tokens(prompt.ids[seam])))
            whole = seam == 0 or start <= 0 or not text.startswith(prompt.text)
            ends.append(text if whole else text[start:])
            seams.append(0 if whole else seam)
        found = self.tokenizer(ends, add_special_tokens=False).input_ids
        for i, (messages, prompt, seam) in enumerate(
            zip(conversations, prompts, seams, strict=True)
        ):
            # An end that starts with another token merged with what precedes it.
            if self._spells_control(messages) or found[i][:1] != prompt.ids[seam:][:1]:
                found[i] = self.ids(messages)
            elif seam:
                found[i] = [*prompt.ids[:seam], *found[i]]
        return found

    def _spells_control(self, messages: Messages) -> bool:
        return any(self.controls.search(message["content"]) for message in messages)

    def check(self, text: str, messages: Messages, name: str) -> None:
        """Reject a template whose prompt lacks one of its turns, for instance the article.

        White space does not count: templates may trim it.
        """
        for message in messages:
            if "".join(message["content"].split()) not in "".join(text.split()):
                raise InputError(
                    f"the model's chat template drops the {message['role']} turn of question "
                    f"{name}: the article or question would not reach the model. {PLAIN}"
                )

    def _fit(self, messages: Messages) -> None:
        """Choose text or blocks as content, and let the generation prompt end at the answer."""
        [prompt] = self.texts([messages], True)
        try:
            self.check(prompt, messages, "sample")
        except InputError as error:
            self.blocks = True
            try:
                [prompt] = self.texts([messages], True)
                self.check(prompt, messages, "sample")
            except InputError:
                raise error from None
        [whole] = self.texts([[*messages, {"role": "assistant", "content": PROBE}]])
        before, found, after = whole.partition(PROBE)
        if not found or PROBE in after:
            raise InputError(
                "the model's chat template does not contain an answer once, as it is (got "
                f"{whole[-200:]!r}). {PLAIN}"
            )
        opening = before.removeprefix(prompt)
        if opening and before.startswith(prompt):
            # Jinja drops a template's last line end; within the template it would stay.
            template = self.tokenizer.chat_template.removesuffix("\n").removesuffix("\r")
            literal = json.dumps(opening, ensure_ascii=False)  # a Jinja string, too
            self.tokenizer.chat_template = (
                f"{template}{{{{ {literal} if add_generation_prompt else '' }}}}"
            )
            [prompt] = self.texts([messages], True)
        # A thinking block may be in the generation prompt alone, which is then longer.
        if not prompt.startswith(before):
            raise InputError(
                f"the model's chat template ends its generation prompt in {prompt[-80:]!r}, but "
                f"has {before[-80:]!r} before an answer: training and inference would differ. "
                f"{PLAIN}"
            )
        ids = self.tokenizer(after, add_special_tokens=False).input_ids
        self.stop_id = next((token for token in ids if token in self.control_ids), None)

    def _limit_time(self, messages: Messages) -> None:
        """Render in a child process first; InputError if it takes more than SECONDS."""
        if sys.platform != "linux":  # elsewhere processes cannot be forked safely
            return

        def attempt() -> None:  # without the tokenizer, whose threads are not forked
            with suppress(InputError):  # the parent meets it as well
                self.texts([messages], True)
                self.texts([[*messages, {"role": "assistant", "content": PROBE}]])

        child = multiprocessing.get_context("fork").Process(target=attempt, daemon=True)
        child.start()
        child.join(SECONDS)
        if child.is_alive():
            child.kill()
            raise InputError(
                f"the model's chat template took more than {SECONDS} seconds for one question. "
                f"{PLAIN}"
            )

    def _apply(self, conversations: list, add_generation_prompt: bool, tokenize: bool) -> Any:
        if self.blocks:
            conversations = [
                [{**turn, "content": [{"type": "text", "text": turn["content"]}]} for turn in turns]
                for turns in conversations
            ]
        try:
            return self.tokenizer.apply_chat_template(
                conversations,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                # A row's text that spells a control token stays text; this needs `tokenize`.
                sanitize_control_tokens=tokenize,
                return_dict=False,
                enable_thinking=False,  # Qwen 3 would think first; other templates ignore it
            )
        except Exception as error:  # a template may divide by zero, index nothing, nest too deeply
            system = any(turn["role"] == "system" for turn in conversations[0])
            hint = "Choose a template without a system turn (Gemma has none), or another base."
            raise InputError(
                f"the model's chat template fails ({first_line(error)}). "
                f"{hint if system else PLAIN}"
            ) from error


def mark_control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of control tokens, and let transformers escape rows that spell one.

    Control tokens are the special tokens, and added tokens that the chat template contains and that
    look like a marker. Any other added token is a word.
    """
    added = tokenizer.added_tokens_decoder
    markers = {
        token_id: token.content
        for token_id, token in added.items()
        if not token.special
        and token.content in (tokenizer.chat_template or "")
        and MARKER.search(token.content.strip())
    }
    tokenizer.chat_control_tokens = sorted(markers.values())
    special = {token_id for token_id, token in added.items() if token.special}
    return special | set(tokenizer.all_special_ids) | set(markers)


def fix_date(chat_template: str) -> str:
    """Return the template with DAY instead of its calls of strftime_now, which give today's date.

    Templates with the macro of that name, saved by an earlier version, are fixed already.
    """
    if "macro strftime_now" in chat_template:
        return chat_template
    fixed = DATE_CALL.sub(lambda call: json.dumps(DAY.strftime(call[2])), chat_template)
    unknown = [
        call[0] for call in DATE_CALL.finditer(chat_template) if "%" in DAY.strftime(call[2])
    ]
    unknown += re.findall(r"strftime_now\s*\([^)]*\)?", fixed)
    if unknown:
        raise InputError(
            f"the model's chat template asks for the date by {unknown[0]!r}; expected a literal "
            f"format such as '%Y-%m-%d'. {PLAIN}"
        )
    return fixed
