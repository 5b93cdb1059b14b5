"""Merge and update: models that take a gradient step and share their weights, to a stop.

This is decentralised gradient descent: F(X) = Σ f_i(x_i) over n models, mixed by A between
steps. `merge_and_update` is the only entry.
"""

from __future__ import annotations

import html
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from numbers import Real
from typing import Any, NoReturn, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare._core.numbers import number, whole
from weightshare._core.threads import resolve_threads
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    DivergedError,
    ShapeError,
)
from weightshare.sharing.mix import mix
from weightshare.sharing.mixing.checks import square
from weightshare.training.ensemble import (
    Array,
    Buffer,
    Form,
    Models,
    add,
    copy,
    norm_of_mean,
    spread_and_norm,
    squares,
)

_METHODS = ("atc", "dgd", "extra", "tracking")
_GROWTH = 10.0
_PATIENCE = 50


class Stepper(Protocol):
    """A step object, such as ``ws.SGD``: its rate, and its step in place."""

    @property
    def lr(self) -> float:
        """The rate of the next step."""

    def step(self, params: Any, grads: Any) -> Any:
        """Change `params` in place by one step along `grads`."""


@dataclass(frozen=True, repr=False, eq=False)
class SharedFit:
    """What `merge_and_update` returns.

    Attributes
    ----------
    weights : ndarray of shape (n, ...) or list of n dicts
        In the form in which W was given. For `atc` after the merge; for the other methods the
        iterate itself.
    converged : bool
        Whether the tolerance was reached.
    reason : str
        ``"tolerance"``, ``"callback"`` or ``"max_iter"``.
    iterations : int
        Gradient steps made.
    history : dict of str to list of float
        A number for each iteration: ``step`` (rate), ``change`` ‖X⁺ - X‖, ``residual`` of the
        fixed point, ``consensus`` ‖X⁺ - 1x̄ᵀ‖ / √n and, if the gradient gives it, ``loss`` at
        the point where the gradient was taken.
    """

    weights: Models
    converged: bool
    reason: str
    iterations: int
    history: dict[str, list[float]]

    def _lines(self) -> list[tuple[str, str]]:
        last = [(name, f"{values[-1]:.4g}") for name, values in self.history.items() if values]
        return [
            ("models", str(len(self.weights))),
            ("converged", "yes" if self.converged else "no"),
            ("reason", self.reason),
            ("iterations", str(self.iterations)),
            *last,
        ]

    def __repr__(self) -> str:
        return f"SharedFit({', '.join(f'{name}: {text}' for name, text in self._lines())})"

    def _repr_html_(self) -> str:
        rows = "".join(
            f"<tr><th>{html.escape(name)}</th><td>{html.escape(text)}</td></tr>"
            for name, text in self._lines()
        )
        return f"<table>{rows}</table>"


@dataclass(frozen=True, eq=False)
class IterationState:
    """What the callback of `merge_and_update` sees after each iteration.

    Attributes
    ----------
    iteration : int
        Gradient steps made so far, from 1.
    weights : ndarray or list of dicts
        Read-only views of the current iterate, valid during the call; copy what is kept.
    step, change, residual, consensus : float
        The newest entries of the history.
    loss : float or None
        Likewise, if the gradient gives a loss.
    """

    iteration: int
    weights: Models
    step: float
    change: float
    residual: float
    consensus: float
    loss: float | None


def merge_and_update(
    W: Models,
    gradient: Callable[[Any], Any],
    A: ArrayLike,
    *,
    step: float | Stepper,
    method: str = "atc",
    tol: float = 1e-8,
    max_iter: int = 10_000,
    callback: Callable[[IterationState], object] | None = None,
    threads: int | None = None,
) -> SharedFit:
    """Merge models by A and step along their gradients, again and again, to a stop.

    ============  =========================================  ===================================
    method        iteration                                  fixed point, for symmetric A
    ============  =========================================  ===================================
    ``atc``       X⁺ = A (X - η g(X)), from X = A W          with the implicit Laplacian form:
                                                             Σ f_t + λ/2 tr(XᵀLap X), every η
    ``dgd``       X⁺ = A X - η g(X)                          min Σ f_t + 1/(2η) ‖X‖²_{I-A}
    ``extra``     X⁺ = (I+A)(X - X⁻/2) - η (g(X) - g(X⁻))    the pooled optimum
    ``tracking``  X⁺ = A (X - η Y), Y⁺ = A (Y + g⁺ - g)      the pooled optimum
    ============  =========================================  ===================================

    It stops when both the change and the residual are at most tol · (1 + ‖X‖), when the
    callback says so, or after max_iter steps. The residual is ‖(I - A) X + η g‖ for `dgd` and
    ‖X - A (X - η g)‖ for `atc`, both equal to the change, and ‖(X - 1x̄ᵀ, η 1ḡᵀ)‖ for `extra` and
    `tracking`. While a step object's rate is below its largest so far, tol shrinks with it, so
    the end of an annealing cycle is not taken for convergence. With momentum μ, both must be
    within bounds for 2 / (1 - μ) iterations in a row: one small change may be a turning point.

    Memory besides W and the caller's gradient, in units of the n models: 3 for `atc`, `dgd` and
    `extra`, 4 for `tracking`. Weights of float16 and bfloat16 are trained in float32.

    Parameters
    ----------
    W : array_like of shape (n, ...), or sequence of n mappings of name to array
        Start; never modified. Floating-point, finite.
    gradient : callable
        ``gradient(W)`` returns G, shaped exactly as W, for all models at once, or ``(loss, G)``
        with the total loss. The W that it sees is read-only and valid during the call.
    A : array_like, shape (n, n)
        Mixing matrix with rows that sum to one; rows are receivers. `extra` needs it symmetric,
        `tracking` with columns that sum to one too.
    step : float or step object
        Step size η above 0, or an object with ``.lr`` and ``.step(params, grads)`` in place;
        for mappings that object sees one flat mapping ``"model.name"`` → array. `extra` and
        `tracking` need a number.
    method : {"atc", "dgd", "extra", "tracking"}, default "atc"
        See the table.
    tol : float, default 1e-8
        At least 0; 0 never stops by tolerance. One below four units in the last place of the
        weights (5e-7 for float32) counts as these.
    max_iter : int, default 10_000
        At least 1.
    callback : callable, optional
        Called with an `IterationState` after each iteration; true stops.
    threads : int, optional
        For the merges, as in ``ws.mix``.

    Returns
    -------
    SharedFit
        Weights in the form and element type of W, why it stopped, and the history.

    Raises
    ------
    DivergedError
        If a loss, gradient or weight is no longer finite, or the loss grew more than tenfold
        while the iterates move at least as fast as at the start. Its ``safe_step`` is
        (1 + λ_min(A)) / L for `dgd` and `extra` and 2 / L for `atc` and `tracking` (a first
        guess), with L the largest ratio of gradient to weight differences of a model along the run.
    ShapeError, NamesError, ElementError
        If W, A or a gradient do not fit each other, or are not real floating-point numbers.
    ArgumentError, ArgumentTypeError
        If another argument is not as described.

    References
    ----------
    Nedic and Ozdaglar, "Distributed subgradient methods for multi-agent optimization", 2009
    (dgd); Chen and Sayed, "Diffusion adaptation strategies", 2012 (atc); Shi, Ling, Wu and Yin,
    "EXTRA", 2015, equation 2.13; Nedic, Olshevsky and Shi, "Achieving geometric convergence
    over time-varying graphs", 2017 (tracking).

    Examples
    --------
    >>> import numpy as np
    >>> import weightshare as ws
    >>> targets = np.array([[0.0], [1.0], [5.0]])
    >>> mean = np.full((3, 3), 1 / 3)
    >>> fit = ws.merge_and_update(np.zeros((3, 1)), lambda W: W - targets, mean, step=0.5)
    >>> fit.converged, fit.weights.round(6).tolist()
    (True, [[2.0], [2.0], [2.0]])
    """
    if not callable(gradient) or not (callback is None or callable(callback)):
        which, given = ("callback", callback) if callable(gradient) else ("gradient", gradient)
        raise ArgumentTypeError(
            f"{which}: expected a callable, got {type(given).__name__}; give a function."
        )
    if not isinstance(method, str) or method not in _METHODS:
        raise ArgumentError(
            f"method: expected one of {', '.join(_METHODS)}, got {method!r}; choose one of them."
        )
    tol = number(tol, "tol", 0.0)
    max_iter = whole(max_iter, "max_iter", 1)
    form = Form(W)
    stepper = _checked_step(step, method)
    run = _Run(form, W, _checked_mixing(A, form.n, method), stepper, method, threads)
    for _ in range(max_iter):
        run.advance(gradient)
        if callback is not None and callback(run.state()):
            return run.result("callback")
        if run.settled(tol):
            return run.result("tolerance")
    if run.growing:
        run.fail()
    return run.result("max_iter")


class _Run:
    """The buffers and the history of one run."""

    def __init__(
        self,
        form: Form,
        W: Models,
        A: NDArray[np.float64],
        step: float | Stepper,
        method: str,
        threads: int | None,
    ) -> None:
        self.form, self.A, self.step = form, A, step
        self.method, self.threads = method, resolve_threads(threads)
        self.X, self.spare, self.old_gradient = Buffer(form), Buffer(form), Buffer(form)
        self.Y = Buffer(form) if method == "tracking" else None
        self.history: dict[str, list[float]] = {
            name: [] for name in ("step", "change", "residual", "consensus")
        }
        self.iterations, self.curvature, self.norm, self.fastest = 0, 0.0, 0.0, 0.0
        self.moved: NDArray[np.float64] = np.zeros(0)  # squared, by model and name
        # with momentum a single small change may be a turning point; so many in a row are none
        momentum = min(max(float(getattr(step, "momentum", 0.0)), 0.0), 0.999)
        self.calm, self.needed = 0, math.ceil(2.0 / (1.0 - momentum)) if momentum else 1
        self.growing: list[float] = []  # curvature at each iteration since the loss grew too far
        form.fill(self.X, W)
        if method == "atc":
            self._mix(self.X, self.X)

    def advance(self, gradient: Callable[[Any], Any]) -> None:
        """Make one iteration, and note it in the history."""
        lr = self._rate()
        with np.errstate(over="ignore", invalid="ignore"):  # ends in a DivergedError, not warnings
            loss, returned = _split(gradient(self.X.shown))
            grads, pieces = self.form.gradient(returned)
            self._record_loss(loss)
            if not np.isfinite(squares(pieces)).all():
                self.fail("the gradient is not finite")
            if self.iterations:
                self._watch_curvature(pieces)
            update = {"atc": self._atc, "dgd": self._dgd}.get(self.method, self._exact)
            update(lr, grads, pieces)
            self.moved = squares(self.X.pieces, self.spare.pieces)
            # ‖(I - A) X + step‖ for dgd, and the like for atc, are the change itself
            change = residual = math.sqrt(self.moved.sum())
            for kept, new in zip(self.old_gradient.pieces, pieces, strict=True):
                kept[...] = new
            disagreement, self.norm = spread_and_norm(self.X.leaves)
        if self.method in ("extra", "tracking"):
            residual = math.hypot(disagreement, lr * norm_of_mean(self.old_gradient.leaves))
        self.iterations += 1
        self.fastest = max(self.fastest, lr)
        self.history["step"].append(lr)
        self.history["change"].append(change)
        self.history["residual"].append(residual)
        self.history["consensus"].append(disagreement / math.sqrt(self.form.n))
        self._check_growth()

    def settled(self, tol: float) -> bool:
        """Return whether change and residual are within tolerance, for the rate in use."""
        rate = self.history["step"][-1]
        if tol > 0.0:
            tol = max(tol, 4.0 * self.form.epsilon)
        bound = tol * (1.0 + self.norm) * (rate / self.fastest if rate > 0.0 else 0.0)
        small = 0.0 < bound >= max(self.history["change"][-1], self.history["residual"][-1])
        self.calm = self.calm + 1 if small else 0
        return self.calm >= self.needed

    def state(self) -> IterationState:
        """Return what the callback sees."""
        last = {name: values[-1] for name, values in self.history.items()}
        loss = last.pop("loss", None)
        return IterationState(self.iterations, self.X.shown, **last, loss=loss)

    def result(self, reason: str) -> SharedFit:
        """Return the outcome, in the caller's form."""
        weights = self.form.restored(self.X)
        return SharedFit(weights, reason == "tolerance", reason, self.iterations, self.history)

    def _rate(self) -> float:
        if isinstance(self.step, float):
            return self.step
        return number(self.step.lr, "step.lr", 0.0)

    def _mix(self, source: Buffer, target: Buffer, A: NDArray[np.float64] | None = None) -> None:
        for models, out in zip(source.leaves, target.leaves, strict=True):
            if models.size:
                mix(models, self.A if A is None else A, out=out, threads=self.threads)

    def _descend(self, buffer: Buffer, lr: float, grads: Any, pieces: list[Array]) -> None:
        if isinstance(self.step, float):
            add(buffer.pieces, pieces, -lr)
        else:
            self.step.step(buffer.writable, grads)

    def _swap(self) -> None:
        self.X, self.spare = self.spare, self.X

    def _atc(self, lr: float, grads: Any, pieces: list[Array]) -> None:
        copy(self.spare.pieces, self.X.pieces)
        self._descend(self.spare, lr, grads, pieces)
        self._mix(self.spare, self.spare)
        self._swap()

    def _dgd(self, lr: float, grads: Any, pieces: list[Array]) -> None:
        self._mix(self.X, self.spare)
        self._descend(self.spare, lr, grads, pieces)
        self._swap()

    def _exact(self, lr: float, grads: Any, pieces: list[Array]) -> None:
        if self.Y is not None:
            self._tracking(lr, self.Y, pieces)
        elif self.iterations == 0:
            self._dgd(lr, grads, pieces)
        else:
            self._extra(lr, pieces)

    def _extra(self, lr: float, pieces: list[Array]) -> None:
        for older, newer in zip(self.spare.pieces, self.X.pieces, strict=True):
            older *= -0.5
            older += newer
        self._mix(self.spare, self.spare, np.eye(self.form.n) + self.A)
        add(self.spare.pieces, pieces, -lr)
        add(self.spare.pieces, self.old_gradient.pieces, lr)
        self._swap()

    def _tracking(self, lr: float, Y: Buffer, pieces: list[Array]) -> None:
        if self.iterations == 0:
            copy(Y.pieces, pieces)
        else:
            add(Y.pieces, self.old_gradient.pieces, -1.0)
            add(Y.pieces, pieces, 1.0)
            self._mix(Y, Y)
        copy(self.spare.pieces, self.X.pieces)
        add(self.spare.pieces, Y.pieces, -lr)
        self._mix(self.spare, self.spare)
        self._swap()

    def _record_loss(self, loss: float | None) -> None:
        losses = self.history.get("loss")
        if self.iterations and (loss is None) != (losses is None):
            raise ArgumentError(
                "gradient: expected (loss, G) at every call or at none, got both kinds; return a "
                "loss always."
            )
        if loss is not None:
            self.history.setdefault("loss", []).append(loss)
            if not math.isfinite(loss):
                self.fail(f"the loss is {loss}")

    def _watch_curvature(self, pieces: list[Array]) -> None:
        n = self.form.n
        turned = squares(pieces, self.old_gradient.pieces).reshape(n, -1).sum(axis=1)
        moved = self.moved.reshape(n, -1).sum(axis=1)
        # below this the gradient difference is rounding
        told = moved > 1e-6 * self.form.epsilon * self.norm**2
        told &= np.isfinite(turned) & np.isfinite(moved)
        if told.any():
            self.curvature = max(self.curvature, math.sqrt((turned[told] / moved[told]).max()))

    def _check_growth(self) -> None:
        if not math.isfinite(self.norm) or not math.isfinite(self.history["change"][-1]):
            self.fail("the weights are not finite")
        losses, changes = self.history.get("loss", []), self.history["change"]
        # merging models that are each at their own optimum raises the loss while changes shrink
        grown = bool(losses) and losses[-1] - losses[0] > (_GROWTH - 1.0) * abs(losses[0])
        if not grown or changes[-1] < 0.99 * changes[0] or changes[0] == 0.0:
            self.growing.clear()
            return
        # the estimate of the curvature is awaited: it settles as the run turns to the worst axis
        self.growing.append(self.curvature)
        settled = len(self.growing) > 3 and self.growing[-1] <= 1.001 * self.growing[-3]
        if settled or len(self.growing) == _PATIENCE:
            self.fail()

    def fail(self, what: str = "") -> NoReturn:
        """Raise the error of a diverged run, by default that its loss grew."""
        if not what:
            losses = self.history["loss"]
            what = f"the loss grew from {losses[0]:.4g} to {losses[-1]:.4g}"
        safe = float("nan")
        if self.curvature > 0.0:
            factor = 2.0
            if self.method in ("dgd", "extra"):
                factor = 1.0 + float(np.linalg.eigvals(self.A).real.min())
            safe = factor / self.curvature
        rate = self._rate()
        if math.isnan(safe):
            advice = "lower the step, and check the gradient"
        elif rate > safe:
            advice = f"use a step below {safe:.4g}, the largest that is expected to converge"
        else:
            advice = f"the step is below the safe {safe:.4g}, so check the sign of the gradient"
        raise DivergedError(
            f"merge_and_update: expected to converge with step {rate:.4g}, but {what} at iteration "
            f"{self.iterations}; {advice}.",
            safe_step=safe,
        )


def _split(returned: Any) -> tuple[float | None, Any]:
    """Split (loss, G); a tuple whose first entry is no single number is G itself."""
    if isinstance(returned, tuple) and len(returned) == 2 and not isinstance(returned[0], Mapping):
        loss, G = returned
        if isinstance(loss, Real) and isinstance(G, Real):
            return None, returned
        if np.ndim(loss) > 0 and np.shape(loss) == np.shape(G):
            return None, returned
        if np.ndim(loss) != 0 or not isinstance(np.asarray(loss).item(), Real):
            raise ArgumentTypeError(
                f"gradient: expected (loss, G) with the total loss as one number, got a "
                f"{type(loss).__name__} of shape {np.shape(loss)}; sum the losses of the models."
            )
        return float(loss), G
    return None, returned


def _checked_mixing(A: ArrayLike, n: int, method: str) -> NDArray[np.float64]:
    result = square(A, "A")
    if len(result) != n:
        raise ShapeError(
            f"A: expected shape ({n}, {n}) for the {n} models of W, got {result.shape}; give one "
            "row and one column for each model."
        )
    needed = {"extra": "symmetric", "tracking": "columns that sum to one"}.get(method)
    if np.abs(result.sum(axis=1) - 1.0).max() > 1e-6:
        raise ArgumentError(
            f"A: expected rows that sum to one, got sums from {result.sum(axis=1).min():.6g} to "
            f"{result.sum(axis=1).max():.6g}; divide each row by its sum."
        )
    asymmetric = method == "extra" and np.abs(result - result.T).max() > 1e-6
    if asymmetric or (needed and np.abs(result.sum(axis=0) - 1.0).max() > 1e-6):
        raise ArgumentError(
            f"A: expected a matrix that method {method!r} can use ({needed}), got one that is not; "
            "use mixing.sinkhorn, or method 'atc' or 'dgd'."
        )
    return result


def _checked_step(step: object, method: str) -> float | Stepper:
    if isinstance(step, Real) and not isinstance(step, bool):
        return number(step, "step", 0.0, above=True)
    if not callable(getattr(step, "step", None)) or not hasattr(step, "lr"):
        raise ArgumentTypeError(
            f"step: expected a number or a step object with .lr and .step(params, grads), got "
            f"{type(step).__name__}; give a float, or ws.SGD(...)."
        )
    if method in ("extra", "tracking"):
        raise ArgumentTypeError(
            f"step: expected a plain number for method {method!r}, whose correction holds for a "
            f"constant step only, got {type(step).__name__}; give a float, or use 'atc' or 'dgd'."
        )
    return step  # type: ignore[return-value]
