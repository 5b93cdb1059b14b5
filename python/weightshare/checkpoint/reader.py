"""Reading checkpoints: a lazy mapping from tensor names to NumPy arrays."""

from __future__ import annotations

import difflib
import html
import operator
import os
from collections.abc import Iterable, Iterator, Mapping
from types import TracebackType
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from weightshare.checkpoint.codes import problem, shown
from weightshare.checkpoint.header import MAX_HEADER_BYTES, MAX_TENSORS, Limits, TensorInfo
from weightshare.checkpoint.index import Index, check_against_shards, read_index, shard_path
from weightshare.checkpoint.locate import locate, path_text
from weightshare.checkpoint.source_file import SourceFile
from weightshare.errors import ArgumentError, ArgumentTypeError, CheckpointError, ShapeError

_HTML_ROWS = 80
_SEARCHED_NAMES = 20_000


class Checkpoint(Mapping[str, npt.NDArray[Any]]):
    """A read-only, lazy mapping from tensor names to arrays, over one file or several shards.

    Made by `open_checkpoint`. Each look-up reads the tensor anew and returns a fresh, writable,
    C-contiguous array. Usable from several threads, and as a context manager. The files stay
    open, so a checkpoint that is replaced by rename meanwhile still gives its old numbers.

    Examples
    --------
    >>> import os, tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     path = os.path.join(folder, "m.safetensors")
    ...     ws.save_checkpoint(path, {"w": np.arange(6, dtype=np.float32).reshape(3, 2)})
    ...     with ws.open_checkpoint(path) as model:
    ...         print(list(model), model["w"].sum(), model.rows("w", 1, 2), model.info("w").dtype)
    ['w'] 15.0 [[2. 3.]] F32
    """

    def __init__(self, path: str, files: list[SourceFile], index: Index | None = None) -> None:
        self._path = path
        self._files = files
        self._index = index
        self._tensors = {
            name: (info, file) for file in files for name, info in file.header.tensors.items()
        }

    @property
    def path(self) -> str:
        """The path that was opened."""
        return self._path

    @property
    def files(self) -> tuple[str, ...]:
        """The files that hold the tensors."""
        return tuple(file.path for file in self._files)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(info.nbytes for info, _ in self._tensors.values())

    @property
    def metadata(self) -> dict[str, str]:
        """The texts of the index and of every file's ``__metadata__``; an earlier file wins."""
        own = self._index.metadata if self._index else {}
        merged = {key: value for key, value in own.items() if isinstance(value, str)}
        for file in self._files:
            merged = {**file.header.metadata, **merged}
        return merged

    def info(self, name: str) -> TensorInfo:
        """Return where a tensor lies and what it is, from the header alone.

        Parameters
        ----------
        name : str

        Returns
        -------
        TensorInfo
            ``name``, ``dtype`` (a code such as ``"BF16"``), ``shape``, ``file``, ``offset`` in
            the file and ``nbytes``.

        Raises
        ------
        KeyError
            There is no such tensor.
        """
        return self._find(name)[0]

    def rows(self, name: str, start: int, stop: int) -> npt.NDArray[Any]:
        """Read the rows ``start`` to ``stop - 1`` of a tensor, and nothing else of it.

        Parameters
        ----------
        name : str
        start, stop : int
            ``0 <= start <= stop <= shape[0]``.

        Returns
        -------
        ndarray of shape (stop - start, ...)

        Raises
        ------
        KeyError
            There is no such tensor.
        ShapeError, ArgumentError
            The tensor has no axes, or has not these rows.
        CheckpointError
            It cannot be read.
        """
        info, file = self._find(name)
        first, last = _whole("start", start), _whole("stop", stop)
        if not info.shape:
            raise ShapeError(f"rows: tensor {shown(name)} is a single number and has no rows")
        if not 0 <= first <= last <= info.shape[0]:
            raise ArgumentError(
                f"rows: expected 0 <= start <= stop <= {info.shape[0]} for tensor {shown(name)}, "
                f"got start={first}, stop={last}"
            )
        row = info.nbytes // info.shape[0] if info.shape[0] else 0
        return _read_array(info, file, (last - first, *info.shape[1:]), first * row)

    def read_into(self, name: str, offset_bytes: int, buffer: Any) -> None:
        """Fill a writable buffer with raw bytes of a tensor, as they stand in the file.

        Parameters
        ----------
        name : str
        offset_bytes : int
            Of the first byte wanted, from the start of the tensor's data.
        buffer : ndarray or object with the buffer protocol
            C-contiguous and writable; its size in bytes is what is read.

        Raises
        ------
        KeyError
            There is no such tensor.
        ArgumentError, ArgumentTypeError
            The range leaves the tensor, or the buffer cannot be filled.
        CheckpointChangedError
            The file changed.
        """
        file, start, target = self._place(name, offset_bytes, buffer)
        file.read_into(start, target)

    def read_many(self, parts: Iterable[tuple[str, int, Any]]) -> None:
        """Fill several buffers; those that are neighbours in a file are read together.

        Parameters
        ----------
        parts : iterable of (name, offset_bytes, buffer)
            Each as for `read_into`.

        Raises
        ------
        KeyError, ArgumentError, ArgumentTypeError, CheckpointChangedError
            As `read_into`.
        """
        run: list[memoryview] = []
        last: SourceFile | None = None
        begin = end = 0
        for part in parts:
            file, start, target = self._place(*part)
            if file is not last or start != end:
                if last is not None:
                    last.read_into(begin, *run)
                run, last, begin = [], file, start
            run.append(target)
            end = start + len(target)
        if last is not None:
            last.read_into(begin, *run)

    def will_need(self, name: str, offset_bytes: int, nbytes: int) -> None:
        """Tell the system that so many bytes of a tensor are read soon; it may read them ahead."""
        info, file = self._find(name)
        file.will_need(info.offset + offset_bytes, nbytes)

    @property
    def identities(self) -> dict[str, tuple[int, int, str]]:
        """Of each file its size, its time of change in ns and the SHA-256 of its header."""
        return {file.path: file.identity for file in self._files}

    def _place(
        self, name: str, offset_bytes: int, buffer: Any
    ) -> tuple[SourceFile, int, memoryview]:
        info, file = self._find(name)
        target = flat_bytes(buffer, "buffer", writable=True)
        offset = _whole("offset_bytes", offset_bytes)
        if offset < 0 or offset + len(target) > info.nbytes:
            raise ArgumentError(
                f"offset_bytes: bytes {offset} to {offset + len(target)} leave tensor "
                f"{shown(name)}, which has {info.nbytes}"
            )
        return file, info.offset + offset, target

    def close(self) -> None:
        """Close the files; the arrays that were read stay valid."""
        for file in self._files:
            file.close()

    def _find(self, name: str) -> tuple[TensorInfo, SourceFile]:
        try:
            return self._tensors[name]
        except KeyError:
            raise KeyError(self._missing(name)) from None

    def _missing(self, name: object) -> str:
        known = list(self._tensors)[:_SEARCHED_NAMES]
        near = difflib.get_close_matches(str(name), known, n=3) if len(str(name)) < 500 else []
        hint = f"; the nearest names are {', '.join(map(shown, near))}" if near else ""
        return f"no tensor {shown(str(name))!r} in {self._path}{hint}"

    def __getitem__(self, name: str) -> npt.NDArray[Any]:
        info, file = self._find(name)
        return _read_array(info, file, info.shape, 0)

    def __contains__(self, name: object) -> bool:
        return name in self._tensors

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    # A mapping compares its values, which would read every weight: an open file is itself only.
    def __eq__(self, other: object) -> bool:
        return self is other

    def __hash__(self) -> int:
        return id(self)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _summary(self) -> str:
        codes = sorted({info.dtype for info, _ in self._tensors.values()})
        files = f"{len(self._files)} file{'s' if len(self._files) != 1 else ''}"
        closed = ", closed" if any(file.closed for file in self._files) else ""
        held = f"{len(self)} tensors, {size_text(self.nbytes)}, {files}"
        return f"{held}{', ' if codes else ''}{' '.join(codes)}{closed}"

    def __repr__(self) -> str:
        return f"<Checkpoint {shown(self._path)!r}: {self._summary()}>"

    def _repr_html_(self) -> str:
        rows = [
            f"<tr><td>{html.escape(shown(name, 60))}</td><td>{info.dtype}</td>"
            f"<td>{html.escape(str(list(info.shape))[:60])}</td>"
            f"<td style='text-align:right'>{size_text(info.nbytes)}</td></tr>"
            for name, (info, _) in list(self._tensors.items())[:_HTML_ROWS]
        ]
        if len(self) > _HTML_ROWS:
            rows.append(f"<tr><td colspan=4>and {len(self) - _HTML_ROWS} more</td></tr>")
        title = f"<b>Checkpoint</b> {html.escape(shown(self._path, 400))}"
        heads = "<tr><th>tensor</th><th>dtype</th><th>shape</th><th>size</th></tr>"
        summary = html.escape(self._summary())
        return f"<div>{title}<br>{summary}<table>{heads}{''.join(rows)}</table></div>"


def size_text(nbytes: int) -> str:
    """Return a number of bytes for people, in decimal units as disks and the hub count."""
    size = float(nbytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} TB"


def flat_bytes(buffer: Any, argument: str, *, writable: bool = False) -> memoryview:
    """Return a C-contiguous buffer as flat bytes, without a copy.

    Raises
    ------
    ArgumentTypeError, ArgumentError
        It is no buffer, or not C-contiguous, or read-only where it must be writable.
    """
    if isinstance(buffer, np.ndarray):
        if buffer.dtype.hasobject:
            raise ArgumentTypeError(f"{argument}: expected plain bytes, got dtype {buffer.dtype}")
        if buffer.dtype == np.uint8 and buffer.ndim == 1 and buffer.flags.c_contiguous:
            if writable and not buffer.flags.writeable:
                raise ArgumentError(f"{argument}: expected writable memory, got a read-only buffer")
            return memoryview(buffer)  # type: ignore[arg-type]
        if buffer.flags.c_contiguous:
            # bfloat16 and float8 arrays do not offer the buffer protocol themselves.
            buffer = buffer.reshape(-1).view(np.uint8)
    try:
        view = memoryview(buffer)
    except (TypeError, ValueError) as error:
        got = type(buffer).__name__
        raise ArgumentTypeError(f"{argument}: expected a buffer, got {got} ({error})") from None
    if not view.c_contiguous:
        raise ArgumentError(f"{argument}: expected C-contiguous memory; copy it first")
    if writable and view.readonly:
        raise ArgumentError(f"{argument}: expected writable memory, got a read-only buffer")
    return view.cast("B") if view.nbytes else memoryview(bytearray())


def _whole(argument: str, value: object) -> int:
    try:
        return operator.index(value)  # type: ignore[arg-type]
    except TypeError:
        got = type(value).__name__
        raise ArgumentTypeError(f"{argument}: expected a whole number, got {got}") from None


def _read_array(
    info: TensorInfo, file: SourceFile, shape: tuple[int, ...], offset: int
) -> npt.NDArray[Any]:
    dtype = info.numpy_dtype
    try:
        array = np.empty(shape, dtype)
    except (ValueError, OverflowError) as error:
        detail = f"{list(shape)}: {error}"
        raise problem("E108", path=info.file, tensor=info.name, detail=detail) from None
    file.read_into(info.offset + offset, flat_bytes(array, info.name, writable=True))
    if dtype == np.bool_:
        # Any byte but 0 is true; NumPy's own arithmetic goes wrong on bytes above 1.
        np.not_equal(array.view(np.uint8), 0, out=array)
    return array if np.little_endian else array.byteswap(inplace=True)


def open_checkpoint(
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    max_header_bytes: int = MAX_HEADER_BYTES,
    max_tensors: int = MAX_TENSORS,
) -> Checkpoint:
    """Open a safetensors checkpoint: headers are checked whole now, weights are read when used.

    Parameters
    ----------
    path : str or PathLike
        A ``.safetensors`` file, an index file, or a folder. Of a folder, ``model.safetensors``
        is taken, else ``model.safetensors.index.json``, else its only ``*.safetensors`` file.
    strict : bool, default False
        Refuse what is otherwise only odd: unknown fields in a header (else a warning) and a wrong
        ``total_size`` in an index.
    max_header_bytes : int, default 100_000_000
        The longest header, and the longest index, that is read.
    max_tensors : int, default 1_000_000
        The most tensors in one file.

    Returns
    -------
    Checkpoint
        A lazy mapping. bfloat16 and float8 come as `ml_dtypes` arrays.

    Raises
    ------
    CheckpointNotFoundError
        Nothing is there (E101), or a folder without weights (E104).
    CheckpointError
        A file breaks the format, or is a pickle, which is never read; ``.code`` says which.

    Notes
    -----
    Format: the safetensors README; shards: the convention of the Hugging Face hub.

    Examples
    --------
    >>> import tempfile, numpy as np
    >>> import weightshare as ws
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     ws.save_checkpoint(folder, {"w": np.ones((2, 3), np.float32)})
    ...     with ws.open_checkpoint(folder) as model:
    ...         model.info("w").shape
    (2, 3)
    """
    for argument, value in (("max_header_bytes", max_header_bytes), ("max_tensors", max_tensors)):
        if _whole(argument, value) < 1:
            raise ArgumentError(f"{argument}: expected at least 1, got {value}")
    limits = Limits(bool(strict), int(max_header_bytes), int(max_tensors))
    text = path_text(path)
    location = locate(text)
    if location.file:
        return Checkpoint(text, [SourceFile(location.file, limits)])
    return _open_shards(text, read_index(location.index, limits), limits)


def _open_shards(path: str, index: Index, limits: Limits) -> Checkpoint:
    folder = os.path.dirname(index.path) or "."
    files: dict[str, SourceFile] = {}
    wrong: list[CheckpointError] = []
    try:
        for shard in index.shards:
            try:
                files[shard] = SourceFile(shard_path(folder, shard, index.path), limits)
            except CheckpointError as error:
                wrong.append(error)
        if wrong:
            raise _all_of(wrong)
        tensors = {shard: file.header.tensors for shard, file in files.items()}
        check_against_shards(index, tensors, strict=limits.strict)
    except BaseException:
        for file in files.values():
            file.close()
        raise
    return Checkpoint(path, list(files.values()), index)


def _all_of(wrong: list[CheckpointError]) -> CheckpointError:
    first = wrong[0]
    if len(wrong) == 1:
        return first
    text = f"{len(wrong)} shards cannot be opened\n" + "\n".join(map(str, wrong[:10]))
    return CheckpointError(text, code=first.code, path=first.path, tensor=first.tensor)
