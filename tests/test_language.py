"""The Korean catalogue: each text stands in the source as it is, and people meet it in Korean."""

import ast
import re
from pathlib import Path

import pytest

from dandap import language
from dandap.cli import Parser, parse, positive, run_script
from dandap.errors import InputError
from dandap.language import korean, pattern_of, t, translated
from tests.test_layout import TREES

FIELD = re.compile(r"\{(\w+)\}")


@pytest.fixture(autouse=True)
def english_again():
    yield
    language.use("en")


def texts_of(tree):
    """Return all texts of a module, each {field} of an f-string as {}."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            found.add(FIELD.sub("{}", node.value))
        elif isinstance(node, ast.JoinedStr):
            found.add(joined(node))
    return found


def joined(node):
    """Return an f-string's text, each field as {}."""
    parts = [part.value if isinstance(part, ast.Constant) else "{}" for part in node.values]
    return "".join(parts)


PAGES = [Path("dandap/runs/report.html.jinja"), Path("tools/explore.html.jinja")]
SOURCE = set().union(*map(texts_of, TREES.values()))
ON_PAGES = set()
for page in PAGES:
    called = re.findall(r'\bt\("([^"]+)"', page.read_text(encoding="utf-8"))
    ON_PAGES |= {FIELD.sub("{}", text) for text in called}


CATALOGUE = korean("texts") | korean("messages")


@pytest.mark.parametrize("english", CATALOGUE)
def test_each_text_of_the_catalogue_stands_in_the_source(english):
    """A text that was changed in the code, and not here, would silently stay English."""
    assert FIELD.sub("{}", english) in SOURCE | ON_PAGES, "change dandap/korean.yaml, too"


@pytest.mark.parametrize("english", CATALOGUE)
def test_fields_agree_and_the_korean_is_korean(english):
    fields = FIELD.findall(english)
    assert sorted(fields) == sorted(FIELD.findall(CATALOGUE[english]))
    assert len(set(fields)) == len(fields), "a name twice"
    assert re.search("[가-힣]", CATALOGUE[english])


@pytest.mark.parametrize("english", CATALOGUE)
def test_no_message_is_taken_for_another(english):
    sample = FIELD.sub(r"[\1]", english)
    patterns = [other for other in korean("messages") if pattern_of(other).fullmatch(sample)]
    if english in korean("messages"):
        assert patterns[0] == english
    else:
        assert not patterns


# Errors that stay English: a literal {context}, and two fields with nothing between them.
STAYS_ENGLISH = ("template {}: a field is its name", "--push_to_hub: {} {}")


def test_errors_are_in_the_catalogue():
    """All whose text stands where they are raised."""
    known = {FIELD.sub("{}", english) for english in CATALOGUE}
    raised = [
        node.exc.args[0]
        for name, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)
        if getattr(node.exc.func, "id", "") == "InputError" and not name.startswith("benchmarks")
    ]
    texts = [FIELD.sub("{}", node.value) for node in raised if isinstance(node, ast.Constant)]
    texts += [joined(node) for node in raised if isinstance(node, ast.JoinedStr)]
    assert len(texts) > 150
    lacking = [text for text in texts if text not in known]
    assert [text for text in lacking if not text.startswith(STAYS_ENGLISH)] == []


def test_all_texts_of_the_pages_are_in_the_catalogue():
    assert {FIELD.sub("{}", text) for text in korean("texts")} >= ON_PAGES


def test_texts_and_finished_messages():
    language.use("ko")
    assert t("Training") == "학습"
    assert t("and {count} more", count=3) == "외 3개"
    assert t("what nobody translated") == "what nobody translated"
    message = (
        "error: got the unknown option '--lerning_rate'. Did you mean 'learning_rate'? See --help."
    )
    assert translated(message) == (
        "오류: 알 수 없는 옵션 '--lerning_rate'입니다. 혹시 'learning_rate'인가요? --help를 보세요."
    )
    language.use("en")
    assert translated(message) == message
    assert t("and {count} more", count=3) == "and 3 more"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LC_ALL": "C.UTF-8", "LANG": "ko_KR.UTF-8"}, "en"),
        ({"LC_ALL": "", "LC_MESSAGES": "ko_KR.UTF-8"}, "ko"),
        ({}, "en"),
    ],
)
def test_the_locale_decides_where_no_option_does(monkeypatch, variables, expected):
    for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    language.use(None)
    assert language.chosen() == expected


def ends(capsys, main, *argv):
    """Run a script as the shell does, and return what it says on its way out."""
    with pytest.raises(SystemExit) as ended:
        run_script(lambda: main(list(argv)))
    assert ended.value.code == 2
    return capsys.readouterr().err


def test_errors_come_in_korean(tmp_path, capsys):
    import ensemble
    import inference
    from tools import explore

    where = ["--output_dir", str(tmp_path)]
    said = ends(capsys, inference.main, "--lang", "ko", *where)
    assert said == (
        f"오류: {tmp_path}에 학습을 마친 실행이 없습니다. `python fine_tune.py`로 학습하거나 "
        "--run으로 지정하세요.\n"
    )
    said = ends(capsys, ensemble.main, "a", "--lang=ko", *where)
    assert "실행 'a' 폴더가 없습니다" in said
    (tmp_path / "a.csv").write_text("id,context,answer\n1,기사,답\n", encoding="utf-8")
    said = ends(capsys, explore.main, str(tmp_path / "a.csv"), "--lang", "ko", *where)
    assert "'question' 열이 없습니다" in said
    # The language holds for one command.
    said = ends(capsys, inference.main, *where)
    assert said.startswith("error: ") and "holds no finished run" in said


def test_what_a_file_holds_is_told_in_korean(small_train, tmp_path, capsys):
    from tools import explore

    explore.main([str(small_train), "--output_dir", str(tmp_path), "--lang", "ko"])
    said = capsys.readouterr().out.splitlines()
    assert {"크기", "한 번만 읽기", "데이터 점검"} <= set(said)
    assert "  질문  20" in said


def test_a_folder_keeps_its_name(tmp_path, monkeypatch, capsys):
    """`outputs` is a heading of ours, too, and was translated."""
    import inference

    monkeypatch.chdir(tmp_path)
    said = ends(capsys, inference.main, "--lang", "ko")
    assert said.startswith("오류: outputs에 학습을 마친 실행이 없습니다.")


def test_a_mistake_before_the_option_is_told_in_its_language(capsys):
    import inference

    assert "알 수 없는 옵션" in ends(capsys, inference.main, "--rum", "x", "--lang", "ko")


@pytest.mark.parametrize(
    ("words", "english", "said"),
    [
        (["RUN", "--out_of"], "--out_of got no value, expected one. A value", "값이 없습니다"),
        (["RUN", "--by", "x"], "--by: got 'x', expected one of 'f1', 'em'", "'f1', 'em' 가운데"),
        ([], "the command line lacks RUN. See --help.", "RUN이(가) 빠졌습니다"),
        (["RUN", "--out_of", "x"], "got 'x', expected a whole number of at least 1", "1 이상"),
    ],
)
def test_argparse_speaks_our_words(words, english, said):
    parser = Parser()
    parser.add_argument("run", metavar="RUN")
    parser.add_argument("--by", choices=["f1", "em"])
    parser.add_argument("--out_of", type=positive)
    with pytest.raises(InputError) as told:
        parse(parser, [*words, "--lang", "en"])
    assert english in str(told.value)
    language.use("ko")
    assert said in translated(str(told.value))
