"""Select the run to resume, and check its recipe, data and base."""

from pathlib import Path

from dandap.data.rows import Table
from dandap.errors import InputError
from dandap.model.distributed import is_main_process
from dandap.model.hub import same_base
from dandap.recipe import Recipe
from dandap.runs.folder import RunFolder, find_path, list_runs, new_environment


def find_unfinished(name: str | None, output_dir: str) -> RunFolder:
    """Return the run to resume by name or path, or the newest unfinished one."""
    if name:
        run = RunFolder(find_path(name, output_dir) or Path(name))
    else:
        unfinished = [run for run in list_runs(output_dir) if is_unfinished(run)]
        if not unfinished:
            raise InputError(
                f"{output_dir} has no unfinished run with a checkpoint. Start one without "
                "--resume; continue folds with --folds N --resume."
            )
        run = unfinished[-1]  # the newest
    if run.finished and not lacks_validation(run):
        raise InputError(
            f"{run.path} is finished: nothing is left to resume. To answer a test file: python "
            f"inference.py --run {run.quoted}"
        )
    return run


def is_unfinished(run: RunFolder) -> bool:
    """Return whether a run can be resumed; skip unreadable ones."""
    try:
        return lacks_validation(run) if run.finished else any(run.checkpoints.glob("checkpoint-*"))
    except InputError as error:
        print(f"{run.path} is skipped: {error}")
        return False


def lacks_validation(run: RunFolder) -> bool:
    """Return whether a trained run was interrupted in its final validation."""
    return (
        run.finished
        and run.findings_file.is_file()
        and not run.report_file.is_file()
        and run.load_recipe().validates
    )


def resumed_recipe(run: RunFolder, recipe: Recipe, anyway: bool) -> Recipe:
    """Return the run's recipe, or with `anyway` a changed `recipe`; reject it otherwise."""
    saved = run.load_recipe()
    # These do not affect training.
    fields = [name for name in Recipe.model_fields if name not in ("output_dir", "run_name")]
    different = [name for name in fields if getattr(saved, name) != getattr(recipe, name)]
    if different and anyway:
        print(f"resuming with changed options (--resume_anyway): {', '.join(different)}")
        return recipe
    if different:
        changes = [
            f"{name}={getattr(saved, name)!r} (now {getattr(recipe, name)!r})" for name in different
        ]
        raise InputError(
            f"{run.path} was started with {', '.join(changes)}. Remove these options, add "
            "--resume_anyway, or start a new run."
        )
    return saved


def check_unchanged(
    run: RunFolder, recipe: Recipe, table: Table, base: dict[str, str], anyway: bool = False
) -> None:
    """Reject changed data or a changed base; warn about changed package versions.

    Adds the new environment to the run's environment.json.
    """
    before, today = run.environment(), new_environment([table], base)
    changed = []
    # By hash, because the file may have moved.
    if table.sha256 not in before.get("data", {}).values():
        was = [f"{path} {digest[:12]}..." for path, digest in before.get("data", {}).items()]
        changed.append(
            f"the data {table.path} (SHA-256 {table.sha256[:12]}..., was {', '.join(was)})"
        )
    if "base" in before and not same_base(before["base"], base):
        changed.append(f"the base {recipe.model}")
    if changed and not anyway:
        raise InputError(
            f"{' and '.join(changed)} changed since {run.path} was started. Restore the old "
            "files, add --resume_anyway, or start a new run."
        )
    for what in changed:
        print(f"resuming with changed input (--resume_anyway): {what}")
    old_packages = before.get("packages", {})
    for name, new in today["packages"].items():
        if old_packages.get(name) != new:
            print(
                f"WARNING: {name} is {new}, was {old_packages.get(name)} when the run started. "
                "Results may differ."
            )
    if before.get("commit") != today["commit"]:
        print(
            f"WARNING: the project is at {today['commit']}, was at {before.get('commit')} when the "
            "run started."
        )
    if is_main_process():
        names = ("packages", "commit", "data", "base", "platform", "gpu")
        entry = {name: today[name] for name in names} | {"when": today["started"]}
        run.update_environment(resumed=[*before.get("resumed", []), entry])
