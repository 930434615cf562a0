"""Hold the tasks, a file each; a file of this folder that ends in `TASK = ...` is one.

`TASKS` finds them. They may import dandap and metrics; nothing in dandap asks which task it works
on.
"""

from importlib import import_module
from pkgutil import iter_modules

from dandap.errors import InputError, nearest
from tasks.task import Task


def find_tasks(folder: list[str]) -> dict[str, Task]:
    """Return the tasks of a folder's modules by their names."""
    # tasks.task holds the base class and no task.
    names = [module.name for module in iter_modules(folder) if module.name != "task"]
    tasks = [import_module(f"tasks.{name}").TASK for name in names]
    return {task.name: task for task in tasks}


TASKS = find_tasks(__path__)


def get_task(name: str) -> Task:
    """Return the task of this name; refuse another name and say which known one is nearest."""
    if name not in TASKS:
        raise InputError(
            f"got task {name!r}; expected one of {', '.join(TASKS)}.{nearest(name, TASKS)}"
        )
    return TASKS[name]
