"""Export a run as a model that others load: transformers, vLLM, llama.cpp, Ollama, PEFT.

run -> validation answered -> adapter merged into its base -> validation answered again -> a folder

python export.py                                 the newest finished run, as merged weights
python export.py outputs/demo-... --to gguf      one file for llama.cpp, with an Ollama Modelfile
python export.py demo-... --to adapter           the adapter, which PEFT loads from any folder
python export.py demo-... --push_to_hub NAME     also into a private repository of the hub

The base is dequantized before the adapter is merged. An export that scores lower than the run by
more than chance is rejected and removed.
"""

import json

from dandap.cli import Parser, add_options, chosen_options, parse, run_script
from dandap.model.distributed import reject_multiprocess


def main(argv: list[str] | None = None) -> None:
    """Run the command line; the last line printed is the result as JSON."""
    arguments = parse(command_line(), argv)
    reject_multiprocess("export.py")

    from dandap.export.run import export, sign_in, upload  # loads torch

    repository = sign_in(arguments.push_to_hub) if arguments.push_to_hub else None
    folders = {"exports_dir": arguments.exports_dir, "output_dir": arguments.output_dir}
    options = chosen_options(arguments)
    folder = export(arguments.run, arguments.to, repository=repository, options=options, **folders)
    address = upload(folder, repository) if repository else None
    print(json.dumps({"folder": str(folder), "hub": address}, ensure_ascii=False))


def command_line() -> Parser:
    """Return the options."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("run", metavar="RUN", nargs="?", help="name or path (default: the newest finished run)")
    kinds = "merged: whole weights; gguf: a file for llama.cpp; adapter: for PEFT (default: merged)"
    add("--to", choices=["merged", "gguf", "adapter"], default="merged", help=kinds)
    add("--push_to_hub", metavar="NAME", help="also upload to the hub; a new repository is private")
    add("--exports_dir", metavar="DIR", help="folder of exports (default: exports/ of the run)")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    fields = ("train_file", "compute_dtype", "trust_remote_code")
    add_options(parser, "over the run's recipe", fields)
    return parser


if __name__ == "__main__":
    run_script(main)
