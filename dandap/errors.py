"""The one error that people are meant to see, and how a script ends on it."""

import errno
import sys
from collections.abc import Callable
from difflib import get_close_matches

from dandap.terminal import shown_output
from dandap.texts import shown

LONGEST_MESSAGE = 4000  # characters; what was got may be a file of a million columns
NO_SPACE = (errno.ENOSPC, errno.EDQUOT)


class InputError(ValueError):
    """Something the user gave cannot be used. The message says what was got, what was expected and what to do."""


class Stopped(Exception):
    """A run that ended early because it was asked to; the message says how to go on, `code` is the exit code."""

    def __init__(self, message: str, code: int):
        super().__init__(message)
        self.code = code


def nearest(name: str, known) -> str:
    """Return " Did you mean 'x'?" for the known name most like `name`, or "" when none is."""
    matches = get_close_matches(name[:100], [each for each in known if len(each) <= 100], n=1, cutoff=0.6)
    return f" Did you mean {matches[0]!r}?" if matches else ""


def first_line(error: BaseException) -> str:
    """Return what kind of error it is and the beginning of its message, for a line of ours."""
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0][:120]}" if lines else type(error).__name__


def disk_message(error: OSError) -> str:
    """Say what a file or folder refused, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    if error.errno in NO_SPACE:
        return (
            f"no space is left on the disk{where}. Free some and start the same command again; what was saved is kept, and "
            "training goes on with --resume."
        )
    way_out = {
        errno.EROFS: "It cannot be written to; name another folder (--output_dir, for answers --answers_dir).",
        errno.EACCES: "This user may not do that; name another folder, or change its permissions.",
        errno.ENAMETOOLONG: "The name is longer than the file system takes; choose a shorter one.",
        errno.ELOOP: "It is a link that leads nowhere; name what it was meant to point to.",
    }
    return f"{error.strerror or error}{where}. {way_out.get(error.errno, 'Check that path, then start again.')}"


def run_script(main: Callable[[], None]) -> None:
    """Run a script's `main`; what people can mend ends it with one sentence and exit code 2, without a traceback."""
    try:
        with shown_output():
            main()
    except InputError as error:
        _end(f"error: {error}", 2)
    except OSError as error:
        if error.errno is None:  # a library's own, as of a connection
            raise
        _end(f"error: {disk_message(error)}", 2)
    except Stopped as stopped:
        _end(f"stopped: {stopped}", stopped.code)
    except KeyboardInterrupt:
        _end("stopped", 130)  # as shells have it: 128 and the signal


def _end(message: str, code: int) -> None:
    if len(message) > LONGEST_MESSAGE:
        message = f"{message[: LONGEST_MESSAGE // 2]} ... {message[-LONGEST_MESSAGE // 2 :]}"
    print(shown(message), file=sys.stderr)
    raise SystemExit(code) from None
