"""Several files of answers -> one: python ensemble.py A B C, each a run, a folder of answers, or a .csv or .jsonl file.

--method f1_sum   the answer most like all others: the highest sum of pairwise character F1 (minimum Bayes risk); the default
         vote     the answer most members gave (equal by the metric's rules); ties go to the member listed first
         vote_f1  the same; ties go by the sum of F1, then to the member listed first
         stack    f1_sum with weights: each run's expected F1 at its confidence, learned on its validation answers
         hard     a vote over choices; ties go to the largest summed probability, then to the member listed first
"""

import dandap.start  # noqa: F401

import json
import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import fmean, linear_regression

import metrics
from dandap.dataset import Row
from dandap.errors import InputError, run_script
from dandap.journal import RECORD
from dandap.predictions import find_predictions, load_predictions, run_of, same_questions
from dandap.recipe import Parser, make_recipe, parse
from dandap.storage import check_writable, copy_whole, new_folder, read_json, refuse_output, write_json, write_json_lines
from tasks import SubmissionForm, form_of, get_task, write_dialogue, write_predictions, write_submission

Pick = Callable[[Sequence[dict]], int]  # the members' records of one question -> whose answer is taken


def f1_sum(records: Sequence[dict]) -> int:
    """Whose answer has the highest summed F1 with the others'; the first of equals."""
    return metrics.consensus(_answers(records))


def vote(records: Sequence[dict]) -> int:
    """Whose answer most members gave; the first listed of equals."""
    return _most_common(records, break_tie=lambda tied: tied[0])


def vote_f1(records: Sequence[dict]) -> int:
    """Whose answer most members gave; ties by the summed F1 with all members' answers, then the first listed."""
    answers = _answers(records)
    gains = [sum(metrics.char_f1(mine, other) for other in answers) for mine in answers]
    return _most_common(records, break_tie=lambda tied: max(tied, key=lambda index: (gains[index], -index)))


def hard(records: Sequence[dict]) -> int:
    """Which choice most members made; ties by the choices' summed probabilities, then the first listed."""
    if not all(record.get("choices") for record in records):
        raise InputError(
            "hard votes over choices, and a member's answers have none: answer with --choices, or use --method vote."
        )
    chances = [_probabilities(record["choices"]) for record in records]
    summed = [sum(chance.get(record["prediction"], 0.0) for chance in chances) for record in records]
    return _most_common(records, break_tie=lambda tied: max(tied, key=lambda index: (summed[index], -index)))


def _answers(records: Sequence[dict]) -> list[str]:
    return [record["prediction"] for record in records]


def _groups(records: Sequence[dict]) -> list[list[int]]:
    """Members with the same answer by the metric's rules, in the order of their first."""
    groups: dict[str, list[int]] = {}
    for index, answer in enumerate(_answers(records)):
        groups.setdefault(metrics.normalize(answer).replace(" ", ""), []).append(index)
    return list(groups.values())


def _most_common(records: Sequence[dict], break_tie: Callable[[list[int]], int]) -> int:
    groups = _groups(records)
    most = max(map(len, groups))
    return break_tie([group[0] for group in groups if len(group) == most])


def _probabilities(log_probabilities: dict[str, float]) -> dict[str, float]:
    """Of choices, summing to 1."""
    highest = max(log_probabilities.values())
    chances = {choice: math.exp(value - highest) for choice, value in log_probabilities.items()}
    return {choice: chance / sum(chances.values()) for choice, chance in chances.items()}


def learn_stack(members: list[Path]) -> Pick:
    """A pick whose weights were learned on the runs' validation answers: F1 as a straight line over confidence, run by run."""
    validations = {str(path): load_predictions(_validation_of(path)) for path in members}
    same_questions(validations)
    lines = [_fit(records) for records in validations.values()]

    def stack(records: Sequence[dict]) -> int:
        expected = (base + slope * _confidence(record) for (base, slope), record in zip(lines, records, strict=True))
        weights = [min(max(weight, 0.0), 1.0) for weight in expected]
        return metrics.consensus(_answers(records), weights)

    for path, (base, slope) in zip(members, lines, strict=True):
        print(f"stack: weight of {path} = {base:.3f} + {slope:.3f} x confidence")
    return stack


def _validation_of(path: Path) -> Path:
    """The validation answers of the run that a file of answers lies in."""
    run = run_of(path)
    if run is None:
        raise InputError(f"stack learns on validation answers, and {path} lies in no run folder. Name runs, or another --method.")
    return find_predictions(str(run.path), "", split="validation")


def _fit(records: list[dict]) -> tuple[float, float]:
    """(base, slope) of F1 over confidence by least squares; the slope never negative."""
    if not all(record.get("gold") for record in records):
        raise InputError("stack learns on validation answers with gold answers; these have none. Choose another --method.")
    confidence = [_confidence(record) for record in records]
    f1 = [metrics.char_f1(record["prediction"], record["gold"]) for record in records]
    if len(set(confidence)) > 1:
        slope, base = linear_regression(confidence, f1)
        if slope > 0:
            return base, slope
    return fmean(f1), 0.0


def _confidence(record: dict) -> float:
    """The geometric mean of the answer tokens' probabilities."""
    if "log_probability" not in record:
        raise InputError("stack needs the answers' log-probabilities: name runs or predictions.jsonl files, not CSVs.")
    return math.exp(record["log_probability"])


METHODS: dict[str, Pick | None] = {"f1_sum": f1_sum, "vote": vote, "vote_f1": vote_f1, "stack": None, "hard": hard}


def agreement(questions: Sequence[Sequence[dict]]) -> dict[str, int]:
    """How often the members agreed: {"3:0": all three, "2:1": ..., "1:1:1": three answers}, the fullest agreement first."""

    def pattern(records: Sequence[dict]) -> str:
        sizes = sorted((len(group) for group in _groups(records)), reverse=True)
        return ":".join(map(str, sizes if len(sizes) > 1 else [*sizes, 0]))

    counts = Counter(map(pattern, questions))
    return {name: counts[name] for name in sorted(counts, key=lambda name: [int(size) for size in name.split(":")], reverse=True)}


def main(argv: list[str] | None = None) -> dict:
    """The command line; returns the result that its last line prints as JSON."""
    arguments = parse(command_line(), argv)
    refuse_output(arguments.output, arguments.overwrite)
    check_writable(Path(arguments.output_dir), "Name another --output_dir.")
    paths = [find_predictions(name, arguments.output_dir, arguments.split) for name in arguments.members]
    if len(paths) < 2:
        raise InputError(f"got {len(paths)} member; an ensemble needs at least two.")
    members = same_questions({str(path): load_predictions(path) for path in _all_different(paths)})
    refuse_other_settings(paths)
    questions = list(zip(*members, strict=True))
    if arguments.method == "f1_sum" and len(members) == 2:
        print(f"two members' answers are as like to one another: f1_sum must take the first, if it is not empty ({paths[0]})")
    pick = METHODS[arguments.method] or learn_stack(paths)
    picked = [pick(records) for records in questions]
    records = [_merge(records, index) for records, index in zip(questions, picked, strict=True)]

    counts = agreement(questions)
    print("agreement: " + ", ".join(f"{pattern} {count:,}" for pattern, count in counts.items()))
    scores = tell_scores(paths, members, records)
    folder = new_folder(arguments.output_dir, f"ensemble-{arguments.method}")
    write_json_lines(folder / RECORD, records)
    write_predictions(folder / "predictions.csv", records)
    submission = None if arguments.split else write_joined(folder, paths, records)
    made_of = {
        "method": arguments.method,
        "members": list(map(str, paths)),
        "taken": [picked.count(i) for i in range(len(paths))],
    }
    write_json(folder / "ensemble.json", made_of | {"agreement": counts, "scores": scores})
    if submission:
        print(f"submission: {submission} ({len(records):,} rows, read back and checked)")
    if submission and arguments.output:
        copy_whole(submission, Path(arguments.output))
    result = {
        "method": arguments.method,
        "questions": len(records),
        "char_f1": scores and scores["ensemble"]["char_f1"],
        "submission": submission and str(submission),
    }
    print(json.dumps(result, ensure_ascii=False))
    return result


def command_line() -> Parser:
    """Which answers, and how they become one."""
    parser = Parser(__doc__)
    parser.add_argument("members", nargs="+", metavar="RUN|FILE", help="answers to the same questions; earlier ones win ties")
    parser.add_argument("--method", choices=list(METHODS), default="f1_sum", help="see above (default: f1_sum)")
    parser.add_argument("--split", choices=["validation"], help="of runs, the answers on their validation questions")
    parser.add_argument(
        "--output_dir", metavar="DIR", default="outputs", help="where runs are and the result goes (default: outputs)"
    )
    parser.add_argument("--output", metavar="FILE", help="also write the submission there")
    parser.add_argument("--overwrite", action="store_true", help="let --output replace a file")
    return parser


def _all_different(paths: list[Path]) -> list[Path]:
    twice = [str(path) for path, count in Counter(path.resolve() for path in paths).items() if count > 1]
    if twice:
        raise InputError(f"{twice[0]} is a member twice; name each file once.")
    return paths


ANSWERED_ALIKE = ("task", "samples", "temperature", "grounded", "choices", "choices_by", "beams", "repetition_penalty")


def refuse_other_settings(paths: list[Path]) -> None:
    """Refuse members that were answered in different ways: a vote of free texts with 예 and 아니오 means nothing."""
    settings = {path: _settings(path) for path in paths}
    known = {path: found for path, found in settings.items() if found}
    for path, found in known.items():
        first, expected = next(iter(known.items()))
        odd = [name for name in ANSWERED_ALIKE if found.get(name) != expected.get(name)]
        if odd:
            raise InputError(
                f"{first} and {path} were answered in different ways: "
                + ", ".join(f"{name} {expected.get(name)!r} and {found.get(name)!r}" for name in odd)
                + ". Name folders of answers (RUN/answers/...) that were made alike, or answer again."
            )


def _settings(path: Path) -> dict:
    """How answers were made: of an inference beside them, of validation answers in their run's recipe; {} where unknown."""
    noted = path.with_name("scores.json")
    if noted.is_file():
        return read_json(noted).get("recipe") or {}
    run = run_of(path)
    return run.load_recipe().model_dump() if run and path == run.validation_record else {}


def _merge(records: Sequence[dict], index: int) -> dict:
    """The record that was taken, with what a sparser file may lack, and all members' answers."""
    known: dict = {}
    for record in records:
        known = {name: record[name] for name in ("question", "gold", "article") if record.get(name)} | known
    taken = {name: value for name, value in records[index].items() if name not in ("key", "samples")}
    merged = {"id": records[0]["id"], **taken, **known, "members": _answers(records), "member": index + 1}
    if merged.get("gold"):
        merged["char_f1"] = metrics.char_f1(merged["prediction"], merged["gold"])
        merged["exact_match"] = metrics.exact_match(merged["prediction"], merged["gold"])
    return merged


def tell_scores(paths: list[Path], members: list[list[dict]], records: list[dict]) -> dict | None:
    """Each member's score and the ensemble's, where gold answers are known."""
    if not all(record.get("gold") and record.get("article") for record in records):
        print("no score: not every question has a known gold answer")
        return None
    golds, articles = [r["gold"] for r in records], [r["article"] for r in records]
    answered = {str(path): _answers(member) for path, member in zip(paths, members, strict=True)}
    scores = {
        name: metrics.score(answers, golds, articles) for name, answers in (answered | {"ensemble": _answers(records)}).items()
    }
    label = "accuracy" if all(record.get("choices") for record in records) else "char F1"  # the same for single letters
    for name, score in scores.items():
        low, high = score["char_f1_interval"]
        print(f"  {label} {score['char_f1']:.4f} (95% {low:.4f} to {high:.4f})  exact match {score['exact_match']:.4f}  {name}")
    return scores


def write_joined(folder: Path, paths: list[Path], records: list[dict]) -> Path:
    """The submission: final-result.json of dialogues, sentence embeddings of wallpaper answers, else as the first member's."""
    predictions, ids = [record["prediction"] for record in records], [record["id"] for record in records]
    dialogue, noted = paths[0].with_name("submission.json"), paths[0].with_name("scores.json")
    if dialogue.is_file():
        return write_dialogue(folder / "final-result.json", dialogue, predictions)
    fields = read_json(noted).get("recipe", {}) if noted.is_file() else {}
    if fields.get("task") == "wallpaper_qa":
        recipe, rows = make_recipe(fields, str(noted)), [Row(name, "", "") for name in ids]
        submission, note = get_task(recipe.task).submit(recipe, folder, paths[0], rows, predictions, SubmissionForm())
        print(note)
        return submission
    form = submission_like(paths[0], ids)
    if form.note:
        print(form.note)
    write_submission(folder / "submission.csv", form, ids, predictions)
    return folder / "submission.csv"


def submission_like(member: Path, ids: Sequence[str]) -> SubmissionForm:
    """The columns, byte-order mark and order of a member's submission; without one, the main task's."""
    for path in (member.with_name("submission.csv"), member):
        if path.suffix.lower() != ".csv" or not path.is_file() or not (form := form_of(path)):
            continue
        if sorted(form.order) != sorted(ids):
            return replace(form, order=())
        told = f"the submission's rows stand in the order of {path}" if list(form.order) != list(ids) else None
        return replace(form, note=told)
    return SubmissionForm()


if __name__ == "__main__":
    run_script(main)
