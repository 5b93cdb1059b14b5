"""Downloading a model by the library huggingface_hub, of the extra ``hub``."""

from __future__ import annotations

import contextlib
import glob
import importlib
import os
from collections.abc import Iterator
from pathlib import Path

from weightshare.checkpoint.codes import shown
from weightshare.recipes.hub import HubError, cache_folder, wanted_files

_LONGEST = 300


def download(
    name: str, revision: str | None, files: tuple[str, ...], *, missing: str, progress: bool
) -> Path:
    """Download a model into the hub's cache; what is there already is not downloaded again.

    Parameters
    ----------
    name : str
        Such as ``"org/model"``.
    revision : str, optional
        Branch, tag or commit.
    files : tuple of str
        What is downloaded; without any, the weights and the small files.
    missing : str
        The clause that says that the cache does not have it.
    progress : bool
        Whether bars are shown.

    Returns
    -------
    Path
        Its snapshot in the cache.

    Raises
    ------
    HubError
        The library is not installed, or the download failed; one line.
    """
    try:
        import huggingface_hub
    except ImportError:
        at = "" if revision is None else f" --revision {revision}"
        raise HubError(
            f"{missing}, and the package huggingface_hub, which downloads it, is not installed: pip"
            f" install 'weightshare[hub]', or download it elsewhere (hf download {name}{at})"
        ) from None
    # The library reads this variable only once, when it is imported.
    endpoint = os.environ.get("HF_ENDPOINT") or None
    try:
        with _bars(progress):
            api = huggingface_hub.HfApi(endpoint=endpoint)
            siblings = api.model_info(name, revision=revision).siblings or []
            files = tuple(wanted_files([file.rfilename for file in siblings], name, files))
            snapshot = huggingface_hub.snapshot_download(
                name,
                revision=revision,
                cache_dir=cache_folder(),
                allow_patterns=[glob.escape(file) for file in files],
                endpoint=endpoint,
            )
    except HubError:
        raise
    except Exception as error:
        # The library raises errors of several others, which change with its version.
        raise HubError(f"{missing}, and {_reason(error, name, revision)}") from error
    return Path(snapshot)


def _reason(error: Exception, name: str, revision: str | None) -> str:
    from huggingface_hub import errors

    if isinstance(error, errors.GatedRepoError):
        return f"{name} is gated: accept its terms on its page, then log in (hf auth login)"
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {shown(revision or 'main')} there"
    if isinstance(error, errors.RepositoryNotFoundError):
        return f"there is no model {name}, or it is private: check the name, log in (hf auth login)"
    if isinstance(error, errors.OfflineModeIsEnabled):
        return "HF_HUB_OFFLINE forbids to download it"
    text = " ".join(str(error).split()) or type(error).__name__
    return f"it could not be downloaded: {shown(text, _LONGEST)}"


@contextlib.contextmanager
def _bars(progress: bool) -> Iterator[None]:
    """Show the library's bars or not, and leave its own setting as it was."""
    # Its switches are exported in ways that differ between its versions.
    bars = importlib.import_module("huggingface_hub.utils")
    was_off = bars.are_progress_bars_disabled()
    # The user's variable decides, and the library would warn about a contradiction.
    decided = os.environ.get("HF_HUB_DISABLE_PROGRESS_BARS") is not None
    if decided or was_off != progress:
        yield
        return
    switches = bars.disable_progress_bars, bars.enable_progress_bars
    off_or_on, back = switches[::-1] if progress else switches
    off_or_on()
    try:
        yield
    finally:
        back()
