"""Package structure: layers of imports, scripts that avoid torch, and uses of task names."""

import ast
import subprocess
import sys
from pathlib import Path

# Lowest first; a module imports only from its own package and from lower layers.
LAYERS = (
    ("dandap", "metrics"),
    ("prompts", "dandap.tree"),
    ("dandap.data",),
    ("tasks", "dandap.model"),
    ("dandap.runs",),
    ("dandap.answering",),
    ("dandap.training", "dandap.page", "dandap.export"),
    ("fine_tune", "inference", "ensemble", "app", "export", "benchmarks", "tools"),
)
SCRIPTS = ("fine_tune", "inference", "ensemble", "app", "export")
LAYER_OF = {package: number for number, packages in enumerate(LAYERS) for package in packages}
ROOT = Path(__file__).parent.parent
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for pattern in ("*.py", "dandap/**/*.py", "tasks/*.py", "tools/**/*.py", "benchmarks/*.py")
    for path in sorted(ROOT.glob(pattern))
}
TREES = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}


def package_of(module):
    """Return `dandap.data` for its modules, `dandap` for top-level ones, else the first part."""
    parts = module.split(".")
    is_inside = parts[0] == "dandap" and (len(parts) > 2 or (ROOT / Path(*parts)).is_dir())
    return ".".join(parts[:2]) if is_inside and module != "dandap" else parts[0]


def imports_of(module):
    """Return the project's modules that a module imports, also inside functions."""
    found = set()
    for node in ast.walk(TREES[module]):
        if isinstance(node, ast.ImportFrom):
            found |= {node.module, *(f"{node.module}.{name.name}" for name in node.names)}
        elif isinstance(node, ast.Import):
            found |= {name.name for name in node.names}
    return sorted((found & MODULES.keys()) - {module})


def test_packages_import_only_from_lower_layers():
    wrong = [
        f"{module} imports {other}"
        for module in MODULES
        for other in imports_of(module)
        if package_of(module) != package_of(other)
        and LAYER_OF[package_of(module)] <= LAYER_OF[package_of(other)]
    ]
    assert not wrong, "\n".join(wrong)


def test_imports_have_no_cycles():
    done = set()

    def visit(module, path):
        assert module not in path, " -> ".join([*path, module])
        if module not in done:
            for other in imports_of(module):
                visit(other, [*path, module])
            done.add(module)

    for module in MODULES:
        visit(module, [])


def test_help_and_input_errors_load_no_heavy_library():
    """Importing torch takes up to 10 s."""
    heavy = {"torch", "transformers", "matplotlib", "pandas", "datasets"}
    tools = [f"tools.{name}" for name in "compare explore refine submit demo.make".split()]
    invalid = [
        "fine_tune --lerning_rate 1",
        "fine_tune --recipe nowhere",
        "fine_tune --recipe demo --train_file nowhere.csv",
        "fine_tune --resume nowhere",
        "inference --run nowhere",
        "ensemble nowhere.csv",
        "tools.compare nowhere.csv",
        "tools.explore nowhere.csv",
    ]
    valid = ["prompts", "metrics", "tasks", *(f"{name} --help" for name in (*SCRIPTS, *tools))]
    calls = [[command.split(), 2 if command in invalid else 0] for command in valid + invalid]
    code = f"""
import importlib, sys
for (name, *argv), expected in {calls}:
    module, sys.argv[1:], code = importlib.import_module(name), argv, 0
    if argv:
        try:
            module.run_script(module.main)
        except SystemExit as end:
            code = end.code or 0
    assert code == expected, (name, argv, code)
    assert not {heavy} & sys.modules.keys(), (name, argv)
"""
    completed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert completed.returncode == 0, completed.stderr


def test_only_tasks_compares_task_names():
    names = {"economic_qa", "dialogue_inference", "wallpaper_qa"}
    names |= {"accuracy", "confusion", "similarity", "rouge_l"}
    for module, tree in TREES.items():
        if module.startswith(("tasks", "tools.demo", "benchmarks")):
            continue
        for compare in (node for node in ast.walk(tree) if isinstance(node, ast.Compare)):
            constants = [node for node in ast.walk(compare) if isinstance(node, ast.Constant)]
            texts = {node.value for node in constants if isinstance(node.value, str)}
            assert not names & texts, f"{module}, line {compare.lineno}"
