"""Make the bundled demo: a tiny Korean base model trained from scratch, and sample data.

    python -m tools.demo.make            # tokenizer, base model and sample data, in about an hour
    python -m tools.demo.make --data     # only data/sample/

The companies of the sample data are fictional. Everything follows from the seed. The base answers
in full sentences, as a chat model does: fine-tuning then teaches it the short answer. Its prompts
are wordings of its own; no template of prompts.py is among them.
"""

import sys
from pathlib import Path

# So that `python tools/NAME.py` works like `python -m tools.NAME`.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from dandap.cli import Parser, parse, positive, run_script

STEPS = 3000


def main(argv: list[str] | None = None) -> None:
    """Write data/sample/ and, without --data, data/demo_model/."""
    arguments = parse(command_line(), argv)
    from tools.demo.model import make_demo  # with torch, which --help need not wait for

    make_demo(not arguments.data, arguments.steps, arguments.seed)


def command_line() -> Parser:
    """Return the options: what is made, and from which seed."""
    parser = Parser(__doc__)
    parser.add_argument(
        "--data", action="store_true", help="only data/sample/; leave data/demo_model/ as it is"
    )
    parser.add_argument(
        "--steps",
        type=positive,
        default=STEPS,
        help=f"training steps of the base (default: {STEPS})",
    )
    parser.add_argument(
        "--seed", type=int, default=42, help="of articles and weights (default: 42)"
    )
    return parser


if __name__ == "__main__":
    run_script(main)
