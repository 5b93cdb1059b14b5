"""Carrying out a plan that needs others first: each made in a folder, used, and removed."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from weightshare.checkpoint import open_checkpoint
from weightshare.errors import CheckpointError
from weightshare.merging.files import is_plain_name, require_space
from weightshare.merging.identity import plan_id
from weightshare.merging.leftovers import PROVENANCE_NAME
from weightshare.merging.pipeline import Progress
from weightshare.merging.plan import MergePlan, PlannedModel
from weightshare.merging.progress import progress_callback
from weightshare.merging.report import MergeReport
from weightshare.merging.run import locked_output, run_plan

_LARGEST_RECORD = 100_000_000


@dataclass(frozen=True)
class Run:
    """How plans are carried out.

    Attributes
    ----------
    resume, memory, threads, nan
        As for `weightshare.merge_checkpoints`.
    """

    resume: bool
    memory: int | str
    threads: int | None
    nan: str

    def __call__(
        self,
        plan: MergePlan,
        out: str | os.PathLike[str],
        *,
        overwrite: bool,
        progress: Progress | bool | None,
    ) -> MergeReport:
        """Carry out one plan."""
        return run_plan(
            plan,
            out,
            resume=self.resume,
            overwrite=overwrite,
            memory=self.memory,
            threads=self.threads,
            progress=progress,
            nan=self.nan,
        )


def run_stages(
    plan: MergePlan,
    out: str | os.PathLike[str],
    run: Run,
    *,
    intermediates: str | None = None,
    keep: bool = False,
    overwrite: bool = False,
    progress: Progress | bool | None = None,
) -> MergeReport:
    """Carry out the stages of a plan, then the plan, then remove what the stages made.

    A stage that an earlier run finished is used again when its plan and its inputs are the same.

    Parameters
    ----------
    plan : MergePlan
        One with stages.
    out : path
        Where the output goes.
    run : Run
        How.
    intermediates : str, optional
        Where the stages go, each into a folder of its name; None is `out` with
        ``.intermediates`` behind it.
    keep : bool
        Whether they stay when all is done.
    overwrite : bool
        Whether an output that exists is replaced.
    progress : callable, bool or None
        Over all stages.

    Returns
    -------
    MergeReport
        That of the output, with the warnings of the stages.

    Raises
    ------
    WeightshareError
        As `weightshare.merging.run.run_plan`; stages that are finished stay for the next run.
    """
    place = Path(intermediates or f"{os.fspath(out).rstrip(os.sep)}.intermediates")
    every = [stage for _, stage in plan.stages]
    # Known now, not when the stages are made.
    with locked_output(Path(out), overwrite) as folder:
        if not place.exists():
            require_space(folder, sum(stage.disk_bytes for stage in (*every, plan)))
    total = sum(stage.nbytes for stage in (*every, plan))
    made: dict[str, PlannedModel] = {}
    warnings: list[str] = []
    done = 0
    with progress_callback(progress) as callback:
        for name, stage in plan.stages:
            report = _make(name, _placed(stage, made), place, run, _part(callback, done, total))
            warnings += [] if report is None else [f"{name}: {text}" for text in report.warnings]
            made[name] = _made(name, place / name)
            done += stage.nbytes
        last = _placed(plan, made)
        report = run(last, out, overwrite=overwrite, progress=_part(callback, done, total))
    if not keep:
        _remove(place, made)
    return replace(report, warnings=(*warnings, *report.warnings))


def _part(callback: Progress | None, before: int, total: int) -> Progress | None:
    if callback is None:
        return None
    return lambda done, _: callback(before + done, total)


def _placed(plan: MergePlan, made: Mapping[str, PlannedModel]) -> MergePlan:
    """Return the plan with the folders of the stages that are made."""
    models = (model if model.files else made[model.path] for model in plan.models)
    return replace(plan, models=tuple(models), stages=())


def _made(name: str, folder: Path) -> PlannedModel:
    with open_checkpoint(folder) as model:
        return PlannedModel(
            name,
            str(folder.resolve()),
            tuple((file, os.stat(file).st_size) for file in model.files),
        )


def _make(
    name: str, plan: MergePlan, place: Path, run: Run, progress: Progress | None
) -> MergeReport | None:
    """Make one stage; None when an earlier run finished it."""
    identity = _identity(plan)
    if run.resume and _is_finished(place, name, identity):
        return None
    record = _record_path(place, name)
    with contextlib.suppress(FileNotFoundError):
        record.unlink()
    # An older stage of ours may lie there; anything else is not ours to replace.
    ours = (place / name / PROVENANCE_NAME).is_file()
    report = run(plan, place / name, overwrite=ours, progress=progress)
    partial = record.with_name(record.name + ".partial")
    partial.write_text(json.dumps({"identity": identity, "files": _stats(place / name)}))
    os.replace(partial, record)
    return report


def _record_path(place: Path, name: str) -> Path:
    return place / f".{name}.finished.json"


def _is_finished(place: Path, name: str, identity: str) -> bool:
    with contextlib.suppress(OSError, ValueError, TypeError, KeyError, RecursionError):
        path = _record_path(place, name)
        if path.stat().st_size <= _LARGEST_RECORD:
            record = json.loads(path.read_bytes())
            return bool(record["identity"] == identity and record["files"] == _stats(place / name))
    return False


def _stats(folder: Path) -> dict[str, list[int]]:
    """Return what tells the files of a stage from any others."""
    with contextlib.suppress(CheckpointError), open_checkpoint(folder) as model:
        names = [*(os.path.basename(file) for file in model.files), *_small_files(folder)]
        found = {name: os.stat(folder / name) for name in names}
        return {name: [stat.st_size, stat.st_mtime_ns] for name, stat in found.items()}
    return {}


def _identity(plan: MergePlan) -> str:
    """Return a hash of everything that a plan's output depends on."""
    digest = hashlib.sha256(json.dumps([plan_id(plan), plan.config, plan.recipe]).encode())
    for name, content in plan.texts:
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}".encode())
    weights = (file for model in plan.models for file, _ in model.files)
    for file in (*weights, *(copy.source for copy in plan.copies)):
        stat = os.stat(file)
        digest.update(f"{file} {stat.st_size} {stat.st_mtime_ns}".encode("utf-8", "surrogatepass"))
    return digest.hexdigest()


def _small_files(folder: Path) -> list[str]:
    """Return the names of the files that the stage's record says were written."""
    record: dict[str, Any] = {}
    with contextlib.suppress(OSError, ValueError, RecursionError):
        record = json.loads((folder / PROVENANCE_NAME).read_bytes())
    listed = record.get("files") if isinstance(record, dict) else None
    names = {str(name) for name in listed or () if is_plain_name(name)}
    return sorted(name for name in names if (folder / name).is_file())


def _remove(place: Path, made: Mapping[str, PlannedModel]) -> None:
    """Remove what the stages wrote, and the folders where nothing else lies in them."""
    for name, model in made.items():
        folder = place / name
        small = {*_small_files(folder), "model.safetensors.index.json"} - {PROVENANCE_NAME}
        weights = (os.path.basename(file) for file, _ in model.files)
        # The record goes first: half a stage is none. What says that it is ours goes last.
        written = (folder / file for file in (*small, *weights, PROVENANCE_NAME))
        for path in (_record_path(place, name), *written):
            with contextlib.suppress(OSError):
                path.unlink()
        with contextlib.suppress(OSError):
            folder.rmdir()
    with contextlib.suppress(OSError):
        place.rmdir()
