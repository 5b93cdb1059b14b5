"""What a mixing matrix does when it is applied again and again."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare.sharing.mixing.checks import Matrix, square


@dataclass(frozen=True, repr=False, eq=False)
class Diagnosis:
    """The properties of a mixing matrix that decide how sharing behaves.

    Attributes
    ----------
    row_sums, column_sums : ndarray of float64, shape (n,)
        Rows that sum to one keep equal models equal; columns that sum to one keep the mean.
    symmetric : bool
        Whether A equals its transpose to 1e-12 of its largest entry.
    spectral_gap : float
        1 - ρ(A - 11ᵀ/n): one minus the factor by which disagreement shrinks at each merge.
    least_eigenvalue : float
        The least eigenvalue (real part, when A is not symmetric); `dgd` and `extra` need a
        step below (1 + least_eigenvalue) / L.
    connected : bool
        Whether every model reaches every other one through the non-zero entries.
    """

    row_sums: Matrix
    column_sums: Matrix
    symmetric: bool
    spectral_gap: float
    least_eigenvalue: float
    connected: bool

    def _lines(self) -> list[tuple[str, str]]:
        return [
            ("models", str(self.row_sums.size)),
            ("row sums", _extent(self.row_sums)),
            ("column sums", _extent(self.column_sums)),
            ("symmetric", "yes" if self.symmetric else "no"),
            ("spectral gap", f"{self.spectral_gap:.4g}"),
            ("least eigenvalue", f"{self.least_eigenvalue:.4g}"),
            ("connected", "yes" if self.connected else "no"),
        ]

    def __repr__(self) -> str:
        return f"Diagnosis({', '.join(f'{name}: {text}' for name, text in self._lines())})"

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><th>{name}</th><td>{text}</td></tr>" for name, text in self._lines())
        return f"<table>{rows}</table>"


def diagnose(A: ArrayLike) -> Diagnosis:
    """Report row and column sums, symmetry, spectral gap, least eigenvalue and connectedness.

    Parameters
    ----------
    A : array_like, shape (n, n)
        A mixing matrix; rows are receivers.

    Returns
    -------
    Diagnosis
        See its attributes. The gap means what it says when the rows (or columns) sum to one.

    Raises
    ------
    ShapeError
        If A is not square, or is empty.
    ElementError, ArgumentError
        If A holds anything but finite real numbers.

    References
    ----------
    Xiao and Boyd, "Fast linear iterations for distributed averaging", 2004, section 2.

    Examples
    --------
    >>> import weightshare as ws
    >>> ws.mixing.diagnose([[0.75, 0.25], [0.25, 0.75]]).spectral_gap
    0.5
    """
    A = square(A, "A")
    same = bool(np.abs(A - A.T).max() <= 1e-12 * np.abs(A).max())
    values = np.linalg.eigvalsh(A) if same else np.linalg.eigvals(A).real
    rows, columns = A.sum(axis=1), A.sum(axis=0)
    for sums in (rows, columns):
        sums.setflags(write=False)
    return Diagnosis(rows, columns, same, spectral_gap(A, same), float(values.min()), connected(A))


def spectral_gap(A: Matrix, same: bool) -> float:
    """Return 1 - ρ(A - 11ᵀ/n); `same` says that A is symmetric."""
    rest = A - 1.0 / len(A)
    values = np.linalg.eigvalsh(rest) if same else np.linalg.eigvals(rest)
    return 1.0 - float(np.abs(values).max())


def connected(A: Matrix) -> bool:
    """Return whether the graph of non-zero entries is strongly connected."""
    edges = A != 0
    return _reaches_all(edges) and _reaches_all(edges.T)


def _reaches_all(edges: NDArray[np.bool_]) -> bool:
    seen = np.zeros(len(edges), dtype=bool)
    seen[0] = True
    front = seen
    while front.any():
        front = edges[front].any(axis=0) & ~seen
        seen = seen | front
    return bool(seen.all())


def _extent(sums: Matrix) -> str:
    low, high = f"{sums.min():.6g}", f"{sums.max():.6g}"
    return low if low == high else f"{low} to {high}"
