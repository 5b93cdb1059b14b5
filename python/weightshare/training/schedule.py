"""The learning rate of SGDR: cosine annealing with warm restarts.

Cycles are accumulated in whole numbers, never found from a logarithm, so a restart falls on its
step exactly, however many cycles went before.
"""

from __future__ import annotations

import math

from weightshare._core.numbers import number, whole


def cosine_restarts(
    epoch: float,
    *,
    lr_max: float,
    T_0: int,
    T_mult: int = 1,
    lr_min: float = 0.0,
    decay: float = 1.0,
    warmup: int = 0,
) -> float:
    """Return the learning rate of SGDR at an epoch, whole or fractional.

    lr_min + (peak - lr_min) / 2 · (1 + cos(π T_cur / T_i)), where T_cur is the time since the
    last restart, T_i = T_0 · T_mult^i the length of cycle i, and peak = lr_max · decay^i, but
    never below lr_min. Before the first cycle the rate rises linearly from lr_min to lr_max.

    Parameters
    ----------
    epoch : float
        Time since the start of training, in epochs, at least 0.
    lr_max : float
        Rate at the start of the first cycle, above 0.
    T_0 : int
        Length of the first cycle in epochs, at least 1.
    T_mult : int, default 1
        Factor from one cycle's length to the next, at least 1.
    lr_min : float, default 0
        Rate at the end of a cycle, from 0 to lr_max.
    decay : float, default 1
        Factor on lr_max at each restart, in (0, 1].
    warmup : int, default 0
        Epochs of linear rise before the first cycle, at least 0.

    Returns
    -------
    float
        The rate, in the unit of lr_max.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument is not a finite number of the kind and range given above.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017,
    equation 5.

    Examples
    --------
    >>> from weightshare.training.schedule import cosine_restarts
    >>> [round(cosine_restarts(e, lr_max=0.1, T_0=4, lr_min=0.001), 6) for e in (0, 1, 2, 3, 4)]
    [0.1, 0.085502, 0.0505, 0.015498, 0.1]
    """
    check_schedule(
        lr_max=lr_max,
        T_0=T_0,
        T_mult=T_mult,
        lr_min=lr_min,
        steps_per_epoch=1,
        decay=decay,
        warmup=warmup,
    )
    time = number(epoch, "epoch", 0.0)
    # whole cycles are taken off a float exactly, as they are multiples of its last bit
    return _rate(time, lr_max, int(T_0), int(T_mult), lr_min, decay, int(warmup))


def restart_rate(
    step: int,
    *,
    lr_max: float,
    T_0: int,
    T_mult: int = 1,
    lr_min: float = 0.0,
    steps_per_epoch: int = 1,
    decay: float = 1.0,
    warmup: int = 0,
) -> float:
    """Return the learning rate of SGDR at a step, a step being 1 / steps_per_epoch epochs.

    The same as `cosine_restarts` at ``step / steps_per_epoch``, but counted in whole steps, so
    nothing drifts at the boundary of a cycle.

    Parameters
    ----------
    step : int
        Steps made before this one, at least 0.
    lr_max, T_0, T_mult, lr_min, decay, warmup
        As in `cosine_restarts`; T_0 and warmup in epochs.
    steps_per_epoch : int, default 1
        Batches in an epoch, at least 1.

    Returns
    -------
    float
        The rate for this step, in the unit of lr_max.

    Raises
    ------
    ArgumentError, ArgumentTypeError
        If an argument is not a finite number of the kind and range given above.

    References
    ----------
    Loshchilov and Hutter, "SGDR: Stochastic gradient descent with warm restarts", 2017,
    equation 5, where T_cur advances with each batch.

    Examples
    --------
    >>> from weightshare.training.schedule import restart_rate
    >>> restart_rate(121, lr_max=0.1, T_0=1, T_mult=3)
    0.1
    >>> restart_rate(50, lr_max=0.1, T_0=1, steps_per_epoch=100)
    0.05
    """
    check_schedule(
        lr_max=lr_max,
        T_0=T_0,
        T_mult=T_mult,
        lr_min=lr_min,
        steps_per_epoch=steps_per_epoch,
        decay=decay,
        warmup=warmup,
    )
    whole(step, "step", 0)
    unit = int(steps_per_epoch)  # Python's own int: NumPy's would overflow in long cycles
    length, rise = int(T_0) * unit, int(warmup) * unit
    return _rate(int(step), lr_max, length, int(T_mult), lr_min, decay, rise)


def check_schedule(
    *,
    lr_max: float,
    T_0: int,
    T_mult: int,
    lr_min: float,
    steps_per_epoch: int,
    decay: float,
    warmup: int,
) -> None:
    """Refuse the parameters of a schedule that `restart_rate` cannot use.

    Parameters
    ----------
    lr_max, T_0, T_mult, lr_min, steps_per_epoch, decay, warmup
        As in `restart_rate`.

    Raises
    ------
    ArgumentTypeError
        If one is not a number of its kind.
    ArgumentError
        If one is not finite or not in its range.

    Examples
    --------
    >>> from weightshare.training.schedule import check_schedule
    >>> check_schedule(lr_max=0.1, T_0=10, T_mult=2, lr_min=0.0, steps_per_epoch=1, decay=1.0,
    ...                warmup=0)
    """
    highest = number(lr_max, "lr_max", 0.0, above=True)
    number(lr_min, "lr_min", 0.0, highest)
    number(decay, "decay", 0.0, 1.0, above=True)
    whole(T_0, "T_0", 1)
    whole(T_mult, "T_mult", 1)
    whole(steps_per_epoch, "steps_per_epoch", 1)
    whole(warmup, "warmup", 0)


def _rate(
    time: float,
    lr_max: float,
    length: int,
    factor: int,
    lr_min: float,
    decay: float,
    warmup: int,
) -> float:
    """Return the rate at a time, with time, length and warmup in one unit."""
    if time < warmup:
        return float(lr_min + (lr_max - lr_min) * (time / warmup))
    time, cycle = time - warmup, 0
    if factor == 1:
        cycle, time = int(time // length), time % length
    while time >= length:
        time, length, cycle = time - length, length * factor, cycle + 1
    peak = max(lr_max * decay**cycle, lr_min)
    share = 0.5 * (1.0 + math.cos(math.pi * (time / length)))
    return float(peak * share + lr_min * (1.0 - share))  # exactly the peak at a restart
