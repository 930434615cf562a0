"""dandap/korean.yaml translates every text of the pages, and no others."""

import ast
import re
from pathlib import Path

from dandap import language
from dandap.language import korean

FIELD = re.compile(r"\{(\w+)\}")
# An f-string in the table header of tasks.dialogue_inference.
FORMATTED = {f"predicted {letter}" for letter in "ABC"}


def test_all_page_texts_are_translated_and_no_translation_is_unused():
    called, written = set(), set(FORMATTED)
    files = [path for folder in ("dandap", "tasks", "tools") for path in Path(folder).rglob("*.*")]
    for file in [*Path().glob("*.py"), *files]:
        if file.suffix == ".jinja":
            called |= set(re.findall(r'\bt\("([^"]+)"', file.read_text(encoding="utf-8")))
        if file.suffix != ".py":
            continue
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                written.add(node.value)
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "t":
                called |= {text.value for text in node.args[:1] if isinstance(text, ast.Constant)}
    assert len(called) > 40
    assert called - korean().keys() == set(), "add these to dandap/korean.yaml"
    assert korean().keys() - called - written == set(), "remove these from dandap/korean.yaml"


def test_translations_are_korean_and_have_the_same_fields():
    for english, translation in korean().items():
        fields = FIELD.findall(english)
        assert sorted(fields) == sorted(FIELD.findall(translation)), english
        assert re.search("[가-힣]", translation), english


def test_the_locale_sets_the_default_language(monkeypatch):
    for variables, expected in (
        ({"LANG": "ko_KR.UTF-8"}, "ko"),
        ({"LC_ALL": "C.UTF-8", "LANG": "ko_KR.UTF-8"}, "en"),
    ):
        for name in ("LC_ALL", "LC_MESSAGES", "LANG"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        language.set_language(None)
        assert language.current() == expected, variables
    language.set_language("en")
