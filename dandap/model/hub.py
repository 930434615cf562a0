"""Loading from the hub or a folder, with errors that say what to do."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants
from safetensors import SafetensorError

from dandap.errors import InputError, first_line
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
def find_hub() -> None:
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
