"""Test the bundled demo: reproducible samples, disjoint splits and minimum scores."""

import csv
import json
import random
import re
from pathlib import Path

import pytest
import torch
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

import fine_tune
from dandap.answering.run import answer, base_source, find_source
from dandap.recipe import load_recipe
from tasks.dialogue_inference import INFERENCES
from tools.demo import make as make_demo
from tools.demo import model as demo_model
from tools.demo.articles import INDUSTRIES, SURNAMES, make_article
from tools.demo.dialogues import FEELINGS
from tools.demo.situations import TEST, TRAIN, Situation

SAMPLE = Path("data/sample")


def cells(name, column):
    with (SAMPLE / name).open(encoding="utf-8", newline="") as file:
        return [row[column] for row in csv.DictReader(file)]


def test_samples_are_reproducible(tmp_path, monkeypatch):
    shipped = {path.name: path.read_bytes() for path in SAMPLE.iterdir()}
    monkeypatch.setattr(demo_model, "SAMPLE_DIR", tmp_path)
    make_demo.main(["--data"])
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == shipped


def test_names_of_the_test_set_are_not_in_train():
    train, test = " ".join(cells("train.csv", "context")), cells("test.csv", "context")
    goods = " ".join(name for kinds in INDUSTRIES.values() for name in kinds)
    company = re.compile(rf"(?<![가-힣])[가-힣]{{2,3}}(?:{'|'.join(INDUSTRIES)})")
    companies = {name for text in test for name in company.findall(text) if name not in goods}
    answers, questions = cells("test_answers.csv", "answer"), cells("test.csv", "question")
    people = {a for a, q in zip(answers, questions, strict=True) if "누구" in q}
    assert len(companies) > 60
    assert people
    assert all(person[0] in SURNAMES for person in people)
    assert not {name for name in companies | people if name in train}


@torch.no_grad()
def separate_losses(model, lessons):
    """Return the same losses as loss_of, with one forward per sequence and without masks."""
    losses, weights, attention_shares = [], [], []
    for lesson in lessons:
        for number, ids in enumerate(lesson.sequences):
            output = model(torch.tensor([ids]), output_attentions=True)
            predicted = output.logits[0, :-1]
            losses.append(cross_entropy(predicted, torch.tensor(ids[1:]), reduction="none"))
            weights.append(torch.tensor(lesson.weights[number]))
            attention = output.attentions[demo_model.POINTER_LAYER][0, -1]
            for sequence, position, source_positions in lesson.pointers:
                if sequence == number:
                    attention_shares.append(attention[position - 1, source_positions].sum())
    losses, weights = torch.cat(losses), torch.cat(weights)
    language = (losses * weights).sum() / weights.sum()
    return language.item(), -torch.stack(attention_shares).log().mean().item()


@pytest.fixture(scope="module")
def lessons():
    """Return two articles and a copy drill; the two shorter lessons fit in one row."""
    tokenizer, rng = AutoTokenizer.from_pretrained("data/demo_model"), random.Random(3)
    articles = [make_article(rng, 8, 7), make_article(rng, 3, 1)]
    article_lessons = [demo_model.article_lesson(tokenizer, article, rng) for article in articles]
    return [*article_lessons, demo_model.copy_drill(rng)]


def test_tree_losses_equal_separate_sequences(lessons):
    # A trained model has sharp attention, so a wrong mask or position changes the losses.
    model = AutoModelForCausalLM.from_pretrained("data/demo_model", dtype=torch.float32)
    batch = demo_model.make_batch(lessons)
    assert len(batch["input_ids"]) < len(lessons)  # some lessons share a row
    language, pointing = demo_model.loss_of(model, batch)
    model.set_attn_implementation("eager")  # to get attention weights
    expected = separate_losses(model, lessons)
    assert (language.item(), pointing.item()) == pytest.approx(expected, rel=1e-5)


def test_make_demo_runs(tmp_path, monkeypatch):
    monkeypatch.setattr(demo_model, "SAMPLE_DIR", tmp_path / "sample")
    monkeypatch.setattr(demo_model, "MODEL_DIR", tmp_path / "model")
    monkeypatch.setattr(demo_model, "TOKENS_PER_STEP", 800)
    make_demo.main(["--steps", "2"])
    made = AutoTokenizer.from_pretrained(tmp_path / "model")
    assert made.get_vocab() == AutoTokenizer.from_pretrained("data/demo_model").get_vocab()
    assert AutoModelForCausalLM.from_pretrained(tmp_path / "model").config.vocab_size == len(made)


@pytest.mark.slow
@pytest.mark.parametrize(("seed", "minimum"), [(42, 0.80), (1, 0.75), (2, 0.75)])
def test_demo_reaches_the_minimum_scores(tmp_path, seed, minimum):
    out = str(tmp_path)
    fine_tune.main(["--recipe", "demo", "--seed", str(seed), "--output_dir", out])
    assert answer(find_source(None, out)).scores["char_f1"] >= minimum
    base = answer(base_source(load_recipe("demo", {})), output_dir=out)
    assert base.scores["char_f1"] < 0.45


@pytest.mark.slow
def test_dialogue_demo_reaches_the_minimum_score(tmp_path):
    fine_tune.main(["--recipe", "dialogue-demo", "--output_dir", str(tmp_path)])
    assert answer(find_source(None, str(tmp_path))).scores["accuracy"] >= 0.6


PHRASES = ("asks", "tells", "plans", "causes", "wishes", "steps", "tasks")


def phrases(situation: Situation) -> list[str]:
    return [phrase for name in PHRASES for phrase in getattr(situation, name)]


def nouns(situation: Situation) -> set[str]:
    """Return the topic's words, the nouns with a particle, and the first word of every step."""
    names = set(situation.topic.split()) | {step.split()[0] for step in situation.steps}
    for phrase in phrases(situation):
        names |= {w[:-1] for w in phrase.split() if len(w) > 2 and w[-1] in "이가을를은는에"}
    return names


def content(statement: str) -> str:
    """Return a statement without its subject."""
    return statement.split(" ", 1)[1] if statement.startswith("화자") else statement


def test_situations_of_the_test_set_are_not_in_train():
    train_nouns = {name for situation in TRAIN for name in nouns(situation)}
    test_nouns = {name for situation in TEST for name in nouns(situation)}
    assert len(train_nouns) > 200
    assert not train_nouns & test_nouns
    assert not {p for s in TRAIN for p in phrases(s)} & {p for s in TEST for p in phrases(s)}
    # In the shipped files, train and test share only the feelings.
    contents = []
    for name in ("train", "test"):
        items = json.loads((SAMPLE / f"dialogue_{name}.json").read_text(encoding="utf-8"))
        contents.append({content(item["input"][name]) for item in items for name in INFERENCES})
    assert {text.removesuffix(".") for text in contents[0] & contents[1]} == set(FEELINGS)
