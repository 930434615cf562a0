"""Prepare a process before its libraries load; every script imports this module first.

Ctrl-C ends in one word while libraries load, and lines that libraries print and nobody can act on
are dropped.
"""

import logging
import os
import sys
import warnings
from pathlib import Path

# Whoever started us may have closed standard streams (2>&-); the next file that is opened would
# take their number and get what is printed.
for _number in range(3):
    try:
        os.fstat(_number)
    except OSError:
        os.open(os.devnull, os.O_RDWR)  # takes the lowest free number
for _name in ("stdout", "stderr"):
    # Python has None for the streams that it found closed, which cannot be written to or flushed.
    if getattr(sys, _name) is None:
        setattr(sys, _name, Path(os.devnull).open("w"))  # noqa: SIM115 (for as long as the process lives)


def _end_quietly(kind, error, trace) -> None:
    """Say "stopped" where Ctrl-C comes before `run_script` is there.

    This is so while torch is loaded, for instance, which takes 10 s.
    """
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr)
        sys.stderr.flush()
        os._exit(130)  # as shells have it: 128 and the signal
    sys.__excepthook__(kind, error, trace)


class _Unwanted(logging.Filter):
    """Drops bitsandbytes' line about `kernels`, which is not wanted here.

    `kernels` would give a faster matrix product on CPUs with AVX512-BF16.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        return "kernels-community" not in record.getMessage()


sys.excepthook = _end_quietly
logging.getLogger("bitsandbytes.backends.cpu.ops").addFilter(_Unwanted())
# torch and peft speak of their own future; nothing a user could change.
warnings.filterwarnings(
    "ignore", category=FutureWarning, module=r"(torch|peft|transformers|bitsandbytes)\."
)
# export.py unties such a head; and the parts of a --soup are deleted on purpose.
for _said in ("Model has `tie_word_embeddings=True`", "Adapter part-0 was active"):
    warnings.filterwarnings("ignore", message=_said)
if not sys.stderr.isatty():
    # A bar redrawn a hundred times is a hundred lines in a log; our own progress is a line now and
    # then.
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TQDM_DISABLE", "1")
# A tokenizer shares the texts of one call among all cores. Unless this is said, it prints a warning
# whenever the process forks later.
os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
# Batches differ in length at every step. Memory that CUDA's allocator has reserved in pieces may be
# free and still too short for the next one; segments that grow do not fall apart so. torch knows
# them on Linux alone.
if sys.platform == "linux" and "PYTORCH_CUDA_ALLOC_CONF" not in os.environ:
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")
