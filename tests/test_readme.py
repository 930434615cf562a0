"""Test README and docs: commands parse, files and links exist, both READMEs match."""

import importlib
import re
import shlex
from pathlib import Path

import pytest

from dandap.recipe import named_recipes

README, KOREAN = Path("README.md"), Path("README.ko.md")
PAGES = [README, KOREAN, Path("CONTRIBUTING.md"), *sorted(Path("docs").rglob("*.md"))]
TEXTS = {path: path.read_text(encoding="utf-8") for path in PAGES}


def lines_of_shell(text):
    """Return the commands in bash blocks, without comments."""
    blocks = re.findall(r"```bash\n(.*?)```", text, re.DOTALL)
    lines = [line.split("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [part.strip() for line in lines if line for part in line.split("&&")]


def commands_of(path):
    """Return the commands in bash blocks and inline code."""
    inline = re.findall(r"`(python [^`]+)`", TEXTS[path])
    return [*lines_of_shell(TEXTS[path]), *inline]


COMMANDS = sorted(
    {
        command
        for path in PAGES
        for command in commands_of(path)
        if command.startswith("python ") and "-m venv" not in command and "<" not in command
    }
)


def only_parse(parser, argv):
    parser.parse_args(argv)
    raise SystemExit


@pytest.mark.parametrize("command", COMMANDS)
def test_commands_have_known_options(command, monkeypatch):
    words = shlex.split(command)
    name, *arguments = words[2:] if words[1] == "-m" else words[1:]
    module = importlib.import_module(name.removesuffix(".py"))
    if name == "prompts.py":  # takes a template name and no options
        assert set(arguments) <= module.TEMPLATES.keys()
    elif hasattr(module, "command_line"):
        module.command_line().parse_args(arguments)
    elif hasattr(module, "parse"):
        monkeypatch.setattr(module, "parse", only_parse)
        with pytest.raises(SystemExit):
            module.main(arguments)
    else:  # takes no arguments
        assert not any(argument.startswith("-") for argument in arguments)
    if "--recipe" in arguments:
        recipe = arguments[arguments.index("--recipe") + 1]
        assert recipe in named_recipes()


@pytest.mark.parametrize("path", PAGES, ids=str)
def test_links_and_named_files_exist(path):
    for command in lines_of_shell(TEXTS[path]):
        for name in re.findall(r"--config_file (\S+)", command):
            assert Path(name).is_file(), command
    for target in re.findall(r"\]\(([^)#]+)\)", TEXTS[path]):
        assert "://" in target or (path.parent / target).exists(), target
    for name in re.findall(r"`((?:[\w-]+/)+[\w.-]+\.(?:py|md|yaml|sh|ipynb))`", TEXTS[path]):
        assert Path(name).exists() or name.startswith(("data/", "outputs/")), name


def test_both_readmes_match():
    """The same headings, commands, tables and numbers, in the same order."""
    for pattern in (r"^#+ ", r"^\|.*\|$", r"`--?\w+[^`]*`", r"\d[\d,.]*\d", r"\]\([^)]+\)"):
        found = [re.findall(pattern, TEXTS[path], re.MULTILINE) for path in (README, KOREAN)]
        if pattern.startswith("^"):
            found = [len(each) for each in found]
        else:
            # Three pages have a Korean version.
            found = [{x.replace("docs/ko/", "docs/") for x in each} for each in found]
            found = [sorted(x for x in each if "README" not in x) for each in found]
        assert found[0] == found[1], pattern
    assert lines_of_shell(TEXTS[README]) == lines_of_shell(TEXTS[KOREAN])
