"""Make the bundled demo: a tiny Korean base model trained from scratch, and sample data.

    python -m tools.demo.make            # tokenizer, base model and sample data, in about an hour
    python -m tools.demo.make --data     # only data/sample/

The companies in the sample data are fictional, and everything is reproducible from the seed. The
base model answers in full sentences like a chat model, so that fine-tuning can teach it short
answers. It is trained with prompts that are not in prompts.py.
"""

import sys
from pathlib import Path

# So that `python tools/demo/make.py` also works.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dandap.cli import Parser, parse, positive, run_script

STEPS = 3000


def main(argv: list[str] | None = None) -> None:
    """Write data/sample/ and, without --data, data/demo_model/."""
    arguments = parse(command_line(), argv)
    from tools.demo.model import make_demo  # imports torch, which --help does not need

    make_demo(not arguments.data, arguments.steps, arguments.seed)


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", action="store_true", help="write only data/sample/, not data/demo_model/"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=STEPS,
        help=f"training steps of the base model (default: {STEPS})",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="seed of articles and weights (default: 42)"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
