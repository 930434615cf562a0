"""Loading from the hub or a folder: what goes wrong is told in a sentence that says what to do."""

from functools import cache
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from huggingface_hub import constants
from safetensors import SafetensorError

from dandap.errors import InputError, first_line
from dandap.recipe import Recipe

HUB_TIMEOUT = 5  # seconds to connect


def confirm_remote_code(recipe: Recipe, on_command_line: bool) -> None:
    """Refuse to run code of the base's repository unless the command itself says so; then warn.

    A recipe or a run folder may come from somebody else. This is called before anything of the
    base is loaded.
    """
    if recipe.trust_remote_code and not on_command_line:
        raise InputError(
            f"the recipe wants to run Python code from {recipe.model}'s repository, which can do "
            "anything. Read that code, then add --trust_remote_code true to the command."
        )
    if recipe.trust_remote_code:
        print(f"WARNING: trust_remote_code is on: code from {recipe.model} runs on this machine")


@cache
def find_hub() -> None:
    """Ask once whether the hub answers; if it does not, have only what is in the cache used.

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
            f"{constants.ENDPOINT} cannot be reached ({first_line(error)}): only models already "
            "downloaded can be used"
        )
        # The client looks at this at every request; the environment variable it reads only once.
        constants.HF_HUB_OFFLINE = True


class loading:
    """Turns what the hub and transformers raise while loading into a sentence with a way out."""

    def __init__(self, source: str, what: str):
        self.source, self.what = source, what

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        # Other kinds are taken for faults of this program, and keep their traceback.
        kinds = (OSError, ValueError, ImportError, RuntimeError, SafetensorError)
        if not isinstance(error, kinds) or isinstance(error, InputError):
            return False
        message = str(error).strip() or type(error).__name__
        raise InputError(
            f"the {self.what} {self.source!r} cannot be loaded: {self._advice(message)}"
        ) from error

    def _advice(self, message: str) -> str:
        # The libraries' errors differ in text alone, and their texts change with versions: words
        # are searched for, and the first line is shown where none is known.
        folder = Path(self.source)
        if folder.is_dir():
            if any(folder.glob("pytorch_model*.bin")) and not any(folder.glob("*.safetensors")):
                return (
                    "it has only .bin weights, which are pickles and can run code. Convert them "
                    "once, where you trust them: "
                    "AutoModelForCausalLM.from_pretrained(FOLDER).save_pretrained(NEW_FOLDER)."
                )
            return (
                f"{message.splitlines()[0]} The folder needs config.json, tokenizer files and "
                ".safetensors weights."
            )
        if "out of memory" in message:
            return (
                "the GPU ran out of memory; free it (nvidia-smi shows who uses it) or choose a "
                "smaller base."
            )
        if "safetensors" in message and ("bin" in message or "pytorch_model" in message):
            return (
                "its repository has no safetensors weights, only pickles, which can run code; "
                "choose a converted copy."
            )
        if "trust_remote_code" in message:
            return (
                "it needs code from its repository; read that code, then pass --trust_remote_code "
                "true."
            )
        if "gated" in message or "401" in message or "403" in message:
            return (
                "it is gated: accept its terms on huggingface.co and set the environment variable "
                "HF_TOKEN. A secret of Colab is none until a cell sets it: os.environ['HF_TOKEN'] "
                "= userdata.get('HF_TOKEN')."
            )
        return (
            f"{message.splitlines()[0]} Expected a folder or a hub id like owner/name. Without "
            "network (or with HF_HUB_OFFLINE=1) only folders and models already downloaded work."
        )
