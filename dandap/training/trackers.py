"""Experiment trackers get what metrics.jsonl holds: each step's numbers and each evaluation's."""

import importlib.util
import os
from collections.abc import Callable
from functools import partial

from transformers import TrainerCallback
from transformers.integrations import INTEGRATION_TO_CALLBACK

from dandap.errors import InputError, first_line
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder


def refuse_missing_trackers(recipe: Recipe) -> None:
    """Refuse a tracker whose package is not installed, before anything is loaded."""
    missing = [name for name in recipe.report_to if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"report_to: {', '.join(missing)} is not installed: pip install {' '.join(missing)}"
        )


def make_trackers(recipe: Recipe, run: RunFolder) -> list[TrainerCallback]:
    """Return transformers' callbacks for the trackers of the recipe, under the run's name.

    They find server and login as the trackers themselves do, and write none of it into a file.
    """
    os.environ.setdefault("WANDB_PROJECT", "dandap")
    trackers = [INTEGRATION_TO_CALLBACK[name]() for name in recipe.report_to]
    for name, tracker in zip(recipe.report_to, trackers, strict=True):
        if hasattr(tracker, "setup"):
            tracker.setup = partial(_set_up, name, tracker.setup)
        # TensorBoard's files would come among the checkpoints.
        if hasattr(tracker, "logging_dir"):
            tracker.logging_dir = str(run.path / "tensorboard")
    return trackers


def _set_up(name: str, setup: Callable, *arguments, **named) -> None:
    """Start a tracker; an InputError says what it raised, whatever that is."""
    try:
        setup(*arguments, **named)
    # A server that is away, a login that is missing: each tracker has its own errors.
    except Exception as error:
        raise InputError(
            f"report_to: {name} could not be started ({first_line(error)}). Correct its settings, "
            "or leave it out."
        ) from error


def track_scores(trackers: list[TrainerCallback], args, state, control, scores: dict) -> None:
    """Send an evaluation's numbers, as eval/char_f1 and the like."""
    numbers = {
        f"eval_{name}": value
        for name, value in scores.items()
        if isinstance(value, int | float) and not isinstance(value, bool)
    }
    for tracker in trackers:
        tracker.on_log(args, state, control, logs=numbers)
