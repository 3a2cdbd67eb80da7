"""The Hugging Face hub: which names are hub ids, and errors for the user."""

import contextlib
import re
from collections.abc import Iterator
from pathlib import Path

from huggingface_hub import constants
from huggingface_hub.errors import (
    EntryNotFoundError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from hra_diffusion.errors import UserError, first_line
from hra_diffusion.files import to_file_error

CONNECTION_ERRORS: tuple[type[Exception], ...] = HfHubHTTPError.__bases__  # type: ignore[assignment]
"""OSError and the error of the HTTP client, which depends on the version of huggingface_hub."""


class HubError(UserError):
    """A repository or file on the hub cannot be used."""


class OfflineError(HubError):
    """The hub cannot be reached."""


def is_hub_id(text: str) -> bool:
    """Whether a text has the form of a hub id, "owner/name"."""
    return re.fullmatch(r"\w[\w.-]*/\w[\w.-]*", text) is not None


@contextlib.contextmanager
def user_errors(name: str) -> Iterator[None]:
    """Within the block, turn errors of huggingface_hub about the repository ``name`` into HubError.

    This is OfflineError if the hub cannot be reached. Raises FileError if the disk is full.
    """
    try:
        yield
    except HFValidationError:
        raise HubError(f"{name!r} is not a hub id; expected owner/name") from None
    except GatedRepoError:
        raise HubError(
            f"the licence of {name} must be accepted first: open https://huggingface.co/{name}, then log in with: "
            "hf auth login"
        ) from None
    except RepositoryNotFoundError:
        raise HubError(
            f"the hub has no model {name!r}, or it is private; check the spelling, or log in with: hf auth login"
        ) from None
    except RevisionNotFoundError:
        raise HubError(f"{name} has no such revision on the hub; give a branch, a tag or a commit of it") from None
    except CONNECTION_ERRORS as error:
        if isinstance(error, EntryNotFoundError) and not isinstance(error, LocalEntryNotFoundError):
            raise HubError(f"{name} has no such file on the hub: {first_line(error)}") from None
        if isinstance(error, OSError) and error.errno:  # an error of the disk, not of the connection
            raise to_file_error(error, Path(constants.HF_HUB_CACHE)) from error
        raise OfflineError(
            f"the Hugging Face hub can't be reached for {name} ({first_line(error)}); try again"
        ) from error
