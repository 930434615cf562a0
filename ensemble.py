"""Join several files of answers into one: python ensemble.py A B C.

A, B and C are each a run, a folder of answers, or a .csv or .jsonl file.

--method f1_sum   the answer most like all others: the highest sum of pairwise character F1
                  (minimum Bayes risk); the default
         vote     the answer most members gave (equal by the metric's rules); ties go to the
                  member listed first
         vote_f1  the same; ties go by the sum of F1, then to the member listed first
         hard     a vote over choices; ties go to the largest summed probability, then to the
                  member listed first
"""

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import metrics
from dandap.cli import Parser, parse, run_script
from dandap.errors import InputError
from dandap.files import (
    check_writable,
    copy_whole,
    new_folder,
    read_json,
    refuse_output,
    write_json,
    write_json_lines,
)
from dandap.recipe import make_recipe
from dandap.runs.journal import RECORD
from dandap.runs.predictions import (
    add_search_options,
    find_predictions,
    load_predictions,
    run_of,
    same_questions,
    write_predictions,
)
from tasks import get_task

# The members' records of one question -> the index of the member whose answer is taken.
Pick = Callable[[Sequence[dict]], int]


def f1_sum(records: Sequence[dict]) -> int:
    """Return whose answer has the highest summed F1 with the others'; the first of equals."""
    return metrics.consensus(_answers(records))


def vote(records: Sequence[dict]) -> int:
    """Return whose answer most members gave; the first listed of equals."""
    return _most_common(records)[0]


def vote_f1(records: Sequence[dict]) -> int:
    """Return whose answer most members gave.

    Ties go to the largest summed F1 with all members' answers, then to the member listed first.
    """
    answers = _answers(records)
    gains = [sum(metrics.char_f1(mine, other) for other in answers) for mine in answers]
    return max(_most_common(records), key=lambda index: (gains[index], -index))


def hard(records: Sequence[dict]) -> int:
    """Return who made the choice that most members made.

    Ties go to the choice with the largest summed probability, then to the member listed first.
    """
    if not all(record.get("choices") for record in records):
        raise InputError(
            "hard votes over choices, and a member's answers have none: answer with --choices, "
            "or use --method vote."
        )
    chances = [_probabilities(record["choices"]) for record in records]
    summed = [
        sum(chance.get(record["prediction"], 0.0) for chance in chances) for record in records
    ]
    return max(_most_common(records), key=lambda index: (summed[index], -index))


def _answers(records: Sequence[dict]) -> list[str]:
    return [record["prediction"] for record in records]


def _groups(records: Sequence[dict]) -> list[list[int]]:
    """Return the members with the same answer by the metric's rules, in the order of the first."""
    # Spaces go too: character F1 does not count them, so answers that differ in them are equal.
    groups: dict[str, list[int]] = {}
    for index, answer in enumerate(_answers(records)):
        groups.setdefault(metrics.normalize(answer).replace(" ", ""), []).append(index)
    return list(groups.values())


def _most_common(records: Sequence[dict]) -> list[int]:
    """Return the first member of each of the largest groups; several where they tie."""
    groups = _groups(records)
    most = max(map(len, groups))
    return [group[0] for group in groups if len(group) == most]


def _probabilities(log_probabilities: dict[str, float]) -> dict[str, float]:
    """Return the probabilities of the choices, which sum to 1."""
    # The highest is taken off before exp, or very unlikely choices would all become 0, a sum of 0.
    highest = max(log_probabilities.values())
    chances = {choice: math.exp(value - highest) for choice, value in log_probabilities.items()}
    return {choice: chance / sum(chances.values()) for choice, chance in chances.items()}


METHODS: dict[str, Pick] = {"f1_sum": f1_sum, "vote": vote, "vote_f1": vote_f1, "hard": hard}


def agreement(questions: Sequence[Sequence[dict]]) -> dict[str, int]:
    """Return how often the members agreed, the fullest agreement first.

    Of three members: {"3:0": all three, "2:1": two against one, "1:1:1": three different answers}.
    """

    def pattern(records: Sequence[dict]) -> str:
        sizes = sorted((len(group) for group in _groups(records)), reverse=True)
        # All of one mind are "3:0", so that the pattern is never a single number.
        return ":".join(map(str, sizes if len(sizes) > 1 else [*sizes, 0]))

    def sizes_of(name: str) -> list[int]:
        return [int(size) for size in name.split(":")]

    counts = Counter(map(pattern, questions))
    # By numbers, because as texts "10:0" would come after "9:1".
    fullest_first = sorted(counts, key=sizes_of, reverse=True)
    return {name: counts[name] for name in fullest_first}


def main(argv: list[str] | None = None) -> dict:
    """Run the command line; return the result that its last line prints as JSON."""
    arguments = parse(command_line(), argv)
    refuse_output(arguments.output, arguments.overwrite)
    check_writable(Path(arguments.output_dir), "Name another --output_dir.")
    paths = [
        find_predictions(name, arguments.output_dir, arguments.split) for name in arguments.members
    ]
    if len(paths) < 2:
        raise InputError(f"got {len(paths)} member; an ensemble needs at least two.")
    members = same_questions({str(path): load_predictions(path) for path in _all_different(paths)})
    refuse_other_settings(paths)
    questions = list(zip(*members, strict=True))
    # Character F1 is symmetric, so of two members each gains the same from the other.
    if arguments.method == "f1_sum" and len(members) == 2:
        print(
            "two members' answers are as like to one another: f1_sum must take the first, "
            f"if it is not empty ({paths[0]})"
        )
    pick = METHODS[arguments.method]
    picked = [pick(records) for records in questions]
    records = [_merge(records, index) for records, index in zip(questions, picked, strict=True)]

    counts = agreement(questions)
    print("agreement: " + ", ".join(f"{pattern} {count:,}" for pattern, count in counts.items()))
    scores = tell_scores(paths, members, records)
    folder = new_folder(arguments.output_dir, f"ensemble-{arguments.method}-of-{len(paths)}")
    write_json_lines(folder / RECORD, records)
    write_predictions(folder / "predictions.csv", records)
    # Answers to validation questions are submitted nowhere.
    submission = None if arguments.split else write_joined(folder, paths[0], records)
    made_of = {
        "method": arguments.method,
        "members": list(map(str, paths)),
        "taken": [picked.count(i) for i in range(len(paths))],
    }
    write_json(folder / "ensemble.json", made_of | {"agreement": counts, "scores": scores})
    if submission:
        print(f"submission: {submission} ({len(records):,} rows, read back and checked)")
    # --output is written last, as in inference.py: what is cut off before leaves it as it was.
    if submission and arguments.output:
        copy_whole(submission, Path(arguments.output))
    result = {
        "method": arguments.method,
        "questions": len(records),
        "char_f1": scores and round(scores["ensemble"]["char_f1"], 4),  # for people
        "submission": submission and str(submission),
    }
    print(json.dumps(result, ensure_ascii=False))
    return result


def command_line() -> Parser:
    """Return the options: which answers are joined, and how they become one."""
    parser = Parser(__doc__)
    parser.add_argument(
        "members",
        nargs="+",
        metavar="RUN|FILE",
        help="answers to the same questions; earlier ones win ties",
    )
    parser.add_argument(
        "--method", choices=list(METHODS), default="f1_sum", help="see above (default: f1_sum)"
    )
    add_search_options(parser)
    parser.add_argument("--output", metavar="FILE", help="also write the submission there")
    parser.add_argument("--overwrite", action="store_true", help="let --output replace a file")
    return parser


def _all_different(paths: list[Path]) -> list[Path]:
    twice = [
        str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1
    ]
    if twice:
        raise InputError(f"{twice[0]} is a member twice; name each file once.")
    return paths


# Fields of a recipe that decide what kind of text an answer is.
ANSWERED_ALIKE = (
    "task",
    "samples",
    "temperature",
    "grounded",
    "choices",
    "choices_by",
    "beams",
    "repetition_penalty",
)


def refuse_other_settings(paths: list[Path]) -> None:
    """Refuse members that were answered in different ways, such as free texts beside choices."""
    settings = {path: _settings(path) for path in paths}
    # A vote of free texts with 예 and 아니오 means nothing. Files whose settings are not known (a
    # submission from elsewhere) are let through.
    known = {path: found for path, found in settings.items() if found}
    for path, found in known.items():
        first, expected = next(iter(known.items()))
        odd = [name for name in ANSWERED_ALIKE if found.get(name) != expected.get(name)]
        if odd:
            raise InputError(
                f"{first} and {path} were answered in different ways: "
                + ", ".join(
                    f"{name} {expected.get(name)!r} and {found.get(name)!r}" for name in odd
                )
                + ". Name folders of answers (RUN/answers/...) that were made alike, "
                "or answer again."
            )


def _settings(path: Path) -> dict:
    """Return the recipe that a file's answers were made with; {} where it is unknown.

    An inference noted it beside its answers; validation answers were made with their run's recipe.
    """
    noted = _noted(path)
    if noted is not None:
        return noted
    run = run_of(path)
    is_validation = run and path.resolve() == run.validation_record.resolve()
    return run.load_recipe().model_dump() if is_validation else {}


def _noted(path: Path) -> dict | None:
    """Return the recipe that an inference noted beside its answers; None where none did."""
    noted = path.with_name("scores.json")
    if not noted.is_file():
        return None
    recipe = read_json(noted).get("recipe")
    return recipe if isinstance(recipe, dict) else {}


def _merge(records: Sequence[dict], index: int) -> dict:
    """Return the record that was taken, with all members' answers and its number, from 1.

    The question, gold answers and article come from the first member that has them, because the
    file whose answer is taken may lack them (a submission has ids and answers alone).
    """
    known: dict = {}
    for record in records:
        # What is known already stands on the right, and so wins.
        known = {
            name: record[name] for name in ("question", "gold", "article") if record.get(name)
        } | known
    taken = {
        name: value for name, value in records[index].items() if name not in ("key", "samples")
    }
    merged = {
        "id": records[0]["id"],
        **taken,
        **known,
        "members": _answers(records),
        "member": index + 1,
    }
    if merged.get("gold"):
        merged["char_f1"] = metrics.char_f1(merged["prediction"], merged["gold"])
        merged["exact_match"] = metrics.exact_match(merged["prediction"], merged["gold"])
    return merged


def tell_scores(paths: list[Path], members: list[list[dict]], records: list[dict]) -> dict | None:
    """Print and return each member's score and the ensemble's; None without all gold answers."""
    if not all(record.get("gold") and record.get("article") for record in records):
        print("no score: not every question has a known gold answer")
        return None
    golds, articles = [r["gold"] for r in records], [r["article"] for r in records]
    answered = {str(path): _answers(member) for path, member in zip(paths, members, strict=True)}
    scores = {
        name: metrics.score(answers, golds, articles)
        for name, answers in (answered | {"ensemble": _answers(records)}).items()
    }
    task = get_task(make_recipe(_settings(paths[0]), str(paths[0])).task)
    label = task.label(task.headline[0])
    chosen = all(record.get("choices") for record in records)
    if chosen and "char_f1" in task.headline:
        label = "accuracy"  # an answer is the right choice or a wrong one
    for name, score in scores.items():
        low, high = score["char_f1_interval"]
        exact = "" if chosen else f"exact match {score['exact_match']:.4f}  "
        print(f"  {label} {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})  {exact}{name}")
    return scores


def write_joined(folder: Path, member: Path, records: list[dict]) -> Path:
    """Write the submission in the way of the first member's task, and return its path."""
    # Without a noted recipe this is the default one, whose task is economic QA.
    recipe = make_recipe(_noted(member) or {}, str(member))
    path, note = get_task(recipe.task).submit_joined(recipe, folder, member, records)
    if note:
        print(note)
    return path


if __name__ == "__main__":
    run_script(main)
