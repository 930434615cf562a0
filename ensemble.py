"""Combine several files of answers into one: python ensemble.py A B C.

A, B and C are each a run, a folder of answers, or a .csv or .jsonl file.

--method f1_sum   the answer most similar to all others: the highest sum of pairwise character F1
                  (minimum Bayes risk); the default
         vote     the answer most members gave (equal by the metric's rules); ties go to the
                  member listed first
         vote_f1  the same; ties go by the sum of F1, then to the member listed first
         hard     a vote over choices; ties go to the largest summed probability, then to the
                  member listed first
"""

import json

from dandap.cli import Parser, parse, run_script
from dandap.runs.ensemble import METHODS, combine


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the result that its last line prints as JSON."""
    parser = Parser(__doc__)
    add = parser.add_argument
    add(
        "members",
        nargs="+",
        metavar="RUN|FILE",
        help="answers to the same questions; earlier ones win ties",
    )
    add("--method", choices=list(METHODS), default="f1_sum", help="see above (default: f1_sum)")
    add("--split", choices=["validation"], help="combine the validation answers of runs")
    add(
        "--output_dir",
        metavar="DIR",
        default="outputs",
        help="where runs are and the result goes (default: outputs)",
    )
    add("--output", metavar="FILE", help="also write the submission there")
    add("--overwrite", action="store_true", help="let --output replace a file")
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
    print(json.dumps(result, ensure_ascii=False))
    return result


if __name__ == "__main__":
    run_script(main)
