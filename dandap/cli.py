"""Build the command line of every script, and prepare its process before libraries load."""

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Callable, Iterable
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

# The parent process may have closed standard streams (2>&-). Open them, or the next opened file
# would take their number and receive what is printed.
for _number in range(3):
    try:
        os.fstat(_number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:  # Python found it closed
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115
# Hide what users cannot act on: bitsandbytes recommends `kernels`, libraries announce changes,
# peft warns of tied heads (export.py unties them) and of deleted parts of a --soup.
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(
    lambda record: "kernels-community" not in record.getMessage()
)
warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"(torch|peft|transformers|bitsandbytes)\."
)
for _message in ("Model has `tie_word_embeddings=True`", "Adapter part-0 was active"):
    warnings.filterwarnings("ignore", message=_message)
if not sys.stderr.isatty():
    # In a log, a bar would be a line per update.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
# A tokenizer shares the texts of one call among the cores; without this it warns at a later fork.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Batches differ in length at each step. Expandable segments keep CUDA's memory from fragmenting;
# torch has them on Linux only.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")

from dandap import language
from dandap.console import discard, printable, safe_output
from dandap.errors import InputError, Stopped, did_you_mean, disk_message
from dandap.recipe import Recipe


def run_script(main: Callable[[], Any]) -> None:
    """Run a script's `main`; errors that users can fix end it in one sentence, with exit code 2."""
    try:
        with safe_output():
            main()
        return
    except InputError as error:
        message, code = f"error: {error}", 2
    except OSError as error:
        # OSErrors without a number come from libraries, as for a connection: show the traceback.
        if error.errno is None:
            raise
        message, code = f"error: {disk_message(error)}", 2
    except Stopped as stopped:
        message, code = f"stopped: {stopped}", stopped.code
    except KeyboardInterrupt:
        message, code = "stopped", 130
    if len(message) > 4000:  # a value may be the header of a million columns; a fix comes last
        message = f"{message[:2000]} ... {message[-2000:]}"
    try:
        print(printable(message), file=sys.stderr, flush=True)
    except OSError:  # a full disk behind 2>; the exit code remains
        discard(sys.stderr)
    raise SystemExit(code)


def add_options(parser: argparse.ArgumentParser, title: str, names: Iterable[str] = ()) -> None:
    """Add an option for each field of Recipe, or of `names`, with its default and reason."""
    group = parser.add_argument_group(title)
    for name in names or Recipe.model_fields:
        field = Recipe.model_fields[name]
        values = get_args(field.annotation) if get_origin(field.annotation) is Literal else ()
        values = ("true", "false") if field.annotation is bool else values
        default = "none" if field.default in (None, {}, []) else field.default
        group.add_argument(
            f"--{name}",
            metavar=f"{{{','.join(values)}}}" if values else "VALUE",
            default=argparse.SUPPRESS,  # `chosen_options` returns those that were given
            help=f"{field.description} (default: {default})".replace("%", "%%"),
        )


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with --lang, whose errors are InputErrors."""

    def __init__(self, description: str = ""):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--lang",
            choices=language.LANGUAGES,
            help="language of pages and reports (default: the locale's, else en)",
        )

    def error(self, message: str):
        """Raise argparse's message as an InputError."""
        raise InputError(f"{message}. See --help.")


def positive(text: str) -> int:
    """Return the positive integer in the text of an argparse option."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line; hyphens in options are underscores; suggest a name for unknown ones."""
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
    language.use(arguments.lang)
    return arguments


def chosen_options(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the recipe fields that the command line set, with their texts."""
    return {name: value for name, value in vars(arguments).items() if name in Recipe.model_fields}


def _start(module: str, main: str = "main") -> None:
    run_script(lambda: getattr(import_module(module), main)())


# The console commands of pyproject.toml: dandap-train and others.
train = partial(_start, "fine_tune")
answer = partial(_start, "inference")
ensemble = partial(_start, "ensemble")
prompts = partial(_start, "prompts", "show")
augment = partial(_start, "tools.augment")
compare = partial(_start, "tools.compare")
explore = partial(_start, "tools.explore")
refine = partial(_start, "tools.refine")
submit = partial(_start, "tools.submit")
app = partial(_start, "app")
export = partial(_start, "export")
