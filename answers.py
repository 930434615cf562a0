"""Questions -> answers -> a score and a report, for both scripts: in training for validation, in inference for a test file."""

import json
from collections.abc import Container, Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from peft import PeftModel
from transformers import PreTrainedTokenizerBase

import metrics
import prompts
from dandap.answering import check_answering, make_decoding, predict
from dandap.dataset import Row
from dandap.encoding import Encoder, Example
from dandap.progress import counting, track
from dandap.recipe import Recipe
from dandap.report import Report, read_history, write_report
from dandap.run_folder import RunFolder
from dandap.selection import KeepBest, metric_label, some_of, steps_between
from dandap.storage import append_json, write_json_lines
from tasks import Task, answer_shape, get_task, prediction_record, score_rows, write_predictions


def make_encoder(recipe: Recipe, template: prompts.Template, tokenizer: PreTrainedTokenizerBase) -> Encoder:
    """What encodes rows of the recipe's task with a template."""
    task = get_task(recipe.task)

    def render(context: str, row: Row, answer: str) -> prompts.Template:
        return prompts.render(template, task.fields(context, row, answer))

    return Encoder(tokenizer, render, task.sample)


def encode(recipe: Recipe, encoder: Encoder, rows: list[Row]) -> list[Example]:
    """Prompts within the recipe's limit; what is trimmed is told."""
    encoding = partial(track, description="encoding")
    examples = encoder.encode_rows(rows, recipe.prompt_limit, answers=False, on_overflow=recipe.on_overflow, track=encoding)
    tell_cut(recipe, examples)
    return examples


def loses_answer(example: Example) -> bool:
    """Whether the answer stands in the article, and no longer in what is left of it: the model would learn to invent."""
    row = example.row
    if not example.trimmed or row.choices:
        return False
    return any(a in row.context for a in row.answers) and not any(a in example.context for a in row.answers)


def tell_cut(recipe: Recipe, examples: list[Example]) -> None:
    """Tell whose article is not whole, and whose answer went with it."""
    cut = [example.row.id for example in examples if example.trimmed]
    if cut:
        how = "trimmed" if recipe.on_overflow == "trim" else "cut to the sentences nearest to its questions"
        print(f"{len(cut)} questions have their article {how}, for max_length={recipe.max_length}: {some(cut)}")
    lost = [example.row.id for example in examples if loses_answer(example)]
    if lost:
        way_out = "a larger --max_length" if recipe.on_overflow == "select" else "--on_overflow select, or a larger --max_length"
        print(
            f"WARNING: {len(lost)} of {len(examples):,} answers are no longer in what is left of their article, which teaches to "
            f"invent; the way out: {way_out}: {some(lost)}"
        )


def answer_rows(
    recipe: Recipe,
    encoder: Encoder,
    model,
    examples: list[Example],
    tokens_per_batch: int,
    doing: str | None,
    known: Container[str] = (),
) -> Iterator[dict]:
    """Prediction records as answers come (the largest articles first), but for known ids; `doing` labels the bar, if any."""
    if recipe.samples > 1 and not recipe.temperature:
        print(f"the {recipe.samples} samples are all alike at temperature 0; --temperature 0.7 lets them differ")
    task = get_task(recipe.task)
    done = {index for index, example in enumerate(examples) if example.row.id in known}
    bar = counting(doing, len(examples), "questions") if doing else nullcontext(lambda count: None)
    with bar as advance:
        for index, answers in predict(model, encoder, examples, recipe, tokens_per_batch, advance, done):
            texts = [answer.text for answer in answers]
            record = prediction_record(task, examples[index], answers[metrics.consensus(texts)])
            yield record | ({"samples": texts} if len(texts) > 1 else {})


def some(ids: list[str]) -> str:
    """The first five of many ids."""
    return ", ".join(ids[:5]) + (f" and {len(ids) - 5} more" if len(ids) > 5 else "")


@dataclass(frozen=True)
class Validation:
    """The validation questions, answered by generation as inference will answer."""

    recipe: Recipe
    encoder: Encoder
    model: PeftModel
    examples: list[Example]
    tokens_per_batch: int

    def answer(self, examples: list[Example], doing: str | None = None) -> list[dict]:
        """Records in the examples' order; `doing` labels a bar, if there is one."""
        answers = answer_rows(self.recipe, self.encoder, self.model, examples, self.tokens_per_batch, doing)
        records = {record["id"]: record for record in answers}
        return [records[example.row.id] for example in examples]

    def callback(self, run: RunFolder, questions: int) -> list[KeepBest]:
        """What evaluates on some of the questions while training on so many, if that is wanted."""
        every = steps_between(self.recipe, questions)
        if not self.examples or not every:
            return []
        check_answering(
            self.model, self.encoder, self.examples, self.recipe, make_decoding(self.model, self.encoder, self.recipe)
        )
        chosen = some_of(self.examples, self.recipe.evaluate_questions)
        rows = [example.row for example in chosen]
        metric = get_task(self.recipe.task).headline[0]
        return [
            KeepBest(lambda: score(self.recipe, rows, self.answer(chosen)), every, self.recipe.patience, run.metrics_file, metric)
        ]

    def finish(self, run: RunFolder) -> None:
        """Answer all; score, print, keep and report them."""
        records = self.answer(self.examples, "validating")
        scores = final_score(self.recipe, [example.row for example in self.examples], records)
        write_json_lines(run.validation_record, records)
        write_predictions(run.validation_file, records)
        append_json(run.metrics_file, {"validation": scores})
        print_score(get_task(self.recipe.task), "validation", scores)
        environment, findings = (
            json.loads(file.read_text(encoding="utf-8")) for file in (run.environment_file, run.findings_file)
        )
        rows, history = [example.row for example in self.examples], read_history(run.metrics_file)
        report(run.path, f"{run.path.name}: validation", self.recipe, rows, records, scores, environment, history, findings)


def score(recipe: Recipe, rows: list[Row], records: list[dict]) -> dict | None:
    """The task's scores and what the answers look like; None when not every row has a gold answer."""
    scores = score_rows(get_task(recipe.task), rows, [record["prediction"] for record in records])
    return scores and scores | answer_shape(records)


def final_score(recipe: Recipe, rows: list[Row], records: list[dict]) -> dict | None:
    """`score`, and what is scored only at the end."""
    scores = score(recipe, rows, records)
    return scores and scores | get_task(recipe.task).final_score(recipe, rows, [record["prediction"] for record in records])


def report(
    folder: Path,
    title: str,
    recipe: Recipe,
    rows: list[Row],
    records: list[dict],
    scores: dict,
    environment: dict,
    history: list[dict] = (),
    findings: dict | None = None,
) -> None:
    """report.html of scored answers."""
    page = write_report(
        folder,
        Report(
            title=title,
            records=records,
            contexts={row.id: row.context for row in rows},
            scores=scores,
            headline=get_task(recipe.task).headline,
            settings=recipe.differences(),
            environment=environment,
            interval=metrics.bootstrap_interval,
            likeness=metrics.char_f1,
            history=list(history),
            findings=findings,
        ),
    )
    print(f"report: {page}")


def print_score(task: Task, name: str, scores: dict) -> None:
    """What the answers look like, and the scores with their intervals and what they are."""
    if "confusion" in scores:
        for category, of in sorted(scores["by_category"].items()):
            print(f"{name}: {category} {of['accuracy']:.4f} of {of['questions']}")
        for gold, said in scores["confusion"].items():
            print(f"{name}: where {gold} is right it said " + ", ".join(f"{letter} {count}" for letter, count in said.items()))
    else:
        print(
            f"{name}: {scores['mean_length']:.1f} characters an answer, {scores['stopped']:.1%} stopped, "
            f"{scores['spans']:.1%} stand in their article, {scores['repeating']:.1%} repeat themselves"
        )
    said = []
    for metric in task.headline:
        low, high = scores[f"{metric}_interval"]
        said.append(f"{metric_label(metric)} {scores[metric]:.4f} ({'' if said else '95% '}{low:.4f} to {high:.4f})")
    if "similarity" in scores:
        similarity = scores["similarity"]
        mean, best = (f"{similarity[kind]:.4f}" for kind in ("mean", "best"))
        print(f"{name}: cosine similarity {mean} (mean), {best} (best), by {similarity['model']}")
    print(f"{name}: {'  '.join(said)}  {scores['questions']} questions, {scores['articles']} articles, {scores['metric']}")
