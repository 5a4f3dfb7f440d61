"""A checkpoint on the Hugging Face hub, with its model card."""

from collections.abc import Callable
from pathlib import Path

from huggingface_hub import HfApi
from huggingface_hub.errors import HFValidationError
from huggingface_hub.utils import validate_repo_id

from gatito.errors import UserError
from gatito.train.checkpoint import resolve_checkpoint

CARD = "README.md"
"""The card of a checkpoint."""


def push_to_hub(
    checkpoint: str | Path, repository: str, *, private: bool = False, scored: Callable[[str], str] | None = None
) -> str:
    """Upload a checkpoint, or the newest one of a run, and return its address; hashes are checked before.

    `scored` adds scores to the text of its card. What only resuming needs (`training/`, twice the size of the
    weights) stays here. Raises `UserError` for a name that is no `owner/name`, without a login or network, and where
    the hub refuses.
    """
    folder = resolve_checkpoint(checkpoint)
    try:
        validate_repo_id(repository)
    except HFValidationError:
        repository = ""
    if repository.count("/") != 1:
        raise UserError("a repository on the hub is named owner/name, in letters, digits and .-_")
    card = None if scored is None else scored((folder / CARD).read_text())
    api = HfApi()
    try:
        where = api.create_repo(repository, private=private, exist_ok=True)
        api.upload_folder(
            repo_id=repository,
            folder_path=folder,
            ignore_patterns=["training/*"],
            commit_message=f"gatito {folder.name}",
        )
        if card is not None:
            api.upload_file(
                repo_id=repository,
                path_or_fileobj=card.encode(),
                path_in_repo=CARD,
                commit_message=f"scores of gatito {folder.name}",
            )
    except Exception as error:  # no login, no network, or whatever the hub says
        reason = " ".join(str(error).split())
        raise UserError(f"{repository}: {reason}; log in with hf auth login, or try again") from None
    return str(where)
