"""The bundled dialogues: their situations, particles, and that only the dialogue has the answer."""

import json
import re
import shutil
from collections import Counter, defaultdict
from pathlib import Path

import pytest

import fine_tune
from dandap.answering.run import answer, find_source
from tasks.dialogue_inference import INFERENCES, TASK
from tools.demo.dialogues import FEELINGS, make_dialogues
from tools.demo.situations import TEST, TRAIN, Situation

SAMPLE = Path("data/sample")
PHRASES = ("asks", "tells", "plans", "causes", "wishes", "steps", "tasks")


@pytest.fixture(scope="module")
def train():
    return [item for dialogue in make_dialogues(TRAIN, 220, 42) for item in dialogue]


def phrases(situation: Situation) -> list[str]:
    return [phrase for name in PHRASES for phrase in getattr(situation, name)]


def things(situation: Situation) -> set[str]:
    """Return the words of the topic, those with a particle, and the first word of every step."""
    names = set(situation.topic.split()) | {step.split()[0] for step in situation.steps}
    for phrase in phrases(situation):
        names |= {w[:-1] for w in phrase.split() if len(w) > 2 and w[-1] in "이가을를은는에"}
    return names


def content(statement: str) -> str:
    """Return a statement without whom it is of."""
    return statement.split(" ", 1)[1] if statement.startswith("화자") else statement


def test_the_tests_situations_are_not_in_train():
    ours = {name for situation in TRAIN for name in things(situation)}
    others = {name for situation in TEST for name in things(situation)}
    assert len(ours) > 200
    assert not ours & others
    assert not {p for s in TRAIN for p in phrases(s)} & {p for s in TEST for p in phrases(s)}
    # What fills the talks, as the shipped files have it: feelings alone are on both sides.
    said = []
    for name in ("train", "test"):
        items = json.loads((SAMPLE / f"dialogue_{name}.json").read_text(encoding="utf-8"))
        said.append({content(item["input"][name]) for item in items for name in INFERENCES})
    assert {text.removesuffix(".") for text in said[0] & said[1]} == set(FEELINGS)


def features(options: list[str]) -> list[tuple]:
    """Return what can be seen of each option without the dialogue: whom and what it shares."""
    seen = []
    for option in options:
        lengths = sorted(map(len, options))
        shared = sum(content(option) == content(other) for other in options)
        person = sum(option[:3] == other[:3] for other in options) if "화자" in option else 0
        seen.append((shared, person, lengths.index(len(option))))
    return seen


def test_options_alone_do_not_tell_the_answer(train):
    """A table of how often options of each look are right, from one half, guesses the other."""
    right, shown = Counter(), Counter()
    for number, item in enumerate(train):
        options = [item["input"][name] for name in INFERENCES]
        for name, look in zip(INFERENCES, features(options), strict=True):
            for key in (look, options[INFERENCES.index(name)]):
                shown[key] += number % 2
                right[key] += (number % 2) * (name == item["output"])
    hits = defaultdict(int)
    for item in train[::2]:
        options = [item["input"][name] for name in INFERENCES]
        for by, keys in (("look", features(options)), ("statement", options)):
            rates = [(right[key] + 1) / (shown[key] + 3) for key in keys]
            hits[by] += INFERENCES[rates.index(max(rates))] == item["output"]
    for by, count in hits.items():
        # 0.05 is about two standard errors of 330 guesses.
        assert abs(count / 330 - 1 / 3) < 0.06, by


def pairs(text: str) -> set[str]:
    """Return the pairs of syllables that stand side by side in a word."""
    words = re.findall(r"[가-힣]+", text)
    return {word[at : at + 2] for word in words for at in range(len(word) - 1)}


@pytest.mark.parametrize(("speaker_first", "expected"), [(False, 0.46), (True, 0.56)])
def test_words_in_common_with_the_dialogue_tell_little(speaker_first, expected):
    """Guess the option with most in common, of the target's speaker if any; a tie is a part hit."""
    items = json.loads((SAMPLE / "dialogue_test.json").read_text(encoding="utf-8"))
    lines = (SAMPLE / "dialogue_test_answers.csv").read_text(encoding="utf-8").splitlines()[1:]
    hits = 0.0
    for item, line in zip(items, lines, strict=True):
        turns = item["input"]["conversation"]
        (target,) = (t for t in turns if t["utterance_id"] in item["input"]["reference_id"])
        said, scores = pairs(" ".join(turn["utterance"] for turn in turns)), []
        for name in INFERENCES:
            statement = item["input"][name]
            ours = pairs(content(statement))
            is_speaker = statement.startswith(f"화자{target['speaker']}")
            scores.append((speaker_first and is_speaker, len(ours & said) / len(ours)))
        best = [letter for letter, of in zip("ABC", scores, strict=True) if of == max(scores)]
        hits += (line[-1] in best) / len(best)
    assert round(hits / len(items), 2) == expected


def test_the_shipped_test_has_its_answers_apart():
    rows = TASK.read([SAMPLE / "dialogue_test.json"], {}, False).rows
    assert len(rows) == 120
    assert not any(row.answers for row in rows)
    lines = (SAMPLE / "dialogue_test_answers.csv").read_text(encoding="utf-8").splitlines()[1:]
    assert [line.split(",")[0] for line in lines] == [row.id for row in rows]
    assert Counter(line[-1] for line in lines) == {"A": 40, "B": 40, "C": 40}


def in_other_dialogues(items: list[dict]) -> list[dict]:
    """Return the items with dialogue and referred turn of another one of their category."""
    of_category, swapped = defaultdict(list), []
    for item in items:
        of_category[item["input"]["category"]].append(item)
    for item in items:
        alike = of_category[item["input"]["category"]]
        other = alike[(alike.index(item) + 7) % len(alike)]["input"]
        taken = {name: other[name] for name in ("conversation", "reference_id")}
        swapped.append({**item, "input": item["input"] | taken})
    return swapped


@pytest.mark.slow
def test_the_demo_learns_what_dialogues_say(tmp_path):
    """Unseen situations are answered well, and no better than by chance from other dialogues."""
    out = str(tmp_path)
    fine_tune.main(["--recipe", "dialogue-demo", "--output_dir", out])
    source = find_source(None, out)
    assert answer(source).scores["accuracy"] >= 0.6
    items = json.loads((SAMPLE / "dialogue_test.json").read_text(encoding="utf-8"))
    test = tmp_path / "test.json"
    test.write_text(json.dumps(in_other_dialogues(items), ensure_ascii=False), encoding="utf-8")
    shutil.copy(SAMPLE / "dialogue_test_answers.csv", tmp_path / "test_answers.csv")
    assert answer(source, str(test)).scores["accuracy"] < 0.45
