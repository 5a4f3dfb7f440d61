"""A checkpoint on the Hugging Face hub, with its model card."""

from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gatito.errors import UserError
from gatito.train.checkpoint import resolve_checkpoint


def push_to_hub(checkpoint: str | Path, repository: str, *, private: bool = False) -> str:
    """Upload a checkpoint, or the newest one of a run, and return its address; hashes are checked before.

    What only resuming needs (`training/`, twice the size of the weights) stays here. Raises `UserError` for a name
    that is no `owner/name`, without a login or network, and where the hub refuses.
    """
    folder = resolve_checkpoint(checkpoint)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise UserError("a repository on the hub is named owner/name, in letters, digits and .-_")
    api = HfApi()
    try:
        where = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=["training/*"],
            commit_message=f"gatito {folder.name}",
        )
    except Exception as error:  # no login, no network, or whatever the hub says
        reason = " ".join(str(error).split())
        raise UserError(f"{repository}: {reason}; log in with hf auth login, or try again") from None
    return str(where)
