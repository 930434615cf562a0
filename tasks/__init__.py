"""Find tasks: the modules in this package that define `TASK`."""

from importlib import import_module
from pkgutil import iter_modules

import prompts
from dandap.errors import InputError, did_you_mean
from prompts import Template
from tasks.task import Task


def find_tasks(folders: list[str]) -> dict[str, Task]:
    """Return the tasks in the folders' modules, by name."""
    modules = [import_module(f"tasks.{module.name}") for module in iter_modules(folders)]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


TASKS = find_tasks(__path__)


def get_task(name: str) -> Task:
    """Return a task by name; the InputError suggests a similar name."""
    if name not in TASKS:
        raise InputError(
            f"got task {name!r}; expected one of {', '.join(TASKS)}.{did_you_mean(name, TASKS)}"
        )
    return TASKS[name]


def checked_template(name: str, task: str) -> Template:
    """Return a template after checking it against a task's fields."""
    template = prompts.get_template(name)
    get_task(task).check_template(template, name)
    return template
