"""The output of one merge while it is made: its files, its journal, its accounts."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from weightshare.checkpoint import CheckpointWriter
from weightshare.checkpoint.output_file import remove_quietly
from weightshare.errors import ArgumentError, CheckpointChangedError
from weightshare.merging.card import provenance
from weightshare.merging.files import require_space
from weightshare.merging.finite import NanPolicy, NonFiniteError
from weightshare.merging.identity import FileState, plan_id
from weightshare.merging.journal import Heading, JournalWriter
from weightshare.merging.ledger import Done, Ledger
from weightshare.merging.plan import MergePlan
from weightshare.merging.recovery import Start, Workplace, begin
from weightshare.merging.sizes import format_bytes


class Work:
    """What has to be kept if a merge is interrupted.

    Parameters
    ----------
    plan : MergePlan
        What is done.
    target : Path
        The output; its folder is locked by the caller.
    inputs : sequence of mapping of str to (size, time, header hash)
        The files of each model as they are read.

    Attributes
    ----------
    writer : CheckpointWriter
        The output's files, once opened.
    ledger : Ledger
        What of them is done.
    reused : int
        Bytes that an interrupted merge had written already.
    """

    writer: CheckpointWriter
    ledger: Ledger
    _journal: JournalWriter

    def __init__(
        self, plan: MergePlan, target: Path, inputs: Sequence[Mapping[str, FileState]]
    ) -> None:
        self._plan = plan
        self._target = target
        self._inputs = inputs
        self._identity = plan_id(plan)
        single = target.suffix == ".safetensors"
        self._place = Workplace(
            target.parent if single else target, target.name if single else None
        )
        self._anew = ""
        self.reused = 0

    @contextlib.contextmanager
    def opened(self, policy: NanPolicy, *, resume: bool, overwrite: bool) -> Iterator[None]:
        """Open the output for the body; what is not committed then is kept, or removed.

        Parameters
        ----------
        policy : {"error", "warn", "ignore"}
            What to do about NaN and infinity.
        resume : bool
            Whether what an interrupted merge left is gone on with.
        overwrite : bool
            Whether there may be an output.
        """
        states = [list(files.values()) for files in self._inputs]
        start = begin(self._place, self._plan, self._identity, states, resume=resume)
        self._anew = start.warning
        self.ledger = Ledger(self._plan, policy)
        self._open_writer(start, overwrite)
        try:
            token, inodes = start.token, self.writer.inodes
            heading = Heading(self._identity, states, token, inodes)
            self._journal = JournalWriter(
                self._place.journal, heading, self.writer.sync, start.going_on
            )
            self._journal.start()
            self._go_on(start)
            yield
        except BaseException as error:
            self._leave(error)
            raise

    def _open_writer(self, start: Start, overwrite: bool) -> None:
        plan = self._plan
        specs = [(tensor.name, tensor.dtype, tensor.shape) for tensor in plan.tensors]
        if start.going_on is None:
            require_space(self._place.folder, plan.disk_bytes + _record_bytes(plan))
        self.writer = CheckpointWriter(
            self._target,
            specs,
            max_shard_size=None if self._place.single else plan.max_shard_bytes,
            overwrite=overwrite,
            token=start.token,
            going_on=start.going_on is not None,
        )

    def _go_on(self, start: Start) -> None:
        if start.going_on is None:
            return
        for done in start.going_on.done:
            tensor = self._plan.tensors[done.tensor]
            self.writer.mark_written(tensor.name, done.count * tensor.itemsize)
        self.ledger.enter(start.going_on.done)
        self.reused = self.ledger.nbytes

    def enter(self, done: list[Done]) -> None:
        """Note what is in the files; called by the workers."""
        tensors = self._plan.tensors
        nbytes = sum(entry.count * tensors[entry.tensor].itemsize for entry in done)
        self._journal.enter(done, nbytes)

    def finish(self) -> None:
        """Bring all data to the disk."""
        self._journal.stop()
        self.writer.finish()

    def commit(self) -> tuple[str, ...]:
        """Give the output its names; the journal goes."""
        files = self.writer.commit()
        remove_quietly(str(self._place.journal))
        return files

    @property
    def warnings(self) -> tuple[str, ...]:
        """Why an interrupted merge was begun anew, and what there is to say of NaN."""
        return (*((self._anew,) if self._anew else ()), *self.ledger.warnings)

    def provenance(self, checksums: Mapping[str, str]) -> str:
        """Return the text of ``provenance.json``, once every tensor is done."""
        return provenance(self._plan, self._identity, self._inputs, checksums, self.ledger)

    def _leave(self, error: BaseException) -> None:
        journal = getattr(self, "_journal", None)
        if journal is not None:
            journal.stop()
        if self.writer.is_published:
            self._place.remove_leftovers()
            return
        mendable = isinstance(error, NonFiniteError) or not isinstance(
            error, ArgumentError | CheckpointChangedError
        )
        if journal is None or journal.is_broken or not mendable or not self.ledger.nbytes:
            self.writer.abort()
            self._place.remove_leftovers()
            return
        self.writer.suspend()
        if self._place.journal.exists():
            error.add_note(
                f"{format_bytes(self.ledger.nbytes)} of {format_bytes(self._plan.nbytes)} are kept"
                f" in {self._place.folder}; the same merge goes on from there"
            )


def _record_bytes(plan: MergePlan) -> int:
    """Return about how many bytes the provenance, the journal and the headers take."""
    return 50_000 + sum(600 + 4 * len(tensor.name) for tensor in plan.tensors)
