"""Upload an export to the hub, privately; huggingface_hub finds the token."""

from pathlib import Path

from httpx2 import HTTPError  # huggingface_hub's HTTP client
from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from dandap.errors import InputError


def sign_in(name: str) -> str:
    """Return the repository's full name; InputError for a bad name, or without a valid token."""
    try:
        validate_repo_id(name)
        user = HfApi().whoami()["name"]
    except HFValidationError as error:
        raise InputError(
            f"--push_to_hub: got {name[:200]!r}; expected NAME or OWNER/NAME of letters, digits "
            "and -_. (at most 96)."
        ) from error
    except (OSError, HTTPError) as error:
        reason = f"{_reason(error)} Sign in with `hf auth login`."
        raise InputError(f"--push_to_hub: {reason}") from error
    return name if "/" in name else f"{user}/{name}"


def upload(folder: Path, name: str) -> str:
    """Upload a folder and return its address; a new repository is private."""
    try:
        address = str(HfApi().create_repo(name, private=True, exist_ok=True))
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Dandap export")
    except (OSError, HTTPError) as error:
        raise InputError(
            f"{folder} was not uploaded to {name}: {_reason(error)} The same command uploads it "
            "again, and does not export it again."
        ) from error
    return address


def _reason(error: Exception) -> str:
    # Not the error's text, which may quote the request, with the token.
    status = getattr(getattr(error, "response", None), "status_code", "none")
    return f"{type(error).__name__} (status of the hub's answer: {status})."
