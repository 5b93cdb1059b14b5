"""Writing checkpoints in two passes: headers from the specs, then data at their final offsets."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np

from weightshare.checkpoint.codes import message, shown
from weightshare.checkpoint.header import TensorInfo, dtype_code
from weightshare.checkpoint.index import INDEX_NAME
from weightshare.checkpoint.locate import SINGLE_NAME, SUFFIX, path_text
from weightshare.checkpoint.output_file import (
    OutputFile,
    exists_error,
    output_error,
    permissions,
    remove_dead_partials,
    sync_folder,
)
from weightshare.checkpoint.publish import Publication, old_permissions, weight_files
from weightshare.checkpoint.reader import Checkpoint, flat_bytes
from weightshare.checkpoint.sharding import (
    Spec,
    checked_metadata,
    checked_specs,
    plan_shards,
    shard_bytes,
)
from weightshare.checkpoint.values import PIECE_BYTES, as_array, pieces
from weightshare.errors import ArgumentError, ArgumentTypeError, OutputError


class CheckpointWriter:
    """A checkpoint that is written tensor by tensor, in any order, from several threads.

    Everything is planned from the specs, and the disk space is reserved, before any data come.
    The output gets its name only in `commit`; until then, and after any failure, what was there
    before is untouched.

    Parameters
    ----------
    path : str or PathLike
        One file if it ends in ``.safetensors``, else a folder, which is made if it is missing.
    specs : iterable of (name, dtype code, shape)
        Such as ``("w", "BF16", (3, 2))``; shards are filled in this order.
    metadata : mapping of str to str, optional
        ``{"format": "pt"}`` is always added. With several shards it goes into the index.
    max_shard_size : int or str, optional
        Bytes, ``"5GB"`` (decimal, the default) or ``"5GiB"``; for a folder only.
    overwrite : bool, default False
        Replace an existing output.
    token : str, optional
        16 hexadecimal digits; the temporary files are named by them, and `suspend` leaves them.
    going_on : bool, default False
        Whether such files are there and are gone on with; `mark_written` says what is in them.

    Raises
    ------
    OutputExistsError
        There is an output and `overwrite` is not given.
    OutputSpaceError
        The disk does not hold it.
    OutputError
        The folder cannot be written.
    ArgumentError, ArgumentTypeError, ElementError, ShapeError
        A spec, the metadata or the size cannot be used.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "m.safetensors")
    ...     with CheckpointWriter(path, [("w", "F32", (2, 2))]) as writer:
    ...         writer.write("w", 8, np.ones(2, np.float32))
    ...         writer.write("w", 0, np.zeros(2, np.float32))
    ...         files = writer.commit()
    ...     os.path.getsize(path) == writer.info("w").offset + 16
    True
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        specs: Iterable[Spec],
        *,
        metadata: Mapping[str, str] | None = None,
        max_shard_size: int | str | None = None,
        overwrite: bool = False,
        token: str | None = None,
        going_on: bool = False,
    ) -> None:
        self._path = path_text(path)
        self._token = token
        self._going_on = going_on
        self._single = self._path.endswith(SUFFIX)
        if self._single and max_shard_size is not None:
            raise ArgumentError("max_shard_size: a path that ends in .safetensors is one file")
        self._metadata = checked_metadata(metadata)
        limit = None if self._single else shard_bytes(max_shard_size)
        split = os.path.split(self._path)
        self._folder, name = (
            (split[0] or ".", split[1]) if self._single else (self._path, SINGLE_NAME)
        )
        self._shards = plan_shards(checked_specs(specs), limit, self._metadata, name)
        self._places = {
            name: (info, shard.name)
            for shard in self._shards
            for name, info in shard.tensors.items()
        }
        self._missing = {name: info.nbytes for name, (info, _) in self._places.items()}
        self._lock = threading.Lock()
        self._files: dict[str, OutputFile] = {}
        self._finalizer = weakref.finalize(self, _discard, self._files)
        self._made_folders: list[str] = []
        self._ended = False
        self._finished = False
        self._check_target(bool(overwrite))
        try:
            self._open(bool(overwrite))
        except BaseException:
            self._publication = Publication(self._folder, bool(overwrite), None)
            if going_on:
                self.suspend()
            else:
                self.abort()
            raise

    @property
    def path(self) -> str:
        """Where the output will be."""
        return self._path

    @property
    def is_published(self) -> bool:
        """Whether the output is the new one, even if `commit` failed after that."""
        return self._publication.done

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(shard.data_nbytes for shard in self._shards)

    @property
    def tensors(self) -> dict[str, TensorInfo]:
        """Where each tensor goes, file by file in the order of their offsets."""
        return {name: self.info(name) for name in self._places}

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor goes: its file (under its final name), offset and bytes.

        Raises
        ------
        KeyError
            It is not among the specs.
        """
        info, shard = self._place(name)
        file = os.path.join(self._folder, shard)
        return TensorInfo(name, info.dtype, info.shape, file, info.offset, info.nbytes)

    def write(self, name: str, offset_bytes: int, buffer: Any) -> None:
        """Write raw little-endian bytes of a tensor; callable from several threads.

        Parameters
        ----------
        name : str
        offset_bytes : int
            From the start of the tensor's data.
        buffer : ndarray or object with the buffer protocol
            C-contiguous. Every byte of every tensor has to be written exactly once.

        Raises
        ------
        KeyError
            It is not among the specs.
        ArgumentError, ArgumentTypeError
            The range leaves the tensor, or it is no buffer.
        OutputError
            The disk refused; call `abort`, or leave the ``with`` block by the exception.
        """
        self.write_many([(name, offset_bytes, buffer)])

    def write_many(self, parts: Iterable[tuple[str, int, Any]]) -> None:
        """Write several buffers; those that are neighbours in a file are written together.

        Parameters
        ----------
        parts : iterable of (name, offset_bytes, buffer)
            Each as for `write`.

        Raises
        ------
        KeyError, ArgumentError, ArgumentTypeError, OutputError
            As `write`.
        """
        if self._ended or self._finished:
            raise OutputError(message("E404", path=self._path))
        run: list[memoryview] = []
        names: list[str] = []
        last, begin, end = "", 0, 0
        for name, offset, buffer in parts:
            shard, start, data = self._stretch(name, offset, buffer)
            if shard != last or start != end:
                self._write_run(last, begin, names, run)
                names, run, last, begin = [], [], shard, start
            names.append(name)
            run.append(data)
            end = start + len(data)
        self._write_run(last, begin, names, run)

    def _stretch(self, name: str, offset: int, buffer: Any) -> tuple[str, int, memoryview]:
        info, shard = self._place(name)
        data = flat_bytes(buffer, "buffer")
        if offset < 0 or offset + len(data) > info.nbytes:
            raise ArgumentError(
                f"offset_bytes: bytes {offset} to {offset + len(data)} leave tensor "
                f"{shown(name)}, which has {info.nbytes}"
            )
        return shard, info.offset + offset, data

    def _write_run(self, shard: str, start: int, names: list[str], parts: list[memoryview]) -> None:
        if not parts:
            return
        self._files[shard].write(start, *parts)
        with self._lock:
            for name, part in zip(names, parts, strict=True):
                self._missing[name] -= len(part)

    def mark_written(self, name: str, nbytes: int) -> None:
        """Say that so many bytes of a tensor are in the file already, from an earlier run."""
        self._missing[name] -= nbytes

    def sync(self) -> None:
        """Bring to the disk what was written so far; callable while others write.

        Raises
        ------
        OutputError
            The disk refused.
        """
        for file in self._files.values():
            file.sync()

    @property
    def inodes(self) -> dict[str, int]:
        """What tells each temporary file from others in the folder, by its future name."""
        return {name: file.inode for name, file in self._files.items()}

    def finish(self) -> None:
        """Bring all data to the disk, still under temporary names; `commit` then only renames.

        Does nothing when it was called before.

        Raises
        ------
        OutputError
            Not every byte was written (E405), or the disk refused; then the old output stays.
        """
        if self._ended:
            raise OutputError(message("E404", path=self._path))
        if self._finished:
            return
        wrong = [name for name, missing in self._missing.items() if missing]
        if wrong:
            detail = f"{len(wrong)} tensors have not each byte written once"
            raise OutputError(message("E405", path=self._path, tensor=wrong[0], detail=detail))
        try:
            for file in self._files.values():
                file.finish()
        except BaseException:
            self._give_up()
            raise
        self._finished = True

    def commit(self) -> tuple[str, ...]:
        """Make the output visible: `finish`, then the names of the files, the index last.

        Returns
        -------
        tuple of str
            The files of the output, the index last if there is one.

        Raises
        ------
        OutputError
            Not every byte was written (E405), or the disk refused; then the old output stays.
        """
        self.finish()
        try:
            files = self._publish()
            for folder in self._made_folders:
                sync_folder(os.path.dirname(os.path.abspath(folder)))
        except BaseException:
            self._give_up()
            raise
        self._ended = True
        return files

    def _give_up(self) -> None:
        # What can be gone on with is left to whoever holds the token: to suspend or to abort.
        if self._token is None or self._publication.done:
            self.abort()
        else:
            self._publication.undo()

    def abort(self) -> None:
        """Remove the temporary files; what was there before stays. Does nothing after `commit`."""
        if self._ended:
            return
        self._ended = True
        self._publication.undo()
        self._finalizer()
        if self._publication.done:
            return
        for folder in reversed(self._made_folders):
            try:
                os.rmdir(folder)
            except OSError:
                return

    def suspend(self) -> None:
        """Close the temporary files and leave them; does nothing after `commit` and `abort`."""
        if self._ended:
            return
        self._ended = True
        self._publication.undo()
        self._finalizer.detach()
        for file in self._files.values():
            file.suspend()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is None and not self._ended:
            self.commit()
        self.abort()

    def _place(self, name: str) -> tuple[TensorInfo, str]:
        try:
            return self._places[name]
        except KeyError:
            raise KeyError(f"no tensor {shown(str(name))!r} is planned for {self._path}") from None

    def _check_target(self, overwrite: bool) -> None:
        if self._single:
            if os.path.isdir(self._path) and not os.path.islink(self._path):
                raise OutputError(message("E403", path=self._path, detail="it is a folder"))
            if os.path.lexists(self._path) and not overwrite:
                link = "it is a link" if os.path.islink(self._path) else ""
                raise exists_error(self._path, link)
            return
        if os.path.lexists(self._path) and not os.path.isdir(self._path):
            detail = f"it is no folder; the name of a single file must end in {SUFFIX}"
            raise OutputError(message("E403", path=self._path, detail=detail))
        found = weight_files(self._folder)
        if found and not overwrite:
            raise exists_error(self._path, f"it holds {', '.join(map(shown, found[:3]))}")

    def _open(self, overwrite: bool) -> None:
        if self._single:
            mode = permissions(self._path)
        else:
            self._make_folder()
            mode = old_permissions(self._folder)
        self._publication = Publication(self._folder, overwrite, mode)
        remove_dead_partials(self._folder)
        for shard in self._shards:
            self._files[shard.name] = OutputFile(
                self._folder,
                shard.name,
                shard.nbytes,
                mode,
                token=self._token,
                going_on=self._going_on,
            )
        for shard in self._shards:
            self._files[shard.name].write(0, memoryview(shard.first))

    def _make_folder(self) -> None:
        missing = []
        folder = os.path.abspath(self._folder)
        while not os.path.isdir(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            try:
                os.mkdir(folder)
            except FileExistsError:
                continue
            except OSError as error:
                raise output_error(error, folder, self.nbytes) from error
            self._made_folders.append(folder)

    def _publish(self) -> tuple[str, ...]:
        names = [os.path.join(self._folder, shard.name) for shard in self._shards]
        if len(self._shards) > 1:
            kept = {key: value for key, value in self._metadata.items() if key != "format"}
            metadata: dict[str, object] = {**kept, "total_size": self.nbytes}
            weight_map = {name: shard for name, (_, shard) in sorted(self._places.items())}
            self._publication.shards(self._files, weight_map, metadata)
            return (*names, os.path.join(self._folder, INDEX_NAME))
        shard = self._shards[0]
        if self._single:
            self._publication.one_file(self._files[shard.name], shard.name)
        else:
            self._publication.one_model(self._files[shard.name])
        return tuple(names)


def _discard(files: dict[str, OutputFile]) -> None:
    for file in files.values():
        file.discard()


def save_checkpoint(
    path: str | os.PathLike[str],
    tensors: Mapping[str, Any],
    *,
    metadata: Mapping[str, str] | None = None,
    max_shard_size: int | str | None = None,
    overwrite: bool = False,
) -> None:
    """Write tensors as a safetensors checkpoint; it appears only when it is complete.

    Parameters
    ----------
    path : str or PathLike
        One file if it ends in ``.safetensors``, else a folder with ``model.safetensors`` or, when
        it is larger than `max_shard_size`, shards and ``model.safetensors.index.json``.
    tensors : mapping of str to array_like
        NumPy arrays in any strides and byte order, CPU torch tensors, lists, or a `Checkpoint`
        (which is copied in pieces).
    metadata : mapping of str to str, optional
        ``{"format": "pt"}`` is always added. With several shards it goes into the index.
    max_shard_size : int or str, optional
        Bytes, ``"5GB"`` (decimal, the default) or ``"5GiB"``; for a folder only. Shards are
        filled in the order of the mapping; a larger tensor gets a shard of its own.
    overwrite : bool, default False
        Replace an existing output; the old one survives every failure. A link is replaced, what
        it leads to is not touched.

    Raises
    ------
    OutputExistsError
        There is an output and `overwrite` is not given.
    OutputSpaceError, OutputError
        The disk does not hold it, or it cannot be written.
    ArgumentTypeError, ArgumentError
        `tensors` or `metadata` is not a mapping, or holds what cannot be written.
    ElementError
        The elements of an array have no place in the format (object, text, complex128, ...).

    Notes
    -----
    Format: the safetensors README; for up to one metadata key the bytes are those that
    ``safetensors.numpy.save_file`` writes for contiguous arrays.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ws.save_checkpoint(folder, {"w": np.eye(2), "b": [1.0, 2.0]}, max_shard_size=32)
    ...     for name in sorted(os.listdir(folder)): print(name)
    model-00001-of-00002.safetensors
    model-00002-of-00002.safetensors
    model.safetensors.index.json
    """
    if not isinstance(tensors, Mapping):
        got = type(tensors).__name__
        raise ArgumentTypeError(f"tensors: expected a mapping of names to arrays, got {got}")
    specs = [_spec(name, tensors) for name in tensors]
    with CheckpointWriter(
        path, specs, metadata=metadata, max_shard_size=max_shard_size, overwrite=overwrite
    ) as writer:
        for name, code, shape in specs:
            if isinstance(tensors, Checkpoint):
                _copy(tensors, name, writer)
            else:
                _write_array(name, as_array(name, tensors[name]), (code, shape), writer)
        writer.commit()


def _spec(name: str, tensors: Mapping[str, Any]) -> Spec:
    if isinstance(tensors, Checkpoint):
        info = tensors.info(name)
        return name, info.dtype, info.shape
    array = as_array(str(name), tensors[name])
    return name, dtype_code(array.dtype) or "", array.shape


def _copy(source: Checkpoint, name: str, writer: CheckpointWriter) -> None:
    nbytes = source.info(name).nbytes
    space = np.empty(min(nbytes, PIECE_BYTES), np.uint8)
    for start in range(0, nbytes, PIECE_BYTES):
        part = space[: min(PIECE_BYTES, nbytes - start)]
        source.read_into(name, start, part)
        writer.write(name, start, part)


def _write_array(
    name: str,
    array: np.ndarray[Any, Any],
    planned: tuple[str, tuple[int, ...]],
    writer: CheckpointWriter,
) -> None:
    if (dtype_code(array.dtype), array.shape) != planned:
        raise ArgumentError(f"tensors[{shown(name)!r}]: its dtype or shape changed while saving")
    offset = 0
    for piece in pieces(array):
        writer.write(name, offset, piece)
        offset += piece.nbytes
