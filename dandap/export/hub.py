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
    except (HFValidationError, OSError, HTTPError) as error:
        # An error's text may quote the request, with the token; its name is safe to print.
        raise InputError(
            f"--push_to_hub: got {name[:200]!r} ({type(error).__name__}); expected NAME or "
            "OWNER/NAME, and a token with write access. Sign in with `hf auth login`."
        ) from error
    return name if "/" in name else f"{user}/{name}"


def upload(folder: Path, name: str) -> str:
    """Upload a folder and return its address; a new repository is private."""
    try:
        address = str(HfApi().create_repo(name, private=True, exist_ok=True))
        HfApi().upload_folder(repo_id=name, folder_path=folder, commit_message="Dandap export")
    except (OSError, HTTPError) as error:
        raise InputError(
            f"{folder} was not uploaded to {name} ({type(error).__name__}). The same command "
            "uploads it again, and does not export it again."
        ) from error
    return address
