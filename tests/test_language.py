"""The Korean catalog has every text of the pages, and nothing else."""

import ast
import re
from pathlib import Path

from dandap import language
from dandap.language import korean

FIELD = re.compile(r"\{(\w+)\}")
# The table of tasks.dialogue_inference has f"predicted {letter}" in its header.
BUILT = {f"predicted {letter}" for letter in "ABC"}


def test_the_catalog_has_all_texts_of_pages_and_no_others():
    called, written = set(), set(BUILT)
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
    assert len(called) > 50
    assert called - korean().keys() == set(), "add these to dandap/korean.yaml"
    assert korean().keys() - called - written == set(), "remove these from dandap/korean.yaml"


def test_fields_agree_and_the_korean_is_korean():
    for english, translation in korean().items():
        fields = FIELD.findall(english)
        assert sorted(fields) == sorted(FIELD.findall(translation)), english
        assert re.search("[가-힣]", translation), english


def test_the_locale_decides_without_an_option(monkeypatch):
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
