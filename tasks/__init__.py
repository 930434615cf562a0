"""Hold the tasks, a file each; a file of this folder that ends in `TASK = ...` is one.

`TASKS` finds them. They may import dandap and metrics; nothing in dandap asks which task it works
on.
"""

from importlib import import_module
from pkgutil import iter_modules

import prompts
from dandap.errors import InputError, nearest
from prompts import Template
from tasks.task import Task


def find_tasks(folder: list[str]) -> dict[str, Task]:
    """Return the tasks of a folder's modules by their names."""
    modules = [import_module(f"tasks.{module.name}") for module in iter_modules(folder)]
    return {module.TASK.name: module.TASK for module in modules if hasattr(module, "TASK")}


TASKS = find_tasks(__path__)


def get_task(name: str) -> Task:
    """Return the task of this name; refuse another name and say which known one is nearest."""
    if name not in TASKS:
        raise InputError(
            f"got task {name!r}; expected one of {', '.join(TASKS)}.{nearest(name, TASKS)}"
        )
    return TASKS[name]


def checked_template(name: str, task: str) -> Template:
    """Return the template of this name, checked against the fields of the task of that name."""
    template = prompts.get_template(name)
    get_task(task).check_template(template, name)
    return template
