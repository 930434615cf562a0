"""Build the command lines of all scripts, and configure the process before libraries load."""

import argparse
import logging
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# The parent may have closed standard streams (2>&-). Reopen them, or the next opened file takes
# their descriptor and receives what is printed.
for _number in range(3):
    try:
        os.fstat(_number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # Python found it closed
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115
# Hide warnings that users cannot act on: bitsandbytes recommends `kernels`, libraries announce
# deprecations, and PEFT warns of tied heads (export.py unties them).
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"(torch|peft|transformers|bitsandbytes)\."
)
for _message in ("Model has `tie_word_embeddings=True`", "Adapter part-0 was active"):
    warnings.filterwarnings("ignore", message=_message)
if not sys.stderr.isatty():
    # In a log file, a progress bar prints one line per update.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
# Fast tokenizers use all cores in one call; unless this is set they warn at a later fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Batch lengths change every step: expandable segments avoid fragmented CUDA memory (Linux only).
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from pydantic.fields import FieldInfo

from dandap import language
from dandap.console import discard, printable, safe_output
from dandap.errors import InputError, Stopped, did_you_mean, disk_message
from dandap.recipe import GROUPS, Recipe


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`; print user errors as one sentence and exit with code 2."""
    try:
        with safe_output():
            main()
        return
    except InputError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        # OSErrors without an errno come from libraries (connections): show the traceback.
        if error.errno is None:
            raise
        message, code = f"error: {disk_message(error)}", 2
    except Stopped as stopped:
        message, code = f"stopped: {stopped}", stopped.code
    except KeyboardInterrupt:
        message, code = "stopped", 130
    if len(message) > 4000:  # a quoted header may have a million columns; the advice comes last
        message = f"{message[:2000]} ... {message[-2000:]}"
    try:
        print(printable(message), file=sys.stderr, flush=True)
    except OSError:  # stderr is redirected to a full disk; the exit code still shows the failure
        discard(sys.stderr)
    raise SystemExit(code)


def add_options(parser: argparse.ArgumentParser, title: str, names: Iterable[str] = ()) -> None:
    """Add an option for each field of `names` in one group, or for all fields in their groups."""
    group = parser.add_argument_group(title) if names else None
    for name in names or Recipe.model_fields:
        field = Recipe.model_fields[name]
        if not names and name in GROUPS:
            group = parser.add_argument_group(GROUPS[name])
        default = str(field.default).lower() if field.annotation is bool else field.default
        shown = "" if default in (None, {}, []) else f" (default: {default})"
        assert group
        group.add_argument(
            f"--{name}",
            metavar=placeholder(field.annotation),
            default=argparse.SUPPRESS,  # `chosen_options` returns only the given ones
            help=f"{field.description}{shown}".replace("%", "%%"),
        )


def placeholder(annotation: Any) -> str:
    """Return an option's choices, or its kind of value: {true,false}, N, X, NAME, {auto,N}."""
    if get_origin(annotation) is Literal:
        return f"{{{','.join(get_args(annotation))}}}"
    kinds = {bool: "{true,false}", int: "N", float: "X", str: "NAME", type(None): ""}
    if annotation in kinds:
        return kinds[annotation]
    if get_origin(annotation) in (list, dict):
        return "A,B,..." if get_origin(annotation) is list else "NAME=COLUMN,..."
    # A union, or Annotated with limits.
    parts = [placeholder(each) for each in get_args(annotation) if not isinstance(each, FieldInfo)]
    parts = [part.strip("{}") for part in parts if part]
    return f"{{{','.join(parts)}}}" if len(parts) > 1 and "A,B,..." not in parts else parts[-1]


class Formatter(argparse.RawDescriptionHelpFormatter):
    """Put an option and its help on one line where they fit."""

    def __init__(self, prog: str):
        width = max(110, shutil.get_terminal_size().columns - 2)
        super().__init__(prog, max_help_position=38, width=width)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with --lang, whose errors are InputErrors."""

    def __init__(self, description: str = ""):
        super().__init__(description=description, formatter_class=Formatter, allow_abbrev=False)
        self.add_argument(
            "--lang",
            choices=language.LANGUAGES,
            help="language of reports and page (default: the locale's)",
        )

    def format_help(self) -> str:
        """Return the help with a usage line that does not repeat every option."""
        names = [str(a.metavar or a.dest) for a in self._actions if not a.option_strings]
        self.usage = " ".join(["%(prog)s", *names, "[options]"])
        return super().format_help()

    def error(self, message: str):
        """Raise argparse's message as an InputError."""
        raise InputError(f"{message}. See --help.")


def positive(text: str) -> int:
    """Return the positive integer in the text of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line, with hyphens for underscores; suggest names for unknown options."""
    options = [option for action in parser._actions for option in action.option_strings]
    words = []
    for word in sys.argv[1:] if argv is None else argv:
        name, equals, value = word.partition("=")
        declared = f"--{name[2:].replace('-', '_')}"
        is_option = name.startswith("--") and declared in options
        words.append(f"{declared}{equals}{value}" if is_option else word)
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        kind = "option" if unknown[0].startswith("-") else "argument"
        name = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
        hint = did_you_mean(name, [option.lstrip("-") for option in options])
        raise InputError(f"got the unknown {kind} {unknown[0]!r}.{hint} See --help.")
    language.set_language(arguments.lang)
    return arguments


def chosen_options(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the recipe fields that the command line set, as strings."""
    return {name: value for name, value in vars(arguments).items() if name in Recipe.model_fields}


def _start(module: str, main: str = "main") -> None:
    run_script(lambda: getattr(import_module(module), main)())


# The console commands of pyproject.toml: dandap-train and others.
train = partial(_start, "fine_tune")
answer = partial(_start, "inference")
ensemble = partial(_start, "ensemble")
prompts = partial(_start, "prompts", "show")
compare = partial(_start, "tools.compare")
explore = partial(_start, "tools.explore")
refine = partial(_start, "tools.refine")
submit = partial(_start, "tools.submit")
app = partial(_start, "app")
export = partial(_start, "export")
