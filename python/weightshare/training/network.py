"""Small multi-layer perceptrons as plain mappings of names to arrays.

A network is ``{"layers.0.weight": (n_out, n_in), "layers.0.bias": (n_out,), ...}``, so every
function that shares, mixes, steps or saves models takes it. One layer is softmax regression.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from weightshare._core import network as _core
from weightshare._core.arrays import FLOATS, Array, as_array, contiguous
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

ACTIVATIONS = ("identity", "relu", "tanh", "logistic")
_SCHEMES = ("glorot", "he")


def initial_weights(
    sizes: Sequence[int], seed: int = 0, *, scheme: str = "glorot", dtype: Any = np.float32
) -> dict[str, Array]:
    """Draw the starting weights of a network; biases are zero.

    Parameters
    ----------
    sizes : sequence of int
        Width of the input, of each hidden layer, and the number of classes: at least two.
    seed : int, default 0
        Of the random numbers, at least 0.
    scheme : {"glorot", "he"}, default "glorot"
        glorot: uniform within ±√(6 / (n_in + n_out)), for identity, tanh and logistic.
        he: normal with variance 2 / n_in, for relu.
    dtype : dtype, default float32
        float16, bfloat16, float32 or float64.

    Returns
    -------
    dict of str to ndarray
        ``layers.k.weight`` of shape (sizes[k+1], sizes[k]) and ``layers.k.bias`` (sizes[k+1],).

    Raises
    ------
    ArgumentError, ArgumentTypeError, ElementError
        If an argument is not as described.

    References
    ----------
    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural
    networks", 2010; He et al., "Delving deep into rectifiers", 2015.

    Examples
    --------
    >>> model = initial_weights([64, 32, 10])
    >>> [(name, array.shape) for name, array in model.items()]  # doctest: +NORMALIZE_WHITESPACE
    [('layers.0.weight', (32, 64)), ('layers.0.bias', (32,)),
     ('layers.1.weight', (10, 32)), ('layers.1.bias', (10,))]
    """
    widths = _checked_sizes(sizes)
    _check_word("scheme", scheme, _SCHEMES)
    kind = _checked_dtype(dtype)
    if isinstance(seed, bool) or not isinstance(seed, int | np.integer) or seed < 0:
        raise ArgumentTypeError(
            f"seed: expected a whole number of at least 0, got {seed!r}; give an int."
        )
    draw = np.random.default_rng(int(seed))
    model: dict[str, Array] = {}
    for k, (n_in, n_out) in enumerate(itertools.pairwise(widths)):
        if scheme == "glorot":
            bound = math.sqrt(6.0 / (n_in + n_out))
            weight = draw.uniform(-bound, bound, (n_out, n_in))
        else:
            weight = draw.normal(0.0, math.sqrt(2.0 / n_in), (n_out, n_in))
        model[f"layers.{k}.weight"] = weight.astype(kind)
        model[f"layers.{k}.bias"] = np.zeros(n_out, kind)
    return model


def logits(model: Mapping[str, Any], X: ArrayLike, activation: str = "relu") -> Array:
    """Return the scores of each class, before the softmax.

    Parameters
    ----------
    model : mapping of str to array
        A network, as `initial_weights` makes it; all of one dtype.
    X : array_like, shape (n, n_in)
        Finite inputs, taken in the dtype of the arithmetic: float64 for float64 weights,
        float32 for all others.
    activation : {"identity", "relu", "tanh", "logistic"}, default "relu"
        Of the hidden layers.

    Returns
    -------
    ndarray of shape (n, n_classes)
        float64 for float64 weights, else float32.

    Raises
    ------
    NamesError, ShapeError, ElementError, ArgumentError, ArgumentTypeError
        If the arguments are not as described, or do not fit each other.

    Examples
    --------
    >>> import numpy as np
    >>> model = {"layers.0.weight": np.float32([[1, 2]]), "layers.0.bias": np.float32([0.5])}
    >>> logits(model, [[1.0, 1.0], [0.0, 2.0]])
    array([[3.5],
           [4.5]], dtype=float32)
    """
    network = _checked_model(model)
    _check_word("activation", activation, ACTIVATIONS)
    inputs = _checked_inputs(X, network)
    out = np.empty((len(inputs), network.n_classes), network.work)
    if len(inputs):
        _core.forward(out, network.weights, network.biases, activation, inputs)
    return out


def loss_and_gradient(
    model: Mapping[str, Any], X: ArrayLike, y: ArrayLike, activation: str = "relu"
) -> tuple[float, dict[str, Array]]:
    """Return the mean cross-entropy of the softmax, and its gradient for every weight.

    Parameters
    ----------
    model : mapping of str to array
        As in `logits`.
    X : array_like, shape (n, n_in)
        As in `logits`, with n of at least 1.
    y : array_like of int, shape (n,)
        The class of each row, from 0 to n_classes - 1.
    activation : {"identity", "relu", "tanh", "logistic"}, default "relu"
        Of the hidden layers.

    Returns
    -------
    loss : float
        Mean over the rows, in nats.
    gradient : dict of str to ndarray
        The names, shapes and dtype of the model.

    Raises
    ------
    NamesError, ShapeError, ElementError, ArgumentError, ArgumentTypeError
        If the arguments are not as described, or do not fit each other.

    References
    ----------
    Rumelhart, Hinton and Williams, "Learning representations by back-propagating errors", 1986.

    Examples
    --------
    >>> import numpy as np
    >>> model = {"layers.0.weight": np.zeros((2, 3)), "layers.0.bias": np.zeros(2)}
    >>> loss, gradient = loss_and_gradient(model, [[1.0, 0.0, 2.0]], [1])
    >>> round(loss, 6), gradient["layers.0.bias"].tolist()
    (0.693147, [0.5, -0.5])
    """
    network = _checked_model(model)
    _check_word("activation", activation, ACTIVATIONS)
    inputs = _checked_inputs(X, network, least=1)
    labels = _checked_labels(y, len(inputs), network.n_classes)
    weight_gradients = [np.empty_like(weight) for weight in network.weights]
    bias_gradients = [np.empty_like(bias) for bias in network.biases]
    loss = _core.loss_and_gradient(
        weight_gradients,
        bias_gradients,
        network.weights,
        network.biases,
        activation,
        inputs,
        labels,
    )
    gradient: dict[str, Array] = {}
    for k, (of_weight, of_bias) in enumerate(zip(weight_gradients, bias_gradients, strict=True)):
        gradient[f"layers.{k}.weight"] = of_weight.astype(network.dtype, copy=False)
        gradient[f"layers.{k}.bias"] = of_bias.astype(network.dtype, copy=False)
    return float(loss), gradient


def accuracy(
    model: Mapping[str, Any], X: ArrayLike, y: ArrayLike, activation: str = "relu"
) -> float:
    """Return the share of rows whose class has the largest score (the first of equal ones).

    Parameters
    ----------
    model, X, y, activation
        As in `loss_and_gradient`.

    Returns
    -------
    float
        From 0 to 1.

    Raises
    ------
    NamesError, ShapeError, ElementError, ArgumentError, ArgumentTypeError
        As `loss_and_gradient`.

    Examples
    --------
    >>> import numpy as np
    >>> model = {"layers.0.weight": np.eye(2), "layers.0.bias": np.zeros(2)}
    >>> accuracy(model, [[1.0, 0.0], [0.0, 1.0], [3.0, 2.0]], [0, 1, 1])
    0.6666666666666666
    """
    scores = logits(model, X, activation)
    if not len(scores):
        raise ShapeError("X: expected at least 1 row, got none; give some samples.")
    labels = _checked_labels(y, len(scores), scores.shape[1])
    return float(np.mean(scores.argmax(axis=1) == labels))


@dataclass(frozen=True)
class _Network:
    """A checked model, in the dtype of the arithmetic."""

    weights: list[Array]
    biases: list[Array]
    dtype: np.dtype[Any]
    work: np.dtype[Any]

    @property
    def n_in(self) -> int:
        return int(self.weights[0].shape[1])

    @property
    def n_classes(self) -> int:
        return int(self.weights[-1].shape[0])


def _checked_model(model: Mapping[str, Any]) -> _Network:
    if not isinstance(model, Mapping):
        raise ArgumentTypeError(
            f"model: expected a mapping of names to arrays, got {type(model).__name__}; make one "
            "with initial_weights."
        )
    depth = len(model) // 2
    expected = [f"layers.{k}.{part}" for k in range(max(depth, 1)) for part in ("weight", "bias")]
    if set(model) != set(expected):
        missing = sorted(set(expected) - set(model))
        extra = sorted(map(str, set(model) - set(expected)))
        raise NamesError(
            f"model: expected {expected[0]}, {expected[1]} and so on for each layer, got "
            f"{missing[:3]} missing and {extra[:3]} unknown; rename the arrays."
        )
    arrays = {name: as_array(model[name], f"model[{name!r}]") for name in expected}
    dtype = _one_dtype(arrays)
    _check_shapes(arrays, depth)
    work = np.dtype(np.float64 if dtype == np.float64 else np.float32)
    ready = {name: contiguous(array.astype(work, copy=False)) for name, array in arrays.items()}
    weights = [ready[f"layers.{k}.weight"] for k in range(depth)]
    return _Network(weights, [ready[f"layers.{k}.bias"] for k in range(depth)], dtype, work)


def _one_dtype(arrays: Mapping[str, Array]) -> np.dtype[Any]:
    first, array = next(iter(arrays.items()))
    for name, other in arrays.items():
        if other.dtype not in FLOATS or other.dtype != array.dtype:
            like = f"{array.dtype} as model[{first!r}]" if array.dtype in FLOATS else "floats"
            raise ElementError(
                f"model[{name!r}]: expected {like}, got {other.dtype}; cast it, such as "
                "x.astype('float32')."
            )
    return array.dtype


def _check_shapes(arrays: Mapping[str, Array], depth: int) -> None:
    width: int | None = None
    for k in range(depth):
        weight, bias = arrays[f"layers.{k}.weight"], arrays[f"layers.{k}.bias"]
        columns = "n_in" if width is None else str(width)
        fits = weight.ndim == 2 and weight.size > 0 and width in (None, weight.shape[1])
        if not fits:
            raise ShapeError(
                f"model['layers.{k}.weight']: expected shape (n_out, {columns}), got "
                f"{weight.shape}; make each layer take what the one before gives."
            )
        width = int(weight.shape[0])
        if bias.shape != (width,):
            raise ShapeError(
                f"model['layers.{k}.bias']: expected shape ({width},), one for each row of the "
                f"weight, got {bias.shape}; reshape it."
            )


def _checked_inputs(X: ArrayLike, network: _Network, least: int = 0) -> Array:
    found = as_array(X, "X")
    if found.ndim != 2 or found.shape[1] != network.n_in:
        raise ShapeError(
            f"X: expected shape (n, {network.n_in}), one row for each sample, got {found.shape}; "
            "flatten each sample, or use a model of that width."
        )
    if len(found) < least:
        raise ShapeError(f"X: expected at least {least} row, got none; give some samples.")
    if found.dtype.kind not in "biu" and found.dtype not in FLOATS:
        raise ElementError(f"X: expected real numbers, got {found.dtype}; cast it to float32.")
    with np.errstate(over="ignore"):  # too large for float32: told by the next line
        inputs = contiguous(found.astype(network.work, copy=False))
    if not np.isfinite(inputs).all():
        row = int(np.argwhere(~np.isfinite(inputs))[0, 0])
        raise ArgumentError(
            f"X: expected finite {network.work} numbers, got NaN or infinity in row {row}; fill "
            "or drop it first."
        )
    return inputs


def _checked_labels(y: ArrayLike, n_rows: int, n_classes: int) -> NDArray[np.int64]:
    try:
        found = np.asarray(y)
    except ValueError as error:
        raise ShapeError(
            f"y: expected shape ({n_rows},), got a ragged sequence; give one class for each row."
        ) from error
    if found.shape != (n_rows,):
        raise ShapeError(
            f"y: expected shape ({n_rows},), one class for each row of X, got {found.shape}; "
            "pass classes, not one-hot rows."
        )
    if found.dtype.kind not in "iu":
        raise ElementError(
            f"y: expected whole numbers, got {found.dtype}; cast the classes to int64."
        )
    low, high = int(found.min()), int(found.max())
    if low < 0 or high >= n_classes:
        raise ArgumentError(
            f"y: expected classes from 0 to {n_classes - 1}, got {low if low < 0 else high}; "
            "number the classes from 0, or use a model with more of them."
        )
    return np.ascontiguousarray(found, dtype=np.int64)


def _checked_sizes(sizes: Sequence[int]) -> list[int]:
    try:
        widths = list(sizes)
    except TypeError:
        raise ArgumentTypeError(
            f"sizes: expected widths such as [64, 32, 10], got {sizes!r}; give a list."
        ) from None
    for width in widths:
        if isinstance(width, bool) or not isinstance(width, int | np.integer):
            raise ArgumentTypeError(
                f"sizes: expected whole numbers, got {width!r} in {widths!r}; give ints."
            )
    if len(widths) < 2 or min(widths) < 1:
        raise ArgumentError(
            f"sizes: expected at least two widths of at least 1, got {widths!r}; give the inputs, "
            "the hidden layers if any, and the classes."
        )
    return [int(width) for width in widths]


def _checked_dtype(dtype: Any) -> np.dtype[Any]:
    try:
        kind: np.dtype[Any] | None = np.dtype(dtype)
    except TypeError:
        kind = None
    if kind is None or kind not in FLOATS:
        raise ElementError(
            f"dtype: expected float16, bfloat16, float32 or float64, got {dtype!r}; choose one."
        )
    return kind


def _check_word(argument: str, value: object, known: tuple[str, ...]) -> None:
    if not isinstance(value, str) or value not in known:
        raise ArgumentError(
            f"{argument}: expected one of {', '.join(known)}, got {value!r}; choose one of them."
        )
