"""Adapter files on the Hugging Face hub."""

from collections.abc import Iterable
from pathlib import Path

from huggingface_hub import HfApi, hf_hub_download, scan_cache_dir
from huggingface_hub.errors import CacheNotFound, HfHubHTTPError

from hra_diffusion.adapters.adapter_file import PICKLE_SUFFIXES, AdapterFileError
from hra_diffusion.hub import CONNECTION_ERRORS, HubError, is_hub_id, user_errors

SAFETENSORS = ".safetensors"


def local_file(
    source: str | Path, weight_name: str | None = None, revision: str | None = None, token: str | None = None
) -> Path:
    """Return the file of an adapter given by path, by folder or by hub id; from the hub it is downloaded to the cache.

    ``source``: a path, "owner/name" or "owner/name:file.safetensors". ``weight_name``: the file in a folder or in a
    repository that has several. ``revision``: branch, tag or commit. ``token``: by default that of ``hf auth login``.
    A path that does not exist is returned as it is.

    Raises HubError if there is no such repository, revision or file, without access, and without a connection
    (OfflineError); AdapterFileError if the file is not .safetensors, or if several could be meant.
    """
    path = Path(source)
    if path.is_file():
        return path
    if path.is_dir():
        return path / _chosen(weight_name or _only(str(path), (file.name for file in path.iterdir())))
    repository, _, selected = str(source).partition(":")
    if not is_hub_id(repository) or Path(repository).suffix in (SAFETENSORS, *PICKLE_SUFFIXES):
        return path
    with user_errors(repository):
        file = _chosen(weight_name or selected or _only(repository, _files(repository, revision, token)))
        return Path(hf_hub_download(repository, file, revision=revision, token=token))


def require_hub_id(repository: str) -> None:
    """Raise HubError unless a name has the form of a hub id, "owner/name"."""
    if not is_hub_id(repository):
        raise HubError(f"{repository!r} is not a hub id; expected owner/name")


def upload(folder: Path, repository: str, private: bool = False) -> str:
    """Upload a folder to a model repository on the hub, which is created if it does not exist. Returns its address.

    Args:
        folder: all its files are uploaded.
        repository: "owner/name".
        private: whether a new repository is private.

    Raises HubError without permission, and OfflineError without a connection.
    """
    require_hub_id(repository)
    api = HfApi()
    with user_errors(repository):
        try:
            address = api.create_repo(repository, private=private, exist_ok=True)
            api.upload_folder(repo_id=repository, folder_path=folder, commit_message="Upload by hra-diffusion")
        except HfHubHTTPError as error:
            if error.response.status_code not in (401, 403):
                raise
            raise HubError(
                f"the hub does not let you write to {repository}; log in with a token that can write: hf auth login"
            ) from error
    return str(address)


def _chosen(file: str) -> str:
    if not file.endswith(SAFETENSORS):
        raise AdapterFileError(f"{file} is not a .safetensors file; other formats can run code and are not opened")
    return file


def _only(source: str, files: Iterable[str]) -> str:
    """Return the only safetensors file among the files of ``source``."""
    weights = sorted(file for file in files if file.endswith(SAFETENSORS))
    if not weights:
        raise AdapterFileError(f"{source} contains no .safetensors file")
    if len(weights) > 1:
        raise AdapterFileError(f"{source} contains several files; choose one by weight_name: {', '.join(weights)}")
    return weights[0]


def _files(repository: str, revision: str | None, token: str | None) -> list[str]:
    """Return the files of a repository on the hub; without a connection, those of its snapshot in the cache."""
    try:
        return [file.rfilename for file in HfApi(token=token).model_info(repository, revision=revision).siblings or []]
    except HfHubHTTPError:
        raise
    except CONNECTION_ERRORS:
        if cached := _cached_files(repository, revision or "main"):
            return cached
        raise


def _cached_files(repository: str, revision: str) -> list[str]:
    try:
        repositories = scan_cache_dir().repos
    except CacheNotFound:
        return []
    return [
        file.file_path.relative_to(snapshot.snapshot_path).as_posix()
        for cached in repositories
        if (cached.repo_id, cached.repo_type) == (repository, "model")
        for snapshot in cached.revisions
        if revision in (*snapshot.refs, snapshot.commit_hash)
        for file in snapshot.files
    ]
