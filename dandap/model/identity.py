"""The identity of a run's base, told by its files, so that no run goes on over another one."""

from pathlib import Path

from huggingface_hub import try_to_load_from_cache

from dandap.manifest import folder_hash
from dandap.recipe import Recipe


def base_identity(recipe: Recipe) -> dict[str, str]:
    """Return the base's name and what tells its files from another's.

    A hub model is told by the commit that is in the cache, a folder by a hash of its config,
    tokenizer and weights. Weights of more than WHOLE bytes are hashed in part (16 MB spread over
    each file), so that 20 GB take a second and not a minute: another model or another training
    shows, a single flipped bit may not.
    """
    folder = Path(recipe.model)
    if folder.is_dir():
        return {"model": recipe.model, "files": folder_hash(folder)}
    found = try_to_load_from_cache(recipe.model, "config.json", revision=recipe.revision or "main")
    # The cache's folders are called snapshots/<commit>/. Not a str: the file is not in the cache.
    return {
        "model": recipe.model,
        "commit": Path(found).parent.name if isinstance(found, str) else (recipe.revision or ""),
    }


def same_base(one: dict[str, str], other: dict[str, str]) -> bool:
    """Say whether two identities are of the same base; a folder may have been moved."""
    if "files" in one and "files" in other:
        return one["files"] == other["files"]
    # Without a commit only the names are left to compare.
    not_in_the_cache = "" in (one.get("commit"), other.get("commit"))
    return one == other or (not_in_the_cache and one["model"] == other["model"])
