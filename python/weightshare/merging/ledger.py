"""What is known of the output while it is written: which elements, their checksum, NaN."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from dataclasses import dataclass

from weightshare.merging.finite import SOUND, Findings, Flaws, NanPolicy
from weightshare.merging.plan import MergePlan

_MODULUS = 1 << 128


@dataclass(frozen=True, slots=True)
class Done:
    """A stretch of an output tensor that is in its file.

    Attributes
    ----------
    tensor : int
        Its place in the plan.
    start, count : int
        First element, number of elements.
    checksum : int
        Of the stretch's bytes, 128 bits.
    flaws : Flaws
        What in it is not finite.
    """

    tensor: int
    start: int
    count: int
    checksum: int
    flaws: Flaws


@dataclass(slots=True)
class _Account:
    done: int = 0
    checksum: int = 0
    flaws: Flaws = SOUND
    ranges: tuple[tuple[int, int], ...] = ()


class Ledger:
    """The accounts of all tensors; from several threads.

    Parameters
    ----------
    plan : MergePlan
        What is done.
    policy : {"error", "warn", "ignore"}
        What to do about NaN and infinity that come from finite inputs.

    Attributes
    ----------
    nbytes : int
        Bytes of the output that are done.
    """

    def __init__(self, plan: MergePlan, policy: NanPolicy) -> None:
        self._plan = plan
        self._findings = Findings(policy)
        self._accounts = [_Account() for _ in plan.tensors]
        self._lock = threading.Lock()
        self.nbytes = 0

    def enter(self, stretches: Iterable[Done]) -> None:
        """Enter stretches that are done.

        Raises
        ------
        NonFiniteError
            A tensor is finished with NaN or infinity from finite inputs, and the policy is
            ``"error"``.
        """
        finished = []
        with self._lock:
            for entry in stretches:
                tensor, account = self._plan.tensors[entry.tensor], self._accounts[entry.tensor]
                account.done += entry.count
                account.checksum = (account.checksum + entry.checksum) % _MODULUS
                account.flaws = account.flaws.joined(entry.flaws)
                if entry.count < tensor.size:
                    account.ranges += ((entry.start, entry.start + entry.count),)
                self.nbytes += entry.count * tensor.itemsize
                if account.done == tensor.size and account.flaws.found:
                    finished.append(entry.tensor)
        for number in sorted(finished):
            tensor = self._plan.tensors[number]
            self._findings.check(tensor.name, tensor.size, self._accounts[number].flaws)

    def finished(self) -> list[int]:
        """Return the tensors of which every element is done."""
        pairs = zip(self._plan.tensors, self._accounts, strict=True)
        return [n for n, (tensor, account) in enumerate(pairs) if account.done == tensor.size]

    def done_elements(self, number: int) -> int:
        """Return how many elements of a tensor are done."""
        return self._accounts[number].done

    def gaps(self, number: int) -> list[tuple[int, int]]:
        """Return the stretches of a tensor that are not done: first elements, and the ends."""
        place, left = 0, []
        for start, stop in sorted(self._accounts[number].ranges):
            if start > place:
                left.append((place, start))
            place = max(place, stop)
        size = self._plan.tensors[number].size
        return [*left, (place, size)] if place < size else left

    def checksum(self, number: int) -> str:
        """Return the checksum of a finished tensor, 32 hexadecimal digits."""
        return f"{self._accounts[number].checksum:032x}"

    def flaws(self, number: int) -> Flaws:
        """Return what is not finite in a tensor."""
        return self._accounts[number].flaws

    @property
    def nonfinite(self) -> dict[str, int]:
        """How many elements are NaN or infinite, of each tensor that has any."""
        pairs = zip(self._plan.tensors, self._accounts, strict=True)
        return {tensor.name: a.flaws.found for tensor, a in pairs if a.flaws.found}

    @property
    def warnings(self) -> tuple[str, ...]:
        """What there is to say of NaN and infinity, in the order of the plan."""
        for tensor, account in zip(self._plan.tensors, self._accounts, strict=True):
            self._findings.tell(tensor.name, tensor.size, account.flaws)
        return self._findings.warnings
