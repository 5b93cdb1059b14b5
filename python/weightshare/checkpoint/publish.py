"""Giving finished files their names, so that at every moment the old or the new output is whole.

A folder means ``model.safetensors`` if it is there, else its index. New shards never take a name
that is in use, so the rename of the index (or the removal of an old ``model.safetensors``) is
the one moment at which the folder changes from old to new. Old files go only afterwards.
"""

from __future__ import annotations

import logging
import os
import secrets
from collections.abc import Mapping

from weightshare.checkpoint.header import Limits
from weightshare.checkpoint.index import INDEX_NAME, index_bytes, read_index
from weightshare.checkpoint.locate import SHARD_PATTERN, SINGLE_NAME, SUFFIX, locate
from weightshare.checkpoint.output_file import (
    OutputFile,
    exists_error,
    output_error,
    permissions,
    remove_quietly,
    sync_folder,
)
from weightshare.checkpoint.source_file import SourceFile
from weightshare.errors import CheckpointError, OutputError

_log = logging.getLogger("weightshare")


def weight_files(folder: str) -> list[str]:
    """Return the names in a folder that are, or look like, parts of a safetensors checkpoint."""
    if not os.path.isdir(folder):
        return []
    ends = (SUFFIX, SUFFIX + ".index.json")
    return sorted(n for n in os.listdir(folder) if n.endswith(ends) and not n.startswith("."))


def old_permissions(folder: str) -> int | None:
    """Return the permission bits of the weights that a folder holds now, None without any."""
    names = [SINGLE_NAME, *weight_files(folder)]
    found = (permissions(os.path.join(folder, name)) for name in names)
    return next((mode for mode in found if mode is not None), None)


class Publication:
    """The step from finished temporary files to a named output, and the way back if it fails.

    Parameters
    ----------
    folder : str
    overwrite : bool
    mode : int or None
        Permission bits of the index.
    """

    def __init__(self, folder: str, overwrite: bool, mode: int | None) -> None:
        self._folder = folder
        self._overwrite = overwrite
        self._mode = mode
        self._named: list[str] = []
        self._renamed: list[tuple[OutputFile, str]] = []
        self.done = False

    def one_file(self, file: OutputFile, name: str) -> None:
        """Publish a single file; the rename is the moment of change."""
        if not self._overwrite and os.path.lexists(self._at(name)):
            raise exists_error(self._at(name), "it appeared while the output was written")
        file.rename(name)
        self.done = True
        sync_folder(self._folder)

    def one_model(self, file: OutputFile) -> None:
        """Publish a folder with ``model.safetensors``; then remove its index and old shards."""
        stale = self._stale()
        self.one_file(file, SINGLE_NAME)
        self._remove([INDEX_NAME, *stale])

    def shards(
        self,
        files: Mapping[str, OutputFile],
        weight_map: Mapping[str, str],
        metadata: dict[str, object],
    ) -> None:
        """Publish shards (files by their plain names) and their index, the index last.

        Where a plain name is in use the shard is first published under another one, and takes
        its plain name once the old shard is gone.
        """
        if not self._overwrite and weight_files(self._folder):
            raise exists_error(self._folder, "it appeared while the output was written")
        stale = self._stale()
        self._index_lone_file()
        given = self._free_names(files)
        for plain, file in files.items():
            self._renamed.append((file, given[plain]))
            file.rename(given[plain])
        sync_folder(self._folder)
        self._write_index({name: given[shard] for name, shard in weight_map.items()}, metadata)
        self._drop_single()
        self.done = True
        sync_folder(self._folder)
        self._remove([name for name in stale if name not in given.values()])
        if any(plain != name for plain, name in given.items()):
            self._take_plain_names(given, weight_map, metadata)

    def undo(self) -> None:
        """Take back the names that were given, unless the output is complete."""
        if not self.done:
            for name in reversed(self._named):
                remove_quietly(self._at(name))
            for file, name in reversed(self._renamed):
                file.take_back(name)
        self._named.clear()
        self._renamed.clear()

    def _at(self, name: str) -> str:
        return os.path.join(self._folder, name)

    def _stale(self) -> list[str]:
        found = {name for name in weight_files(self._folder) if SHARD_PATTERN.fullmatch(name)}
        try:
            listed = read_index(self._at(INDEX_NAME), Limits()).shards
        except CheckpointError:
            listed = []
        # An index may name anything; what is not called a weights file is not removed.
        return sorted(found | {name for name in listed if name.endswith(SUFFIX)})

    def _free_names(self, files: Mapping[str, OutputFile]) -> dict[str, str]:
        if not any(os.path.lexists(self._at(name)) for name in files):
            return {name: name for name in files}
        mark = secrets.token_hex(4)
        return {name: f"{name.removesuffix(SUFFIX)}.{mark}{SUFFIX}" for name in files}

    def _index_lone_file(self) -> None:
        # A folder without index means its only file until shards stand beside it.
        try:
            found = locate(self._folder).file
            if not found or os.path.basename(found) == SINGLE_NAME:
                return
            source = SourceFile(found, Limits())
        except CheckpointError:
            return
        source.close()
        names = source.header.tensors
        if names:
            self._write_index(dict.fromkeys(names, os.path.basename(found)), {})
            self._named.append(INDEX_NAME)
            sync_folder(self._folder)

    def _write_index(self, weight_map: Mapping[str, str], metadata: dict[str, object]) -> None:
        text = index_bytes(weight_map, metadata)
        file = OutputFile(self._folder, INDEX_NAME, len(text), self._mode)
        try:
            file.write(0, memoryview(text))
            file.finish()
            file.rename(INDEX_NAME)
        finally:
            file.discard()

    def _drop_single(self) -> None:
        single = self._at(SINGLE_NAME)
        if not os.path.lexists(single):
            return
        self._named.append(INDEX_NAME)
        sync_folder(self._folder)
        try:
            os.unlink(single)
        except OSError as error:
            raise output_error(error, single, 0) from error

    def _remove(self, names: list[str]) -> None:
        left = [name for name in names if not remove_quietly(self._at(name))]
        if left:
            _log.warning("%s: old files could not be removed: %s", self._folder, ", ".join(left))

    def _take_plain_names(
        self, given: Mapping[str, str], weight_map: Mapping[str, str], metadata: dict[str, object]
    ) -> None:
        linked: list[str] = []
        try:
            for plain, name in given.items():
                os.link(self._at(name), self._at(plain), follow_symlinks=False)
                linked.append(plain)
            sync_folder(self._folder)
            self._write_index(weight_map, metadata)
        except (OSError, OutputError) as error:
            _log.info("%s: the shards keep their longer names (%s)", self._folder, error)
            self._remove(linked)
            return
        self._remove(list(given.values()))
