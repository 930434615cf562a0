"""Imported first by every script: Ctrl-C while libraries load, and lines that libraries print and nobody can act on."""

import logging
import os
import sys
import warnings
from pathlib import Path

for _number in range(
    3
):  # closed by whoever started us (2>&-): else the next file that is opened would get what is printed
    try:
        os.fstat(_number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
for _name in ("stdout", "stderr"):
    if getattr(sys, _name) is None:
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115 (for as long as the process lives)


def _end_quietly(kind, error, trace) -> None:
    """Say "stopped" where Ctrl-C comes before `run_script` is there, for instance while torch is loaded (10 s)."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)
    sys.__excepthook__(kind, error, trace)


class _Unwanted(logging.Filter):
    """Drops bitsandbytes' line about `kernels`, a faster product on CPUs with AVX512-BF16 that is not wanted here."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "kernels-community" not in record.getMessage()


sys.excepthook = _end_quietly
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_Unwanted())
# torch and peft speak of their own future; nothing a user could change.
warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"(torch|peft|transformers|bitsandbytes)\."
)
if not sys.stderr.isatty():
    # A bar redrawn a hundred times is a hundred lines in a log; our own progress is a line now and then.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
