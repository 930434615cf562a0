"""Prepare the process before libraries load; dandap.cli imports this module first."""

import logging
import os
import sys
import warnings
from pathlib import Path

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


def _excepthook(kind, error, trace) -> None:
    """Print "stopped" after Ctrl-C outside `run_script`, as while torch loads (10 s)."""
    if issubclass(kind, KeyboardInterrupt):
        print("stopped", file=sys.stderr, flush=True)
        os._exit(130)  # as in shells: 128 + SIGINT
    sys.__excepthook__(kind, error, trace)


sys.excepthook = _excepthook
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
