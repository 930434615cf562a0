"""An export put on the hub: private, by the hub's own library, which alone knows the token."""

from pathlib import Path

from httpx2 import HTTPError  # what huggingface_hub speaks HTTP with
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError, LocalTokenNotFoundError
from huggingface_hub.utils import validate_repo_id

from dandap.errors import InputError

SIGN_IN = (
    "Make a token with write access on huggingface.co/settings/tokens, then `hf auth login`, or "
    "set HF_TOKEN."
)


def sign_in(name: str) -> str:
    """Return the repository's full name, before hours of work are done for it.

    InputError is raised for a name that none can have, and where the hub knows no user here.
    """
    try:
        validate_repo_id(name)
        user = HfApi().whoami()["name"]
    except HFValidationError as error:
        raise InputError(
            f"--push_to_hub: got {name[:200]!r}; expected NAME or OWNER/NAME of letters, digits "
            "and -_. (at most 96)."
        ) from error
    except LocalTokenNotFoundError as error:
        raise InputError(f"--push_to_hub: no token was found. {SIGN_IN}") from error
    except (OSError, HTTPError) as error:
        raise InputError(f"--push_to_hub: {_reason(error)} {SIGN_IN}") from error
    return name if "/" in name else f"{user}/{name}"


def upload(folder: Path, name: str) -> str:
    """Put a folder on the hub, in a repository that is private if it is new; return its address."""
    api = HfApi()
    try:
        # A repository that is there keeps its own visibility.
        address = str(api.create_repo(name, private=True, exist_ok=True))
        api.upload_folder(repo_id=name, folder_path=folder, commit_message="Export of a Dandap run")
    except (OSError, HTTPError) as error:
        raise InputError(
            f"{folder} is written, but could not be put on the hub as {name}: {_reason(error)} "
            "The same command again uploads it without making it anew."
        ) from error
    return address


def _reason(error: Exception) -> str:
    # Not the error's text, which may quote what was sent, the token with it.
    response = getattr(error, "response", None)
    if response is not None:
        return f"the hub answered with status {response.status_code}."
    return f"the hub cannot be reached ({type(error).__name__})."
