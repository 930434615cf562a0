"""The rooms of the house: who may import whom, what loads torch, how long a function may be."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

# From the ground up; a module imports from its own floor and those below. Two rooms of one floor do
# not know each other.
FLOORS = (
    ("metrics",),
    ("dandap",),
    ("dandap.data",),
    ("dandap.runs",),
    ("dandap.tree",),
    ("dandap.model",),
    ("dandap.training", "dandap.answering"),
    ("dandap.page", "dandap.export"),
    ("tasks",),
    ("prompts",),
    ("inference", "ensemble"),
    ("folds", "app", "export"),
    ("fine_tune",),
    ("tools",),
    ("benchmarks",),
    ("commands",),
)
SCRIPTS = (
    *("fine_tune", "folds", "inference", "app", "ensemble", "export", "prompts", "metrics"),
    "commands",
)
MODULES = {
    ".".join(path.with_suffix("").parts).removesuffix(".__init__"): path
    for folder in ("dandap", "tasks", "tools", "benchmarks")
    for path in sorted(Path(folder).rglob("*.py"))
} | {name: Path(f"{name}.py") for name in SCRIPTS}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
OURS = [name for name in MODULES if not name.startswith("tools.demo")]


def room_of(module):
    """Return the package of dandap that a module lies in, else its first name.

    It is "dandap" for modules beside the packages.
    """
    parts = module.split(".")
    inside = parts[0] == "dandap" and (MODULES[module].name == "__init__.py" or len(parts) > 2)
    return ".".join(parts[:2]) if inside else parts[0]


def floor_of(room):
    return next(number for number, rooms in enumerate(FLOORS) if room in rooms)


def imports_of(module):
    """Return the modules of ours that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return sorted((found & MODULES.keys()) - {module})


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_down_only(module):
    room = room_of(module)
    for other in imports_of(module):
        allowed = room_of(other) == room or floor_of(room_of(other)) < floor_of(room)
        assert allowed, f"{module} imports {other}, which is not below it"


def test_there_are_no_circles():
    done = set()

    def visit(module, path):
        assert module not in path, f"a circle: {' -> '.join([*path, module])}"
        if module not in done:
            for other in imports_of(module):
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_every_package_says_what_lives_there():
    packages = [name for name, path in MODULES.items() if path.name == "__init__.py"]
    assert len(packages) >= 10
    for package in packages:
        assert len((ast.get_docstring(TREES[package]) or "").split()) > 10, package


# What ends before anything is trained or answered must not wait 10 s for torch.
LIGHT = {
    "import prompts": ("import prompts", 0),
    "import metrics": ("import metrics", 0),
    "import tasks": ("import tasks", 0),
}
for _line, _code in (
    ("fine_tune --help", 0),
    ("fine_tune --lerning_rate 1", 2),
    ("fine_tune --recipe nowhere", 2),
    ("fine_tune --recipe demo --train_file nowhere.csv", 2),
    ("fine_tune --resume nowhere", 2),
    ("inference --help", 0),
    ("inference --run nowhere", 2),
    ("app --help", 0),
    ("export --help", 0),
    ("ensemble --help", 0),
    ("ensemble nowhere.csv", 2),
    ("tools.compare --help", 0),
    ("tools.compare nowhere.csv", 2),
    ("tools.explore --help", 0),
    ("tools.explore nowhere.csv", 2),
    ("tools.refine --help", 0),
    ("tools.augment --help", 0),
    ("tools.augment pairs nowhere.csv out.csv", 2),
    ("tools.demo.make --help", 0),
):
    _script, *_argv = _line.split()
    LIGHT[_line] = (
        f"import sys, {_script}; sys.argv[1:] = {_argv}; {_script}.run_script({_script}.main)",
        _code,
    )


@pytest.mark.parametrize("name", LIGHT)
def test_what_ends_at_once_loads_no_heavy_library(name):
    heavy = ("torch", "transformers", "matplotlib", "pandas", "datasets")
    what, expected = LIGHT[name]
    code = (
        "import atexit, sys\natexit.register(lambda: "
        f"print('loaded', *(name for name in {heavy} if name in sys.modules)))\n{what}"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, encoding="utf-8"
    )
    assert ended.returncode == expected, ended.stderr
    assert ended.stdout.splitlines()[-1] == "loaded"


def functions(module):
    return [
        node
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]


@pytest.mark.parametrize("module", MODULES)
def test_functions_are_short_and_take_few_arguments(module):
    for function in functions(module):
        lines = function.end_lineno - function.lineno + 1
        assert lines <= 50, f"{module}.{function.name} has {lines} lines"
        arguments = function.args
        names = [each.arg for each in arguments.posonlyargs + arguments.args + arguments.kwonlyargs]
        count = len(names) - (names[:1] in (["self"], ["cls"]))
        assert count <= 6, f"{module}.{function.name} takes {count} arguments"


@pytest.mark.parametrize(
    ("module", "name"), [("fine_tune", "fine_tune"), ("inference", "answer_file"), ("app", "main")]
)
def test_the_stories_fit_on_a_page(module, name):
    (story,) = [function for function in functions(module) if function.name == name]
    assert story.end_lineno - story.lineno + 1 <= 30


@pytest.mark.parametrize("module", MODULES)
def test_lambdas_are_sort_keys(module):
    keys = {
        id(keyword.value)
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Call)
        for keyword in node.keywords
        if keyword.arg == "key"
    }
    odd = [
        node.lineno
        for node in ast.walk(TREES[module])
        if isinstance(node, ast.Lambda) and id(node) not in keys
    ]
    assert not odd, f"{module}: lambdas in lines {odd}"


TASK_NAMES = ("economic_qa", "dialogue_inference", "wallpaper_qa")


@pytest.mark.parametrize(
    "module",
    [name for name in MODULES if not name.startswith(("tasks", "tools.demo.model", "benchmarks"))],
)
def test_nothing_outside_tasks_asks_which_task_it_is(module):
    """A task's name may be a default or stand in a text; it is compared with nothing."""
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.Compare):
            texts = [
                each.value
                for each in ast.walk(node)
                if isinstance(each, ast.Constant) and isinstance(each.value, str)
            ]
            assert not {*TASK_NAMES, "accuracy", "confusion", "similarity", "rouge_l"} & set(
                texts
            ), f"{module}, line {node.lineno}"
