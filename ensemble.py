"""Combine the answers of several runs or files: python ensemble.py A B C.

Each member is a run, a folder of answers, or a .csv or .jsonl file.

--method f1_sum   the answer with the highest total character F1 against all others (minimum Bayes
                  risk); the default
         vote     the most frequent answer after normalization
         vote_f1  the same; ties go to the highest total F1
         hard     the most frequent choice; ties go to the highest total probability

Remaining ties go to the member listed first.
"""

import json

from dandap.cli import Parser, parse, run_script
from dandap.runs.ensemble import METHODS, combine


def main(argv: list[str] | None = None) -> dict:
    """Parse the arguments, run, and return the result, which --json prints."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add("members", nargs="+", metavar="RUN|FILE", help="answers to the same questions")
    add("--method", choices=list(METHODS), default="f1_sum", help="see above (default: f1_sum)")
    add("--split", choices=["validation"], help="combine the validation answers of runs")
    add("--output_dir", metavar="DIR", default="outputs", help="folder of runs (default: outputs)")
    add("--output", metavar="FILE", help="copy the submission to this file")
    add("--overwrite", action="store_true", help="allow --output to replace a file")
    add("--json", action="store_true", help="also print the result as JSON")
    arguments = parse(parser, argv)
    combined = combine(
        arguments.members,
        method=arguments.method,
        output_dir=arguments.output_dir,
        split=arguments.split,
        output=arguments.output,
        overwrite=arguments.overwrite,
    )
    result = {
        "method": arguments.method,
        "questions": len(combined.records),
        "char_f1": combined.scores and round(combined.scores["ensemble"]["char_f1"], 4),
        "submission": combined.submission and str(combined.submission),
    }
    if arguments.json:
        print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_script(main)
