"""The one error that people are meant to see, and how a script ends on it."""

import sys
from collections.abc import Callable
from difflib import get_close_matches


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what was got, what was expected and what to do."""


class Stopped(Exception):
    """A run that ended early because it was asked to; the message says how to go on, `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def nearest(name: str, known) -> str:
    """ " Did you mean 'x'?" for the known name most like `name`, or "" when none is."""
    matches = get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """What kind of error it is and the beginning of its message, for a line of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; an `InputError` ends it with its message and exit code 2, without a traceback."""
    try:
        main()
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except Stopped as stopped:
        print(f"stopped: {stopped}", file=sys.stderr)
        raise SystemExit(stopped.code) from None
    except KeyboardInterrupt:
        print("stopped", file=sys.stderr)
        raise SystemExit(130) from None  # as shells have it: 128 and the signal
