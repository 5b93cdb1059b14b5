"""Which tile is next: tensors in the order of the plan, large ones pass by pass."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from weightshare.merging.ledger import Ledger
from weightshare.merging.method import Method, Pass, Tensor
from weightshare.merging.plan import MergePlan
from weightshare.merging.tiles import Room, Stretch, Units, jobs, pieces


@dataclass(frozen=True, slots=True)
class Batch:
    """Whole tensors that are done one after the other in one slot."""

    stretches: list[Stretch]


@dataclass(frozen=True, slots=True)
class Piece:
    """One tile of a large tensor, to be looked at or to be combined.

    Attributes
    ----------
    stream : Stream
        The tensor.
    number : int
        The tile's place among those of the pass.
    stretch : Stretch
        Its elements.
    look : Pass or None
        None when it is combined.
    """

    stream: Stream
    number: int
    stretch: Stretch
    look: Pass | None


class Stream:
    """A tensor that is done tile by tile: first every pass of its survey, then the tiles.

    Parameters
    ----------
    number : int
        The tensor's place in the plan.
    tensor : Tensor or None
        What the method knows of it; None when it is copied.
    method : Method
        The plan's method.
    tiles : list of (start, count)
        All of the tensor, for the passes.
    left : list of (start, count)
        What is to be combined.
    """

    def __init__(
        self,
        number: int,
        tensor: Tensor | None,
        method: Method,
        tiles: list[tuple[int, int]],
        left: list[tuple[int, int]],
    ) -> None:
        self.number = number
        self.tensor = tensor
        self.found: Any = None
        self.views: dict[int, Any] = {}
        self.lock = threading.Lock()
        self._tiles = tiles
        self._left = left
        self._survey = None if tensor is None else method.survey(tensor)
        self._told: dict[int, Any] = {}
        self._total: Any = None
        self._folded = 0
        self._look: Pass | None = None
        self._current: list[tuple[int, int]] = []
        self._next = 0
        self._ended = 0
        self._advance(first=True)

    def take(self) -> Piece | None:
        """Return the next tile that is free; None while those under way are waited for."""
        if self._next == len(self._current):
            return None
        number = self._next
        self._next += 1
        return Piece(self, number, Stretch(self.number, *self._current[number]), self._look)

    def end(self, piece: Piece, told: Any) -> bool:
        """Note that a tile is done; say whether the pass is.

        What the tiles of a pass tell is folded here, in the order of the tiles.
        """
        with self.lock:
            if piece.look is None:
                self._ended += 1
                return self._ended == len(self._current)
            self._told[piece.number] = told
            while self._folded in self._told:
                part = self._told.pop(self._folded)
                self._total = piece.look.fold(self._total, part)
                self._folded += 1
            return self._folded == len(self._tiles)

    def go_on(self) -> bool:
        """Begin the next pass once one is done; say whether there is one."""
        if self._look is None:
            return False
        self._advance(first=False)
        return True

    def _advance(self, *, first: bool) -> None:
        wanted: Pass | None = None
        if self._survey is not None:
            try:
                wanted = next(self._survey) if first else self._survey.send(self._total)
            except StopIteration as end:
                self.found = end.value
        self._total = None if wanted is None else wanted.start
        self._folded = self._ended = 0
        self._look = wanted
        self._current = self._left if wanted is None else self._tiles
        self._next = 0


class Schedule:
    """Hands out the work of a plan to several threads.

    Parameters
    ----------
    plan : MergePlan
        What is done.
    method : Method
        The plan's method.
    room : Room
        Memory and workers.
    units : sequence of int
        For each tensor the elements that must be seen together.
    ledger : Ledger
        What is done already.
    tensor_of : callable
        ``tensor_of(number)``: what the method knows of a tensor of the plan.
    """

    def __init__(
        self,
        plan: MergePlan,
        method: Method,
        room: Room,
        units: Units,
        ledger: Ledger,
        tensor_of: Any,
    ) -> None:
        self._plan = plan
        self._method = method
        self._room = room
        self._units = units
        self._ledger = ledger
        self._tensor_of = tensor_of
        self._left: Iterator[list[Stretch] | int] = jobs(plan.tensors, room, ledger.finished())
        self._streams: list[Stream] = []
        self._changed = threading.Condition()
        self._exhausted = False
        self._stopped = False
        self._working = 0
        self._ended = 0
        self.error: BaseException | None = None

    def take(self) -> Batch | Piece | None:
        """Return the next work, waiting for it if need be; None when there is no more."""
        with self._changed:
            while not self._stopped:
                for stream in self._streams:
                    piece = stream.take()
                    if piece is not None:
                        return piece
                if not self._exhausted and len(self._streams) < self._room.workers:
                    job = next(self._left, None)
                    if isinstance(job, list):
                        return Batch(job)
                    if job is not None:
                        self._streams.append(self._stream(job))
                    self._exhausted = job is None
                    continue
                if self._exhausted and not self._streams:
                    return None
                self._changed.wait()
        return None

    def end(self, piece: Piece, told: Any = None) -> None:
        """Note that a piece is done, with what its look told."""
        if not piece.stream.end(piece, told):
            return
        with self._changed:
            if not piece.stream.go_on():
                self._streams.remove(piece.stream)
            self._changed.notify_all()

    @contextlib.contextmanager
    def worker(self) -> Iterator[None]:
        """Count the calling thread as one that works, in the body."""
        with self._changed:
            self._working += 1
        try:
            yield
        finally:
            with self._changed:
                self._working -= 1
                self._ended += 1
                self._changed.notify_all()

    def wait_for(self, workers: int, seconds: float) -> bool:
        """Wait until so many workers have ended, for that long at most; say whether they have."""
        with self._changed:
            return self._changed.wait_for(lambda: self._ended >= workers, seconds)

    def wait_until_idle(self) -> None:
        """Wait until no thread works; one that begins later finds nothing to do once stopped.

        `Thread.join` will not do: interrupted by Ctrl-C, Python 3.11 takes the thread for ended.
        """
        with self._changed:
            self._changed.wait_for(lambda: not self._working)

    def stop(self, error: BaseException | None = None) -> None:
        """Hand out nothing more; the first error is kept."""
        with self._changed:
            self._stopped = True
            self.error = self.error or error
            self._changed.notify_all()

    def _stream(self, number: int) -> Stream:
        tensor, unit = self._plan.tensors[number], self._units[number]
        left = [
            piece
            for start, stop in self._ledger.gaps(number)
            for piece in pieces(tensor, unit, self._room.tile, start, stop)
        ]
        known = None if tensor.action == "copy" else self._tensor_of(number)
        tiles = pieces(tensor, unit, self._room.tile)
        return Stream(number, known, self._method, tiles, left)
