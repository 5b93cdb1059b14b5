"""Optimizer steps in place: gradient descent, SGD with momentum, and SGD with warm restarts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.lib.array_utils import byte_bounds

from weightshare._core import step as _core
from weightshare._core.arrays import FLOATS, Array, as_array, contiguous
from weightshare._core.numbers import number, whole
from weightshare._core.tensors import is_tensor
from weightshare._core.threads import resolve_threads
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)
from weightshare.training.schedule import check_schedule, restart_rate


class SGD:
    """Stochastic gradient descent with momentum, Nesterov momentum and decoupled weight decay.

    v ← momentum v + g;  u = g + momentum v (Nesterov) or v;  w ← (1 - lr weight_decay) w - lr u, in one
    pass over memory. Arithmetic is float32 for float16, bfloat16 and float32 (the velocity is then
    float32), float64 for float64.

    Parameters
    ----------
    lr : float
        Learning rate, > 0.
    momentum : float, default 0.0
        In [0, 1).
    nesterov : bool, default False
        Look ahead along the velocity; needs momentum.
    weight_decay : float, default 0.0
        Decoupled decay, >= 0; lr * weight_decay must not pass 1.
    threads : int, default None
        None means ``OMP_NUM_THREADS``, else the cores this process may use.

    Attributes
    ----------
    lr : float
        The rate of the next step; may be set.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        For a value that is out of range or not a number.

    References
    ----------
    Sutskever et al. 2013 (momentum, Nesterov); Loshchilov & Hutter 2019, arXiv:1711.05101 (decay).

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> w, step = np.array([1.0, 2.0]), ws.SGD(0.1, momentum=0.9)
    >>> for _ in range(2):
    ...     step.step(w, np.ones(2))
    >>> w.round(3)
    array([0.71, 1.71])
    """

    def __init__(
        self,
        lr: float,
        *,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ) -> None:
        self.momentum = number(momentum, "momentum", 0.0, 1.0)
        if self.momentum == 1.0:
            raise ArgumentError("momentum: expected a number in [0, 1), got 1.0")
        self.nesterov = bool(nesterov)
        if self.nesterov and self.momentum == 0.0:
            raise ArgumentError("nesterov: needs momentum > 0, got 0.0")
        self.weight_decay = number(weight_decay, "weight_decay", 0.0)
        self.threads = threads
        resolve_threads(threads)
        self._steps = 0
        self._velocity: dict[str, Array] = {}
        self._set_rate(lr)

    def _set_rate(self, lr: float) -> None:
        self._lr = number(lr, "lr", 0.0, above=True)
        self._check_decay(self._lr)

    def _check_decay(self, rate: float) -> None:
        if rate * self.weight_decay > 1.0:
            raise ArgumentError(
                f"weight_decay: lr * weight_decay must not pass 1, got {rate * self.weight_decay:g}"
            )

    @property
    def lr(self) -> float:
        """The learning rate of the next step."""
        return self._lr

    @lr.setter
    def lr(self, value: float) -> None:
        self._set_rate(value)

    def step(self, params: Any, grads: Any) -> None:
        """Take one step: `params` are changed in place.

        Parameters
        ----------
        params : array, or mapping name -> array
            Writable, float16, bfloat16, float32 or float64; of the same names and shapes at every step.
        grads : like params
            The gradient, of any float dtype.

        Raises
        ------
        ShapeError, NamesError, ElementError, ArgumentError, ArgumentTypeError
            If they do not fit, before anything is changed.
        """
        pairs = _pairs_of(params, grads)
        velocity = self._velocity_for(pairs)
        threads = resolve_threads(self.threads)
        rate = self.lr
        for name, (w, g) in pairs.items():
            target = contiguous(w)
            _core.sgd_step(
                target,
                g,
                velocity.get(name),
                rate=rate,
                momentum=self.momentum,
                nesterov=self.nesterov,
                weight_decay=self.weight_decay,
                threads=threads,
            )
            if target is not w:
                np.copyto(w, target)
        self._velocity = velocity
        self._steps += 1

    def _velocity_for(self, pairs: dict[str, tuple[Array, Array]]) -> dict[str, Array]:
        if self.momentum == 0.0:
            return {}
        if not self._velocity:
            return {name: np.zeros(w.shape, _velocity_dtype(w)) for name, (w, _) in pairs.items()}
        for name, (w, _) in pairs.items():
            old = self._velocity.get(name)
            if old is None or old.shape != w.shape or old.dtype != _velocity_dtype(w):
                raise ShapeError(
                    f"params: {_quoted(name)}differs from what earlier steps moved; "
                    "make a new optimizer for other parameters"
                )
        if len(pairs) != len(self._velocity):
            raise NamesError(
                "params: earlier steps moved more tensors; make a new optimizer for other parameters"
            )
        return self._velocity

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later: plain numbers, and copies of the velocity by name."""
        return {
            "kind": type(self).__name__,
            "steps": self._steps,
            "lr": self._lr,
            "momentum": self.momentum,
            "nesterov": self.nesterov,
            "weight_decay": self.weight_decay,
            "velocity": {name: array.copy() for name, array in self._velocity.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` gave.

        Raises
        ------
        ArgumentError
            If the state is of another kind of optimizer, or lacks an entry.
        """
        expected = self.state_dict()
        if not isinstance(state, Mapping) or set(state) != set(expected):
            raise ArgumentError(f"state: expected the entries {sorted(expected)}")
        if state["kind"] != expected["kind"]:
            raise ArgumentError(f"state: expected one of {expected['kind']}, got {state['kind']}")
        self._restore(state)

    def _restore(self, state: Mapping[str, Any]) -> None:
        fresh = self._like(state)
        fresh._steps = whole(state["steps"], "state['steps']", 0)
        velocity = state["velocity"]
        if not isinstance(velocity, Mapping):
            raise ArgumentTypeError(
                f"state['velocity']: expected a mapping, got {type(velocity).__name__}"
            )
        for name, array in velocity.items():
            checked = np.array(as_array(array, f"state['velocity'][{name!r}]"), order="C")
            if checked.dtype not in (np.float32, np.float64):
                raise ElementError(
                    f"state['velocity'][{name!r}]: expected float32 or float64, got {checked.dtype}"
                )
            fresh._velocity[str(name)] = checked
        vars(self).update(vars(fresh))

    def _like(self, state: Mapping[str, Any]) -> SGD:
        """A new optimizer of the settings in a state, which checks them all."""
        return SGD(
            state["lr"],
            momentum=state["momentum"],
            nesterov=state["nesterov"],
            weight_decay=state["weight_decay"],
            threads=self.threads,
        )

    def _settings(self) -> str:
        parts = [f"momentum={self.momentum:g}"] * bool(self.momentum)
        parts += ["nesterov=True"] * self.nesterov
        parts += [f"weight_decay={self.weight_decay:g}"] * bool(self.weight_decay)
        return "".join(f", {part}" for part in parts)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(lr={self._lr:g}{self._settings()})"


class GD(SGD):
    """Plain gradient descent: w ← w - lr g.

    Parameters
    ----------
    lr : float
        Learning rate, > 0; converges for lr < 2 / L, with L the largest curvature.
    threads : int, default None
        As in `SGD`.

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> w = np.array([1.0, 2.0])
    >>> ws.GD(0.5).step(w, np.array([1.0, 1.0]))
    >>> w
    array([0.5, 1.5])
    """

    def __init__(self, lr: float, *, threads: int | None = None) -> None:
        super().__init__(lr, threads=threads)


class SGDR(SGD):
    """SGD with warm restarts: a cosine from lr_max to lr_min, again and again, in longer cycles.

    lr = lr_min + (lr_max - lr_min) (1 + cos(π T_cur / T_i)) / 2, T_cur in epochs, counted per batch;
    after T_i epochs it restarts with T_{i+1} = T_mult T_i. Cycles are counted in integers, so a restart
    is never missed by rounding. Report the weights at the end of a cycle, where lr is near lr_min.

    Parameters
    ----------
    lr_max : float
        Rate at each restart, > 0.
    T_0 : int
        Epochs of the first cycle, > 0.
    T_mult : int, default 1
        Factor between the lengths of cycles, >= 1.
    lr_min : float, default 0.0
        Rate at the end of each cycle, in [0, lr_max].
    steps_per_epoch : int, default 1
        Calls of `step` in an epoch.
    decay : float, default 1.0
        Factor on lr_max at each restart, in (0, 1].
    warmup : int, default 0
        Epochs of linear increase to lr_max before the first cycle.
    momentum, nesterov, weight_decay, threads
        As in `SGD`.

    References
    ----------
    Loshchilov & Hutter 2017, arXiv:1608.03983, equation 5.

    Examples
    --------
    >>> import numpy as np, weightshare as ws
    >>> step, rates, w = ws.SGDR(0.1, T_0=4, T_mult=2, lr_min=0.001), [], np.zeros(1)
    >>> for _ in range(6):
    ...     rates.append(round(step.lr, 6))
    ...     step.step(w, np.ones(1))
    >>> rates
    [0.1, 0.085502, 0.0505, 0.015498, 0.1, 0.096232]
    """

    def __init__(
        self,
        lr_max: float,
        T_0: int,
        T_mult: int = 1,
        lr_min: float = 0.0,
        *,
        steps_per_epoch: int = 1,
        decay: float = 1.0,
        warmup: int = 0,
        momentum: float = 0.0,
        nesterov: bool = False,
        weight_decay: float = 0.0,
        threads: int | None = None,
    ) -> None:
        super().__init__(
            lr_max, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, threads=threads
        )
        self._schedule: dict[str, Any] = {
            "lr_max": self._lr,
            "T_0": T_0,
            "T_mult": T_mult,
            "lr_min": lr_min,
            "steps_per_epoch": steps_per_epoch,
            "decay": decay,
            "warmup": warmup,
        }
        check_schedule(**self._schedule)

    @property
    def lr(self) -> float:
        """The learning rate of the next step; the schedule sets it."""
        return restart_rate(self._steps, **self._schedule)

    @lr.setter
    def lr(self, value: float) -> None:
        raise ArgumentError(f"lr: the schedule of SGDR sets it; make one with lr_max={value!r}")

    def state_dict(self) -> dict[str, Any]:
        """Everything needed to go on later, the place in the schedule included."""
        return {**super().state_dict(), "schedule": dict(self._schedule)}

    def _like(self, state: Mapping[str, Any]) -> SGD:
        schedule = state["schedule"]
        if not isinstance(schedule, Mapping) or set(schedule) != set(self._schedule):
            raise ArgumentError(f"state['schedule']: expected the entries {sorted(self._schedule)}")
        return SGDR(
            **schedule,
            momentum=state["momentum"],
            nesterov=state["nesterov"],
            weight_decay=state["weight_decay"],
            threads=self.threads,
        )

    def __repr__(self) -> str:
        schedule = ", ".join(f"{name}={value!r}" for name, value in self._schedule.items())
        return f"SGDR({schedule}{self._settings()})"


def _velocity_dtype(w: Array) -> np.dtype[Any]:
    return np.dtype(np.float64 if w.dtype == np.float64 else np.float32)


def _quoted(name: str) -> str:
    return f"{name!r} " if name else ""


def _pairs_of(params: Any, grads: Any) -> dict[str, tuple[Array, Array]]:
    """(parameter, gradient) by name, all checked."""
    if isinstance(params, Mapping) != isinstance(grads, Mapping):
        raise ArgumentTypeError(
            "grads: expected the form of params (both arrays, or both mappings)"
        )
    if not isinstance(params, Mapping):
        pairs = {"": _checked_pair(params, grads, "")}
        _check_memory(pairs)
        return pairs
    if set(params) != set(grads):
        odd = sorted(map(str, set(params) ^ set(grads)))
        raise NamesError(f"grads: expected the names of params; these differ: {odd[:3]}")
    for name in params:
        if not isinstance(name, str):
            raise ArgumentTypeError(f"params: expected names that are str, got {name!r}")
    pairs = {name: _checked_pair(params[name], grads[name], name) for name in params}
    _check_memory(pairs)
    return pairs


def _checked_pair(param: Any, grad: Any, name: str) -> tuple[Array, Array]:
    place = f"[{name!r}]" if name else ""
    if not isinstance(param, np.ndarray) and not is_tensor(param):
        raise ArgumentTypeError(
            f"params{place}: expected an array to change in place, got {type(param).__name__}"
        )
    if isinstance(param, np.ndarray) and not param.dtype.isnative:
        raise ElementError(f"params{place}: expected native byte order, got {param.dtype!r}")
    w = as_array(param, f"params{place}")
    g = as_array(grad, f"grads{place}")
    for array, argument in ((w, "params"), (g, "grads")):
        if array.dtype not in FLOATS:
            raise ElementError(
                f"{argument}{place}: expected float16, bfloat16, float32 or float64, got {array.dtype}"
            )
    if w.shape != g.shape:
        raise ShapeError(f"grads{place}: expected shape {w.shape}, got {g.shape}")
    if not w.flags.writeable:
        raise ArgumentError(f"params{place}: array is read-only; pass one that may be written")
    return w, contiguous(g)


def _check_memory(pairs: dict[str, tuple[Array, Array]]) -> None:
    """Refuses a parameter that shares memory with another one, or with any gradient."""
    spans = [(*byte_bounds(w), True, name) for name, (w, _) in pairs.items() if w.size]
    spans += [(*byte_bounds(g), False, name) for name, (_, g) in pairs.items() if g.size]
    furthest: dict[bool, int] = {}
    for low, high, is_param, name in sorted(spans):
        for other_is_param, reach in furthest.items():
            if low < reach and (is_param or other_is_param):
                raise ArgumentError(
                    f"params: {_quoted(name)}shares memory with another parameter or gradient; step "
                    "tied weights once, under one name, with the sum of their gradients"
                )
        furthest[is_param] = max(high, furthest.get(is_param, 0))
