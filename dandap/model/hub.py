"""Identify base models on the hub or in a folder, and explain loading errors."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants, try_to_load_from_cache
from safetensors import SafetensorError

from dandap.errors import InputError, first_line
from dandap.files import folder_hash
from dandap.recipe import Recipe

HUB_TIMEOUT = 5  # seconds to connect
REMOTE_CODE = (
    "it needs code from its repository. Read that code, then pass --trust_remote_code true."
)
# Words in library errors, and advice. Without a match, the error's first line is shown.
ADVICE = (
    (("out of memory",), "free the GPU (nvidia-smi lists its processes), or use a smaller base."),
    (
        ("pytorch_model", ".bin"),
        "its repository has only pickled weights, which can run code. Use a safetensors version.",
    ),
    (("trust_remote_code",), REMOTE_CODE),
    (
        ("gated", "401", "403"),
        "it is gated. Accept its terms on huggingface.co and set HF_TOKEN (in Colab, run "
        "os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')).",
    ),
)


def confirm_remote_code(recipe: Recipe, on_command_line: bool) -> None:
    """Reject remote code unless the command line itself enables it.

    Recipes and run folders are not trusted. Call this before loading the base.
    """
    if recipe.trust_remote_code and not on_command_line:
        raise InputError(
            f"the recipe runs Python code from {recipe.model}'s repository. Read that code, then "
            "add --trust_remote_code true to the command."
        )
    if recipe.trust_remote_code:
        print(f"WARNING: trust_remote_code is on: running code from {recipe.model}")


@cache
def check_hub() -> None:
    """Go offline if the hub is unreachable, instead of retrying for a minute."""
    if constants.is_offline_mode():
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except HTTPError:
        pass  # reachable
    except OSError as error:
        print(
            f"{constants.ENDPOINT} is unreachable ({first_line(error)}). Using only downloaded "
            "models."
        )
        # The client reads this constant at every request.
        constants.HF_HUB_OFFLINE = True


@contextmanager
def loading(source: str, what: str) -> Iterator[None]:
    """Convert loading errors of libraries into an InputError with advice."""
    try:
        yield
    except InputError:
        raise
    # Other exceptions are bugs and keep their traceback.
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        message = str(error).strip() or type(error).__name__
        raise InputError(
            f"the {what} {source!r} cannot be loaded: {_advice(source, message)}"
        ) from error


def _advice(source: str, message: str) -> str:
    first = message.strip().partition("\n")[0].rstrip(" .:")
    folder = Path(source)
    if folder.is_dir():
        if "custom code" in message:
            return REMOTE_CODE
        if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
            return (
                "it has only .bin weights, pickles that can run code. If you trust them, convert "
                "them: AutoModelForCausalLM.from_pretrained(A).save_pretrained(B)."
            )
        return (
            f"{first}. Expected config.json, tokenizer files and complete .safetensors weights. "
            "Download the folder again; after git clone, run git lfs pull."
        )
    for words, advice in ADVICE:
        if any(word in message for word in words):
            return advice
    return (
        f"{first}. Expected a folder or a hub id like owner/name. Offline, only folders and "
        "downloaded models work."
    )


def base_identity(recipe: Recipe) -> dict[str, str]:
    """Return the base's name with its commit (hub) or a hash of its files (folder).

    Only 16 MB of each large file are hashed (20 GB take a second): this detects
    another model, but not every flipped bit.
    """
    folder = Path(recipe.model)
    if folder.is_dir():
        return {"model": recipe.model, "files": folder_hash(folder)}
    found = try_to_load_from_cache(recipe.model, "config.json", revision=recipe.revision or "main")
    # The cache has folders snapshots/<commit>/; not a str: not cached.
    commit = Path(found).parent.name if isinstance(found, str) else (recipe.revision or "")
    return {"model": recipe.model, "commit": commit}


def same_base(one: dict[str, str], other: dict[str, str]) -> bool:
    """Return whether two identities are of the same base; its folder may have moved."""
    if "files" in one and "files" in other:
        return one["files"] == other["files"]
    # Without a commit, compare names.
    unknown = "" in (one.get("commit"), other.get("commit"))
    return one == other or (unknown and one["model"] == other["model"])
