"""A model's chat template, made fit to train and answer with: probed before anything is encoded, mended where that is certain.

What a template writes around an answer, and whose it is:

    ...article, question <end> <assistant> <channel> 답 <end> newline
    |---- generation prompt ----------------|           only where the template gives one
    |---- prompt, in training and in inference --------| |--- answer and its stop token, which are learned

What stands between the generation prompt and the answer (a header, a channel, an empty thinking block) belongs to the
prompt. It is appended to the tokenizer's template, and so saved with the adapter: whoever loads that sends the same prompt.
"""

import ctypes
import json
import re
import threading
from contextlib import contextmanager
from datetime import date

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from dandap.errors import InputError, first_line

Messages = list[dict[str, str]]
PROBE = "단답의 자리 0729"  # an answer that no template says by itself
SECONDS = 20  # for a template to render a sample; all real ones take milliseconds
DAY = date(2024, 7, 26)  # what templates that tell today's date get: a prompt must not depend on the day it is made
# What a template may do wrong: raise, divide by zero, index, loop beyond the sandbox's limit, nest too deeply.
FAULTS = (TemplateError, ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError, MemoryError)
MARKER = re.compile(r"[<>|#\uff5c]|^\[[\x21-\x7e]+\]$")  # <|im_end|>, </think>, [INST]; not a word that is an added token


class Chat:
    """Renders turns to token ids by a tokenizer's chat template; texts of rows never become control tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, messages: Messages):
        """Probe and mend the template with a sample's turns; InputError says what it does wrong."""
        self.tokenizer = tokenizer
        if isinstance(tokenizer.chat_template, dict):  # several by name, as "default" and "tool_use"
            tokenizer.chat_template = tokenizer.chat_template.get("default")
        self.control_ids = mark_control_tokens(tokenizer)
        self.blocks = False  # whether a turn's content is a list of blocks, as multimodal bases have it
        if not tokenizer.chat_template:
            raise InputError(
                "the model's tokenizer has no chat template and this template is made of chat turns. "
                "Choose a plain one with --template (an entry of prompts.py that has a 'prompt')."
            )
        tokenizer.chat_template = with_fixed_day(tokenizer.chat_template)
        with _time_limit():
            self._choose_content(messages)
            self._mend(messages)

    def ids(self, messages: Messages, add_generation_prompt: bool = False) -> list[int]:
        """Return the token ids of turns, up to where the answer starts with `add_generation_prompt`."""
        return self._apply(messages, add_generation_prompt, tokenize=True)

    def check(self, messages: Messages, name: str) -> None:
        """Refuse a template that leaves out what it was given, for instance the article."""
        text = self._apply(messages, add_generation_prompt=True, tokenize=False)
        lost = [message["role"] for message in messages if not self._holds(text, message["content"])]
        if lost:
            raise InputError(
                f"the model's chat template leaves out the text of the {lost[0]}'s turn (question {name}): the article or the "
                "question would not reach the model. Choose a plain template (--template, one with a 'prompt'), or another base."
            )

    def _holds(self, text: str, content: str) -> bool:
        """Whether a rendered text holds a turn's content; templates may trim it and change its line ends."""
        return "".join(content.split()) in "".join(text.split())

    def _choose_content(self, messages: Messages) -> None:
        """Give content as text, or as blocks where the template reads only those."""
        try:
            self.check(messages, "sample")
        except InputError as error:
            self.blocks = True
            try:
                self.check(messages, "sample")
            except InputError:
                raise error from None

    def _mend(self, messages: Messages) -> None:
        """Let the generation prompt end where an answer starts."""
        prompt = self._apply(messages, add_generation_prompt=True, tokenize=False)
        whole = self._apply([*messages, {"role": "assistant", "content": PROBE}], tokenize=False)
        before, found, after = whole.partition(PROBE)
        if not found or PROBE in after:
            raise InputError(
                f"the model's chat template does not show an answer once, as it is (got {whole[-200:]!r}). Choose a plain "
                "template (--template, one with a 'prompt')."
            )
        if before.startswith(prompt):
            if opening := before[len(prompt) :]:
                literal = json.dumps(opening, ensure_ascii=False)  # Jinja's texts are written as JSON's
                self.tokenizer.chat_template += "{% if add_generation_prompt %}{{ " + literal + " }}{% endif %}"
        elif not prompt.startswith(before):  # a thinking block may stand in the generation prompt alone
            raise InputError(
                f"the model's chat template ends its generation prompt in {prompt[-80:]!r}, but writes {before[-80:]!r} before "
                "an answer: training and answering would differ. Choose a plain template (--template, one with a 'prompt')."
            )
        stops = [token for token in self.tokenizer(after, add_special_tokens=False).input_ids if token in self.control_ids]
        self.stop_id = stops[0] if stops else None  # None: the turn ends without a token of its own

    def _apply(self, messages: Messages, add_generation_prompt: bool = False, tokenize: bool = True):
        if self.blocks:
            messages = [{**each, "content": [{"type": "text", "text": each["content"]}]} for each in messages]
        try:
            return self.tokenizer.apply_chat_template(
                messages,
                add_generation_prompt=add_generation_prompt,
                tokenize=tokenize,
                sanitize_control_tokens=tokenize,
                return_dict=False,
                enable_thinking=False,  # Qwen 3 would think first; other templates ignore it
            )
        except FAULTS as error:
            if not isinstance(error, TemplateError):
                raise InputError(
                    f"the model's chat template fails ({first_line(error)}). Choose a plain one (--template, an entry with a "
                    "'prompt'), or another base."
                ) from error
            raise InputError(
                f"the model's chat template refuses these turns ({str(error)[:200]}). Gemma takes no system turn: "
                "choose a template without one."
            ) from error


def mark_control_tokens(tokenizer: PreTrainedTokenizerBase) -> set[int]:
    """Return the ids of control tokens, and have the tokenizer take text that spells one as text.

    Those are its special tokens, and added tokens that the chat template writes and that look like a marker. An ordinary
    word that somebody added to the vocabulary is a word, whether or not the template says it.
    """
    chat_template = tokenizer.chat_template or ""
    markers = {
        token_id: token.content
        for token_id, token in tokenizer.added_tokens_decoder.items()
        if not token.special and token.content in chat_template and MARKER.search(token.content.strip())
    }
    tokenizer.chat_control_tokens = sorted(markers.values())
    return (
        set(tokenizer.all_special_ids)
        | {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
        | set(markers)
    )


def with_fixed_day(chat_template: str) -> str:
    """Give a template that tells the date DAY instead of today, by a macro of the function's name."""
    if "strftime_now" not in chat_template or "macro strftime_now" in chat_template:
        return chat_template
    filled = "format"
    for directive in "YmdBbAayHMSIpj":
        filled += f" | replace('%{directive}', '{DAY.strftime('%' + directive)}')"
    return "{% macro strftime_now(format) %}{{ " + filled + " }}{% endmacro %}" + chat_template


class _Late(Exception):
    """The time is up."""


@contextmanager
def _time_limit():
    """End a template that loops: an exception is set in this thread, which Python code meets at its next step."""
    thread = ctypes.c_ulong(threading.get_ident())
    timer = threading.Timer(SECONDS, lambda: ctypes.pythonapi.PyThreadState_SetAsyncExc(thread, ctypes.py_object(_Late)))
    timer.daemon = True
    timer.start()
    try:
        yield
    except _Late:
        raise InputError(
            f"the model's chat template took more than {SECONDS} seconds for one question: it loops. Choose another base."
        ) from None
    finally:
        timer.cancel()
