"""Bases on the hub or in a folder: their identity, and errors of loading that say what to do."""

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
# Words of a library's error, and what to do about it. Their texts change with versions; without a
# match the first line is shown.
ADVICE = (
    (("out of memory",), "free the GPU (nvidia-smi shows who uses it), or use a smaller base."),
    (
        ("pytorch_model", ".bin"),
        "its repository has only pickled weights, which can run code. Use a converted copy.",
    ),
    (
        ("trust_remote_code",),
        "it needs code from its repository. Read that code, then pass --trust_remote_code true.",
    ),
    (
        ("gated", "401", "403"),
        "it is gated. Accept its terms on huggingface.co and set HF_TOKEN (in Colab by a cell: "
        "os.environ['HF_TOKEN'] = userdata.get('HF_TOKEN')).",
    ),
)


def confirm_remote_code(recipe: Recipe, on_command_line: bool) -> None:
    """Reject code of the base's repository unless the command line itself asks for it.

    A recipe or a run folder may come from somebody else. Call this before the base is loaded.
    """
    if recipe.trust_remote_code and not on_command_line:
        raise InputError(
            f"the recipe runs Python code from {recipe.model}'s repository, which can do anything. "
            "Read that code, then add --trust_remote_code true to the command."
        )
    if recipe.trust_remote_code:
        print(f"WARNING: trust_remote_code is on: code from {recipe.model} runs on this machine")


@cache
def check_hub() -> None:
    """Check once whether the hub is reachable, else use only its cache.

    Otherwise the hub's client would retry for a minute.
    """
    if constants.is_offline_mode():
        return
    try:
        urlopen(Request(constants.ENDPOINT, method="HEAD"), timeout=HUB_TIMEOUT).close()
    except HTTPError:
        pass  # an error page is an answer, too
    except OSError as error:
        print(
            f"{constants.ENDPOINT} cannot be reached ({first_line(error)}): only downloaded models "
            "can be used"
        )
        # The client reads this at every request; the environment variable only once.
        constants.HF_HUB_OFFLINE = True


@contextmanager
def loading(source: str, what: str) -> Iterator[None]:
    """Turn what libraries raise while loading into an InputError with a way out."""
    try:
        yield
    except InputError:
        raise
    # Other kinds are faults of this program, and keep their traceback.
    except (OSError, ValueError, ImportError, RuntimeError, SafetensorError) as error:
        message = str(error).strip() or type(error).__name__
        raise InputError(
            f"the {what} {source!r} cannot be loaded: {_advice(source, message)}"
        ) from error


def _advice(source: str, message: str) -> str:
    first = message.splitlines()[0]
    folder = Path(source)
    if folder.is_dir():
        if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
            return (
                "it has only .bin weights, which are pickles and can run code. Convert them where "
                "you trust them: AutoModelForCausalLM.from_pretrained(A).save_pretrained(B)."
            )
        return f"{first} The folder needs config.json, tokenizer files and .safetensors weights."
    for words, advice in ADVICE:
        if any(word in message for word in words):
            return advice
    return (
        f"{first} Expected a folder or a hub id like owner/name. Without network only folders and "
        "downloaded models work."
    )


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
