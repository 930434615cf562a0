"""Serve a web page: paste an article, ask several questions, see the answers.

finished runs -> a page on this machine -> answers with confidence and position

python app.py                                    all finished runs of outputs/, newest first
python app.py --run outputs/demo-...             this run first
python app.py --share                            also at a public address, behind a password

Programs call the endpoint /answer: docs/export.md.
"""

import os
from importlib.util import find_spec

from dandap.cli import Parser, add_options, chosen_options, parse, positive, run_script
from dandap.errors import InputError
from dandap.model.distributed import reject_multiprocess
from dandap.recipe import ANSWERING


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and serve the page until Ctrl-C."""
    arguments = parse(command_line(), argv)
    if arguments.port > 65535:
        raise InputError(f"--port: got {arguments.port}, expected at most 65535.")
    reject_multiprocess("app.py")
    # Both libraries read these on import: no telemetry.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_DISABLE_TELEMETRY": "1"}
    if not find_spec("gradio"):
        raise InputError("gradio is not installed. Run pip install -r requirements-extra.txt")

    from dandap.page.serve import serve  # loads torch and Gradio

    options = chosen_options(arguments)
    serve(arguments.run, arguments.output_dir, options, arguments.port, arguments.share)


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("--run", metavar="NAME|PATH", help="the run to show first (default: the newest)")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    add("--port", metavar="N", type=positive, default=7860, help="port of the page (default: 7860)")
    share = "add a public address through Gradio's servers, with a random password"
    add("--share", action="store_true", help=share)
    add_options(parser, "generation (overrides the runs' recipes)", ANSWERING)
    return parser


if __name__ == "__main__":
    run_script(main)
