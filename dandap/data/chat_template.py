"""A model's chat template is made fit to train and answer with.

It is probed before anything is encoded, and mended where that is certain. The drawing shows what a
template writes around an answer, and to which part it belongs:

    ...article, question <end> <assistant> <channel> 답 <end> newline
    |---- generation prompt ----------------|           only where the template gives one
    |---- prompt, in training and in inference --------| |--- answer and its stop token: learned

What stands between the generation prompt and the answer (a header, a channel, an empty thinking
block) belongs to the prompt. It is appended to the tokenizer's template, and so saved with the
adapter: whoever loads that sends the same prompt.
"""

from __future__ import annotations

import ctypes
import json
import re
import threading
from collections.abc import Sequence
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, NamedTuple

from jinja2 import TemplateError

from dandap.errors import InputError, first_line

if TYPE_CHECKING:  # for annotations alone: transformers takes seconds to load
    from transformers import PreTrainedTokenizerBase

Messages = list[dict[str, str]]
PROBE = "단답의 자리 0729"  # an answer that no template says by itself
SECONDS = 20  # for a template to render a sample; all real ones take milliseconds
# Templates that tell today's date get midnight of Friday 26 July 2024 in English, because a prompt
# must not depend on the day and the machine it is made on. The keys are strftime's directives, the
# longer ones first; "-" leaves leading zeros out ("#" on Windows).
DAY = dict(
    pair.split("=")
    for pair in (
        "-d=26|-m=7|-H=0|-I=12|-M=0|-S=0|-j=208|-y=24|#d=26|#m=7|#H=0|#I=12|#M=0|#S=0|#j=208|#y=24|"
        "a=Fri|A=Friday|b=Jul|h=Jul|B=July|d=26|e=26|m=07|y=24|Y=2024|C=20|j=208|u=5|w=5|"
        "G=2024|g=24|U=29|W=30|V=30|"
        "H=00|k= 0|I=12|l=12|M=00|S=00|f=000000|p=AM|P=am|z=|Z=|F=2024-07-26|D=07/26/24|x=07/26/24|"
        "T=00:00:00|X=00:00:00|R=00:00|r=12:00:00 AM|c=Fri Jul 26 00:00:00 2024"
    ).split("|")
)
# A template may raise, divide by zero, index what is not there, loop beyond the sandbox's limit or
# nest too deeply; each of these is told as a fault of the template, with what to do.
FAULTS = (
    TemplateError,
    ArithmeticError,
    LookupError,
    TypeError,
    ValueError,
    AttributeError,
    RuntimeError,
    MemoryError,
)
# <|im_end|>, </think>, [INST]; not a word that is an added token.
MARKER = re.compile(r"[<>|#\uff5c]|^\[[\x21-\x7e]+\]$")


class Prompt(NamedTuple):
    """Holds a prompt as it is rendered, and its token ids."""

    text: str
    ids: Sequence[int]


class Chat:
    """Renders turns to token ids by a tokenizer's chat template.

    Texts of rows never become control tokens. `control_ids` are the ids of those, `stop_id` is the
    one that ends a turn, or None where a turn ends without a token of its own.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages):
        """Probe and mend the template with a sample's turns; InputError says what it does wrong."""
        self.tokenizer = tokenizer
        # Some bases have several templates by name, as "default" and "tool_use".
        if isinstance(tokenizer.chat_template, dict):
            tokenizer.chat_template = tokenizer.chat_template.get("default")
        self.control_ids = mark_control_tokens(tokenizer)
        controls = [
            re.escape(token.content)
            for token_id, token in tokenizer.added_tokens_decoder.items()
            if token_id in self.control_ids
        ]
        # And what transformers marks them with in a text, which it takes out of texts of rows.
        self.controls = re.compile("|".join([*controls, "[\U000f0000\U000f0001]"]))
        # Whether a turn's content is a list of blocks, as multimodal bases have it.
        self.blocks = False
        if not tokenizer.chat_template:
            raise InputError(
                "the model's tokenizer has no chat template and this template is made of chat "
                "turns. Choose a plain one with --template (an entry of prompts.py that has a "
                "'prompt')."
            )
        tokenizer.chat_template = with_fixed_day(tokenizer.chat_template)
        with _time_limit():
            self._choose_content(messages)
            self._mend(messages)

    def ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        """Return the token ids of turns, with `add_generation_prompt` up to an answer's start."""
        return self._apply(messages, add_generation_prompt, tokenize=True)

    def texts(
        self, conversations: list[Messages], add_generation_prompt: bool = False
    ) -> list[str]:
        """Return the text of each conversation."""
        return self._apply(conversations, add_generation_prompt, tokenize=False)

    def prompts(self, conversations: list[Messages]) -> list[Prompt]:
        """Return the prompts of conversations, with what `ids` returns, at one call."""
        texts = self.texts(conversations, add_generation_prompt=True)
        found = self.tokenizer(texts, add_special_tokens=False).input_ids
        # Where no text spells a control token, the ids of the rendered text are all there is to it.
        return [
            Prompt(text, self.ids(messages, True) if self._spells_control(messages) else ids)
            for messages, text, ids in zip(conversations, texts, found, strict=True)
        ]

    def whole_ids(self, conversations: list[Messages], prompts: list[Prompt]) -> list[list[int]]:
        """Return what `ids` returns for each conversation, of which the prompt is known already.

        What follows a prompt's last control token is tokenized, and not the article once more:
        such a token parts a text, so nothing merges across it.
        """
        texts = self.texts(conversations)
        starts = [self._seam(text, prompt) for text, prompt in zip(texts, prompts, strict=True)]
        ends = [text[at:] for text, (at, _) in zip(texts, starts, strict=True)]
        found = self.tokenizer(ends, add_special_tokens=False).input_ids
        return [
            # An end that begins with another token was not parted from what stands before it.
            self.ids(messages)
            if self._spells_control(messages) or (before and ids[:1] != prompt.ids[before:][:1])
            else [*prompt.ids[:before], *ids]
            for messages, prompt, (_, before), ids in zip(
                conversations, prompts, starts, found, strict=True
            )
        ]

    def _seam(self, text: str, prompt: Prompt) -> tuple[int, int]:
        """Return where a prompt's last control token stands, in the text and in the ids; or 0, 0.

        It is 0, 0 where there is none, or the text does not begin with the prompt.
        """
        places = range(len(prompt.ids) - 1, -1, -1)
        last = next((at for at in places if prompt.ids[at] in self.control_ids), 0)
        mark = self.tokenizer.convert_ids_to_tokens(prompt.ids[last])
        start = prompt.text.rfind(mark)
        return (start, last) if start > 0 and text.startswith(prompt.text) else (0, 0)

    def _spells_control(self, messages: Messages) -> bool:
        return any(self.controls.search(message["content"]) for message in messages)

    def text(self, messages: Messages) -> str:
        """Return the text of turns up to an answer's start."""
        return self._apply(messages, add_generation_prompt=True, tokenize=False)

    def check(self, messages: Messages, name: str) -> None:
        """Refuse a template that leaves out what it was given, for instance the article."""
        text = self._apply(messages, add_generation_prompt=True, tokenize=False)
        lost = [
            message["role"] for message in messages if not self._holds(text, message["content"])
        ]
        if lost:
            raise InputError(
                f"the model's chat template leaves out the text of the {lost[0]}'s turn (question "
                f"{name}): the article or the question would not reach the model. Choose a plain "
                "template (--template, one with a 'prompt'), or another base."
            )

    def _holds(self, text: str, content: str) -> bool:
        """Say whether a rendered text holds a turn's content.

        White space does not count: templates may trim a content and change its line ends.
        """
        return "".join(content.split()) in "".join(text.split())

    def _choose_content(self, messages: Messages) -> None:
        """Choose to give content as text, or as blocks where the template reads only those."""
        try:
            self.check(messages, "sample")
        except InputError as error:
            self.blocks = True
            try:
                self.check(messages, "sample")
            except InputError:
                # Neither form holds; texts are the usual one, so their error is told.
                raise error from None

    def _mend(self, messages: Messages) -> None:
        """Let the generation prompt end where an answer starts, and find what ends a turn."""
        prompt = self._apply(messages, add_generation_prompt=True, tokenize=False)
        whole = self._apply([*messages, {"role": "assistant", "content": PROBE}], tokenize=False)
        before, found, after = whole.partition(PROBE)
        if not found or PROBE in after:
            raise InputError(
                "the model's chat template does not show an answer once, as it is (got "
                f"{whole[-200:]!r}). Choose a plain template (--template, one with a 'prompt')."
            )
        if before.startswith(prompt):
            if opening := before[len(prompt) :]:
                # Jinja's texts are written as JSON's.
                literal = json.dumps(opening, ensure_ascii=False)
                # Jinja drops a template's last line end, and would keep it within.
                template = self.tokenizer.chat_template.removesuffix("\n").removesuffix("\r")
                self.tokenizer.chat_template = (
                    template + "{{ " + literal + " if add_generation_prompt else '' }}"
                )
                if self._apply(messages, add_generation_prompt=True, tokenize=False) != before:
                    raise InputError(
                        f"the model's chat template writes {opening[:80]!r} before an answer, and "
                        "its generation prompt cannot be made to end so. Choose a plain template "
                        "(--template, one with a 'prompt')."
                    )
        # A thinking block may stand in the generation prompt alone; the prompt is longer then.
        elif not prompt.startswith(before):
            raise InputError(
                f"the model's chat template ends its generation prompt in {prompt[-80:]!r}, but "
                f"writes {before[-80:]!r} before an answer: training and answering would differ. "
                "Choose a plain template (--template, one with a 'prompt')."
            )
        stops = [
            token
            for token in self.tokenizer(after, add_special_tokens=False).input_ids
            if token in self.control_ids
        ]
        # None: the turn ends without a token of its own.
        self.stop_id = stops[0] if stops else None

    def _apply(
        self,
        messages: Messages | list[Messages],
        add_generation_prompt: bool = False,
        tokenize: bool = True,
    ):
        several = isinstance(messages[0], list)
        conversations = messages if several else [messages]
        if self.blocks:
            conversations = [_in_blocks(each) for each in conversations]
        try:
            return self.tokenizer.apply_chat_template(
                conversations if several else conversations[0],
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                # A row's text that spells a control token is encoded as text; needs tokenize.
                sanitize_control_tokens=tokenize,
                return_dict=False,
                enable_thinking=False,  # Qwen 3 would think first; other templates ignore it
            )
        except FAULTS as error:
            if not isinstance(error, TemplateError):
                raise InputError(
                    f"the model's chat template fails ({first_line(error)}). Choose a plain one "
                    "(--template, an entry with a 'prompt'), or another base."
                ) from error
            has_system = any(message["role"] == "system" for message in conversations[0])
            hint = (
                "a template without a system turn (Gemma takes none)"
                if has_system
                else "a plain one, with a 'prompt'"
            )
            raise InputError(
                f"the model's chat template refuses these turns ({first_line(error)}). Choose "
                f"{hint} (--template), or another base."
            ) from error


def _in_blocks(messages: Messages) -> list[dict]:
    return [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]


def mark_control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of control tokens, and have the tokenizer take text that spells one as text.

    Control tokens are the special tokens, and those added tokens that the chat template writes and
    that look like a marker. An ordinary word that somebody added to the vocabulary is a word,
    whether or not the template says it.
    """
    chat_template = tokenizer.chat_template or ""
    markers = {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if not token.special
        and token.content in chat_template
        and MARKER.search(token.content.strip())
    }
    tokenizer.chat_control_tokens = sorted(markers.values())
    return (
        set(tokenizer.all_special_ids)
        | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        | set(markers)
    )


def with_fixed_day(chat_template: str) -> str:
    """Return the template with a macro in front that gives it DAY where it asks for today's date.

    The macro has the name of the function that such templates call, `strftime_now`. A template
    that does not call it, or has the macro already, is returned as it is.
    """
    if "strftime_now" not in chat_template or "macro strftime_now" in chat_template:
        return chat_template
    filled = "format" + "".join(f" | replace('%{name}', '{value}')" for name, value in DAY.items())
    # A directive that DAY lacks is left with its "%"; it is refused, not sent as a text.
    unknown = (
        "{% if '%' in day %}"
        "{{ raise_exception('strftime_now does not know ' + format) }}"
        "{% endif %}"
    )
    macro = (
        "{% macro strftime_now(format) %}{% set day = "
        + filled
        + " %}"
        + unknown
        + "{{ day }}{% endmacro %}"
    )
    return macro + chat_template


class _Late(Exception):
    """Ends the rendering of a template whose time is up."""


@contextmanager
def _time_limit():
    """Let a template render for SECONDS; InputError if it loops for longer.

    A timer sets an exception in this thread, which Python code meets at its next step.
    """
    thread = ctypes.c_ulong(threading.get_ident())
    end = partial(ctypes.pythonapi.PyThreadState_SetAsyncExc, thread, ctypes.py_object(_Late))
    timer = threading.Timer(SECONDS, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    except _Late:
        raise InputError(
            f"the model's chat template took more than {SECONDS} seconds for one question: it "
            "loops. Choose another base."
        ) from None
    finally:
        timer.cancel()
