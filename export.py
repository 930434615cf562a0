"""Export a run for transformers, vLLM, llama.cpp, Ollama or PEFT.

run -> answer validation -> merge adapter and base -> answer validation again -> a folder

python export.py                                 the newest finished run, as merged weights
python export.py outputs/demo-... --to gguf      one file for llama.cpp, with an Ollama Modelfile
python export.py demo-... --to adapter           the adapter, which PEFT loads from any folder
python export.py demo-... --push_to_hub NAME     also upload to a private repository on the hub

The base is dequantized before the merge. An export that scores significantly lower than the run is
deleted.
"""

import json

from dandap.cli import Parser, add_options, chosen_options, parse, run_script
from dandap.model.distributed import reject_multiprocess


def main(argv: list[str] | None = None) -> None:
    """Parse the arguments and run; --json prints the result."""
    arguments = parse(command_line(), argv)
    reject_multiprocess("export.py")

    from dandap.export.run import export, sign_in, upload  # loads torch

    repository = sign_in(arguments.push_to_hub) if arguments.push_to_hub else None
    folders = {"exports_dir": arguments.exports_dir, "output_dir": arguments.output_dir}
    options = chosen_options(arguments)
    folder = export(arguments.run, arguments.to, repository=repository, options=options, **folders)
    address = upload(folder, repository) if repository else None
    if arguments.json:
        print(json.dumps({"folder": str(folder), "hub": address}, ensure_ascii=False))


def command_line() -> Parser:
    """Return the argument parser."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", help="run to export (default: the newest finished one)")
    kinds = "merged weights, a GGUF for llama.cpp, or the adapter for PEFT (default: merged)"
    add("--to", choices=["merged", "gguf", "adapter"], default="merged", help=kinds)
    add("--push_to_hub", metavar="NAME", help="upload to the hub; a new repository is private")
    add("--exports_dir", metavar="DIR", help="folder of exports (default: exports/ of the run)")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    add("--json", action="store_true", help="also print the result as JSON")
    fields = ("train_file", "compute_dtype", "trust_remote_code")
    add_options(parser, "override the run's recipe", fields)
    return parser


if __name__ == "__main__":
    run_script(main)
