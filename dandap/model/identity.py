"""The identity of a run's base, so that no run continues on another one."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dandap.files import folder_hash
from dandap.recipe import Recipe


def base_identity(recipe: Recipe) -> dict[str, str]:
    """Return the base's name with its commit (hub) or a hash of its files (folder).

    Large weights are hashed in part (16 MB spread over each file): 20 GB take a second. Another
    model or another training shows, a single flipped bit may not.
    """
    folder = Path(recipe.model)
    if folder.is_dir():
        return {"model": recipe.model, "files": folder_hash(folder)}
    found = try_to_load_from_cache(recipe.model, "config.json", revision=recipe.revision or "main")
    # The cache's folders are named snapshots/<commit>/. Not a str: the file is not in the cache.
    commit = Path(found).parent.name if isinstance(found, str) else (recipe.revision or "")
    return {"model": recipe.model, "commit": commit}


def same_base(one: dict[str, str], other: dict[str, str]) -> bool:
    """Return whether two identities are of the same base; a folder may have been moved."""
    if "files" in one and "files" in other:
        return one["files"] == other["files"]
    # Without a commit only the names can be compared.
    unknown = "" in (one.get("commit"), other.get("commit"))
    return one == other or (unknown and one["model"] == other["model"])
