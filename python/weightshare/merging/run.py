"""Carrying out a plan: checkpoints in, one complete checkpoint out, in bounded memory."""

from __future__ import annotations

import contextlib
import errno
import os
import resource
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from weightshare._core.threads import resolve_threads
from weightshare.checkpoint import Checkpoint, open_checkpoint
from weightshare.checkpoint.locate import path_text
from weightshare.checkpoint.output_file import remove_dead_partials
from weightshare.checkpoint.source_file import collector_paused
from weightshare.errors import CheckpointChangedError, OutputExistsError
from weightshare.merging.card import companion_texts
from weightshare.merging.files import (
    LOCK_NAME,
    locked_folder,
    output_error,
    require_empty,
)
from weightshare.merging.finite import check_policy
from weightshare.merging.leftovers import PROVENANCE_NAME, stale_files, strangers
from weightshare.merging.pipeline import Pipeline, Progress, divide
from weightshare.merging.plan import MergePlan, PlannedModel, Source
from weightshare.merging.progress import progress_callback
from weightshare.merging.recovery import Workplace
from weightshare.merging.registry import get_method
from weightshare.merging.report import MergeReport
from weightshare.merging.sizes import parse_bytes
from weightshare.merging.staging import StagedFiles, settle
from weightshare.merging.work import Work


def run_plan(
    plan: MergePlan,
    out: str | os.PathLike[str],
    *,
    resume: bool = True,
    overwrite: bool = False,
    memory: int | str = "512MB",
    threads: int | None = None,
    progress: Progress | bool | None = None,
    nan: str = "error",
) -> MergeReport:
    """Carry out a plan.

    The weights appear complete or not at all, and their bytes do not depend on `memory` or
    `threads`. The small files beside them get their names in the few renames before the weights
    get theirs; a run that is killed just there is taken back by the next one. What an interrupted
    run has written stays in hidden files of the output folder, and the next run of an equal plan
    on unchanged files goes on from there.

    Parameters
    ----------
    plan : MergePlan
        From `weightshare.plan_merge`.
    out : path
        A folder; or, when it ends in ``.safetensors``, one file that holds only the weights: no
        provenance, so that `weightshare verify` has no checksums to compare.
    resume : bool
        Whether an interrupted merge is gone on with; else what it left is removed.
    overwrite : bool
        Whether an output that exists is replaced, once the new one is complete.
    memory : int or str
        Budget of the whole process, in bytes or as text; arrays that the caller holds are not
        counted.
    threads : int, optional
        Tiles that are worked on at the same time; None means ``OMP_NUM_THREADS``, else the cores
        of this process. There are fewer when the memory does not hold so many.
    progress : callable or True, optional
        ``progress(done, total)`` in bytes of output; True is a bar on stderr.
    nan : {"error", "warn", "ignore"}
        What to do when finite weights give NaN or infinity. ``"allow"`` is ``"ignore"``.

    Returns
    -------
    MergeReport
        What was read, computed and written.

    Raises
    ------
    OutputExistsError
        The output exists and `overwrite` is false.
    OutputLockedError
        Another run is writing it.
    OutputSpaceError
        The disk or the budget of memory does not hold what is needed.
    CheckpointError
        An input is damaged, or differs from what was planned.
    NonFiniteError
        Finite weights gave NaN or infinity and `nan` is ``"error"``.
    ArgumentError
        `out`, `memory`, `threads` or `nan` is not what it should be.
    """
    began = time.monotonic()
    policy = check_policy(nan)
    count = resolve_threads(threads)
    method = get_method(plan.method)
    room = divide(plan, method, parse_bytes(memory, "memory"), count)
    target = Path(path_text(out, "out"))
    with locked_output(target, overwrite) as folder, contextlib.ExitStack() as opened:
        with collector_paused():
            inputs = [opened.enter_context(_reopened(model)) for model in plan.models]
            _check_headers(plan, inputs)
            staged = _stage(plan, folder) if folder == target else StagedFiles(folder)
            opened.callback(staged.discard)
            work = Work(plan, target, [checkpoint.identities for checkpoint in inputs])
            opened.enter_context(work.opened(policy, resume=resume, overwrite=overwrite))
        pipeline = Pipeline(
            *(plan, method, inputs, work.writer, room),
            threads=max(1, count // room.workers),
            ledger=work.ledger,
            done=work.enter,
        )
        with progress_callback(progress) as callback:
            pipeline.run(callback)
        if folder == target:
            with collector_paused():
                record = work.provenance(staged.checksums).encode("utf-8")
            staged.add(PROVENANCE_NAME, record)
        work.finish()
        with staged.published(stale_files(folder, staged.names) if folder == target else ()):
            files = (*map(os.path.basename, work.commit()), *staged.names)
        stay = strangers(folder, files) if folder == target else ()
    return MergeReport(
        out=str(out),
        method=plan.method,
        merged=plan.counts["merge"],
        copied=plan.counts["copy"],
        bytes_read=plan.read_bytes,
        bytes_written=plan.nbytes,
        seconds=time.monotonic() - began,
        peak_memory=resident_peak(),
        files=files,
        warnings=(*plan.warnings, *work.warnings, *stay),
        bytes_reused=work.reused,
        nonfinite=work.ledger.nonfinite,
    )


@contextlib.contextmanager
def locked_output(target: Path, overwrite: bool) -> Iterator[Path]:
    """Hold the lock of an output folder, or of one output file; yield the folder.

    Parameters
    ----------
    target : Path
        A folder, or a file when it ends in ``.safetensors``.
    overwrite : bool
        Whether the output may exist.

    Raises
    ------
    OutputExistsError
        It exists, and may not.
    OutputLockedError
        Another run holds it.
    """
    single = target.suffix == ".safetensors"
    folder = target.parent if single else target
    name = f".{os.fsdecode(os.fsencode(target.name)[:100])}{LOCK_NAME}" if single else LOCK_NAME
    with contextlib.suppress(FileNotFoundError, NotADirectoryError, PermissionError):
        try:
            os.lstat(target)
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:  # known now, not when all is computed
                raise output_error(error, target) from error
            raise
    with locked_folder(folder, name):
        if not single:
            _clear_up(folder)
        Workplace(folder, target.name if single else None).take_back()
        if single and os.path.lexists(target) and not overwrite:
            raise OutputExistsError(
                f"{target}: exists; choose another or allow it with overwrite (--overwrite)"
            )
        if not single and not overwrite:
            require_empty(folder)
        yield folder


def _clear_up(folder: Path) -> None:
    """Remove what a killed run left, and take back what it had half published."""
    remove_dead_partials(str(folder))
    try:
        settle(folder)
    except OSError as error:
        raise output_error(error, folder) from error


def _reopened(model: PlannedModel) -> Checkpoint:
    for file, planned in model.files:
        size = os.stat(file).st_size if os.path.exists(file) else None
        if size != planned:
            raise CheckpointChangedError(
                f"{file}: has {size} bytes, had {planned} when the merge was planned; plan again",
                path=file,
            )
    return open_checkpoint(model.path)


def _check_headers(plan: MergePlan, inputs: list[Checkpoint]) -> None:
    for tensor in plan.tensors:
        for source in tensor.reads:
            if source.view is None:
                _check_source(source, inputs, tensor.shape)
                continue
            for part in source.view.reads:
                _check_source(part, inputs, None)


def _check_source(source: Source, inputs: list[Checkpoint], shape: tuple[int, ...] | None) -> None:
    """Compare a tensor with the plan; of the parts of a view the plan holds no shapes."""
    try:
        found = inputs[source.model].info(source.name)
    except KeyError:
        path = inputs[source.model].path
        raise CheckpointChangedError(
            f"{path}: {source.name} is gone, was there when the merge was planned; plan again",
            path=path,
            tensor=source.name,
        ) from None
    if found.dtype != source.dtype or (shape is not None and found.shape != shape):
        raise CheckpointChangedError(
            f"{found.file}: {source.name} is {found.dtype} {tuple(found.shape)}, was"
            f" {source.dtype} {shape} when the merge was planned; plan again",
            path=found.file,
            tensor=source.name,
        )


def _stage(plan: MergePlan, folder: Path) -> StagedFiles:
    staged = StagedFiles(folder)
    try:
        for copy in plan.copies:
            staged.add_copy(copy.name, copy.source)
        for name, content in companion_texts(plan).items():
            staged.add(name, content)
    except BaseException:
        staged.discard()
        raise
    return staged


def resident_peak() -> int:
    """Return the largest resident memory of this process so far, in bytes."""
    # getrusage also counts the parent's memory at the fork; the kernel's own mark does not.
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status") as status:
        line = next(line for line in status if line.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
