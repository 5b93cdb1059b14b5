"""What a merge did."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from html import escape

from weightshare.merging.sizes import format_bytes


@dataclass(frozen=True, repr=False)
class MergeReport:
    """The result of a merge from file to file.

    Attributes
    ----------
    out : str
        The output folder or file.
    method : str
        Name of the merge method.
    merged, copied : int
        How many tensors were computed, and how many copied.
    bytes_read, bytes_written : int
        Bytes of weights.
    seconds : float
        From the first header to the last rename.
    peak_memory : int
        Largest resident memory of the whole process so far, in bytes.
    files : tuple of str
        Names of the files written.
    warnings : tuple of str
        Of the plan, about NaN and infinity, and why an interrupted merge was begun anew.
    bytes_reused : int
        Bytes of the output that an interrupted merge had written already.
    nonfinite : mapping of str to int
        How many elements are NaN or infinite, of each tensor that has any.

    Examples
    --------
    >>> report = MergeReport("out", "linear", 2, 0, 24, 12, 0.5, 10**8, ("model.safetensors",), ())
    >>> report
    MergeReport
      out      out
      tensors  2 merged, 0 copied by linear
      read     24 B
      written  12 B in 1 file
      time     0.5 s
      memory   100 MB at most
    """

    out: str
    method: str
    merged: int
    copied: int
    bytes_read: int
    bytes_written: int
    seconds: float
    peak_memory: int
    files: tuple[str, ...]
    warnings: tuple[str, ...]
    bytes_reused: int = 0
    nonfinite: Mapping[str, int] = field(default_factory=dict)

    def to_json(self) -> dict[str, object]:
        """Return the report as plain lists, mappings, numbers and text; sizes are in bytes."""
        plain = asdict(self) | {"files": list(self.files), "warnings": list(self.warnings)}
        return {"schema": 1, **plain}

    def summary(self) -> list[tuple[str, str]]:
        """Return the main facts as pairs of a title and a sentence."""
        files = "1 file" if len(self.files) == 1 else f"{len(self.files)} files"
        facts = [
            ("out", self.out),
            ("tensors", f"{self.merged} merged, {self.copied} copied by {self.method}"),
            ("read", format_bytes(self.bytes_read)),
            ("written", f"{format_bytes(self.bytes_written)} in {files}"),
            ("time", f"{self.seconds:.3g} s"),
            ("memory", f"{format_bytes(self.peak_memory)} at most"),
        ]
        if self.bytes_reused:
            reused = f"{format_bytes(self.bytes_reused)} were written by an earlier run"
            facts.append(("resumed", reused))
        if self.nonfinite:
            count = f"{sum(self.nonfinite.values())} elements of {len(self.nonfinite)} tensors"
            facts.append(("NaN", f"{count} are NaN or infinite"))
        return facts

    def __repr__(self) -> str:
        lines = [f"  {title:<9}{fact}" for title, fact in self.summary()]
        lines += [f"  warning: {warning}" for warning in self.warnings[:8]]
        return "\n".join(["MergeReport", *lines])

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{escape(title)}</th><td>{escape(fact[:2000])}</td></tr>"
            for title, fact in self.summary()
        )
        return f"<table>{rows}</table>"
