"""Build the command line of every script.

Options come from the recipe's fields, mistakes are InputErrors, and a script that fails ends in one
sentence.
"""

import argparse
import re
import sys
from collections.abc import Callable, Iterable
from itertools import pairwise

from dandap import language
from dandap.console import leave, shown, shown_output
from dandap.errors import InputError, Stopped, disk_message
from dandap.recipe import Recipe, _right_name

LONGEST_MESSAGE = 4000  # characters; what was got may be a file of a million columns


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; end it in one sentence, without a traceback, where people can mend it.

    The exit code then is 2; it is 130 after Ctrl-C, and `Stopped` brings its own.
    """
    try:
        with shown_output():
            main()
    except InputError as error:
        _end(f"error: {_short(str(error))}", 2)
    except OSError as error:
        # Libraries raise OSErrors of their own, as of a connection: these need their traceback.
        if error.errno is None:
            raise
        _end(f"error: {_short(disk_message(error))}", 2)
    except Stopped as stopped:
        _end(f"stopped: {_short(str(stopped))}", stopped.code)
    except KeyboardInterrupt:
        _end("stopped", 130)  # as shells have it: 128 and the signal


def _short(message: str) -> str:
    if len(message) <= LONGEST_MESSAGE:
        return message
    # Both ends are kept: messages begin with what was got and end with what to do.
    return f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"


def _end(message: str, code: int) -> None:
    try:
        print(shown(message), file=sys.stderr, flush=True)
    except OSError:  # nobody can be told (a full disk); the exit code still tells
        leave(sys.stderr)
    raise SystemExit(code) from None


def add_options(parser: argparse.ArgumentParser, title: str, names: Iterable[str] = ()) -> None:
    """Give `parser` an option per field of Recipe, or per name, with its default and reason."""
    group = parser.add_argument_group(title)
    for name, field in Recipe.model_fields.items():
        if names and name not in names:
            continue
        default = "none" if field.default in (None, {}, []) else field.default
        # argparse formats help texts with %, so that a percent sign of ours must be doubled.
        help_text = f"{field.description} (default: {default})".replace("%", "%%")
        # An option that is not given leaves no attribute: `chosen_options` finds what was set.
        group.add_argument(f"--{name}", metavar="VALUE", default=argparse.SUPPRESS, help=help_text)


class Parser(argparse.ArgumentParser):
    """Parses a command line; its mistakes are InputErrors, as all others are."""

    def __init__(self, description: str = ""):
        super().__init__(
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        self.add_argument(
            "--lang",
            choices=language.LANGUAGES,
            help="the language of pages and reports (default: the locale's, else en)",
        )

    def error(self, message: str):
        """Raise the InputError of a mistake that argparse describes, in words of ours."""
        if found := re.fullmatch(r"argument (.+): expected one argument", message):
            # It takes most values that start with - for options, and then misses an argument.
            raise InputError(
                f"{found[1]} got no value, expected one. A value that starts with - is written "
                "--option=-1. See --help."
            )
        if found := re.fullmatch(
            r"argument (.+): invalid choice: (.+) \(choose from (.+)\)", message
        ):
            option, got, choices = found.groups()
            raise InputError(f"{option}: got {got}, expected one of {choices}. See --help.")
        if found := re.fullmatch(r"the following arguments are required: (.+)", message):
            raise InputError(f"the command line lacks {found[1]}. See --help.")
        if found := re.fullmatch(r"argument (.+?): (got .+)", message):  # a type of ours
            raise InputError(f"{found[1]}: {found[2]}. See --help.")
        raise InputError(f"{message}. See --help.")


def positive(text: str) -> int:
    """Return the whole number of at least 1 that the text of an argparse option holds."""
    if not text.isdigit() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"got {text!r}, expected a whole number of at least 1")
    return int(text)


def parse(parser: Parser, argv: list[str] | None) -> argparse.Namespace:
    """Parse a command line; for an unknown option raise an InputError that names the right one."""
    options = {option for action in parser._actions for option in action.option_strings}
    words = [_underscored(word, options) for word in (sys.argv[1:] if argv is None else argv)]
    # First of all: a mistake in another option is told in that language, too.
    language.use(_value_of("--lang", words))
    arguments, unknown = parser.parse_known_args(words)
    if unknown:
        name = unknown[0].split("=")[0].lstrip("-").replace("-", "_")
        options = [
            option.lstrip("-") for action in parser._actions for option in action.option_strings
        ]
        what = (
            f"option {unknown[0]!r}"
            if unknown[0].startswith("-")
            else f"argument {unknown[0]!r} that belongs to no option"
        )
        raise InputError(f"got the unknown {what}.{_right_name(name, options)} See --help.")
    return arguments


def _value_of(option: str, words: list[str]) -> str | None:
    """Return the last value of an option on the command line, or None."""
    values = [after for word, after in pairwise(words) if word == option]
    values += [word.partition("=")[2] for word in words if word.startswith(f"{option}=")]
    return next((value for value in reversed(values) if value in language.LANGUAGES), None)


def _underscored(word: str, options: set[str]) -> str:
    """Return an option with hyphens as it is declared: --learning_rate for --learning-rate."""
    name, equals, value = word.partition("=")
    # The two hyphens in front became underscores, too, and are put back.
    declared = name.replace("-", "_").replace("__", "--", 1)
    return declared + equals + value if name.startswith("--") and declared in options else word


def chosen_options(arguments: argparse.Namespace) -> dict[str, str]:
    """Return the recipe fields that the command line set, with their texts."""
    return {name: value for name, value in vars(arguments).items() if name in Recipe.model_fields}
