"""Methods of elements: what each promises, Fisher information, running means, and NaN."""

from __future__ import annotations

from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

import elementwise
import weightshare as ws
from tiling import fixed_array, in_tiles, settings_of
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)

DTYPES = [np.float16, ml_dtypes.bfloat16, np.float32, np.float64]
NUMBERS = st.floats(-100, 100, width=32)
ONES = np.ones(4, np.float32)


@given(arrays.arrays(np.float32, 9, elements=NUMBERS), st.floats(0, 5))
@example(np.full(9, -0.0, np.float32), 1.2e-38)
def test_equal_models_are_the_base_bit_for_bit(base: np.ndarray, number: float) -> None:
    """Signed zeros included, whatever the parameters."""
    twins = [base.copy(), base.copy()]
    for method, models, values in (
        ("nearswap", twins[:1], {"t": number}),
        ("ram", twins, {"epsilon": number}),
        ("ramplus_tl", twins, {"r": number, "alpha": number}),
        ("magmax", twins, {"lambda_": number}),
        ("consensus_ta", twins, {"mask_threshold": number, "alpha": number}),
        ("arcee_fusion", twins[:1], {}),
    ):
        found = ws.merge(models, method=method, base=base, **values)
        assert found.tobytes() == base.tobytes(), method


@given(arrays.arrays(np.float32, (2, 9), elements=NUMBERS), st.floats(0.01, 5))
def test_nearswap_moves_towards_the_model_by_at_most_t(pair: np.ndarray, t: float) -> None:
    """Never past the model, and all the way where it is near."""
    base, model = pair
    found = ws.merge([model], method="nearswap", base=base, t=t)
    slack = 1e-5
    assert np.all(np.abs(found - base) <= t + slack)
    assert np.all(found >= np.minimum(base, model) - slack)
    assert np.all(found <= np.maximum(base, model) + slack)
    near = np.abs(model.astype(np.float64) - base) < 0.999 * t
    np.testing.assert_array_equal(
        found[near & (np.abs(model - base) > 1e-6)], model[near & (np.abs(model - base) > 1e-6)]
    )
    unmoved = ws.merge([model], method="nearswap", base=base, t=0)
    np.testing.assert_array_equal(unmoved, base)


@given(arrays.arrays(np.float64, (3, 9), elements=NUMBERS), st.permutations(range(3)))
def test_the_order_of_the_models_does_not_matter(deltas: np.ndarray, order: list[int]) -> None:
    """Except for magmax where magnitudes are equal."""
    base = np.zeros(9)
    methods: list[tuple[str, dict[str, Any]]] = [
        ("ram", {}),
        ("ramplus_tl", {}),
        ("consensus_ta", {"mask_threshold": 0.4321}),
        ("swa", {}),
    ]
    if len(set(np.abs(deltas).ravel().tolist())) == deltas.size:
        methods.append(("magmax", {}))
    for method, values in methods:
        start = None if method == "swa" else base
        plain = ws.merge(list(deltas), method=method, base=start, **values)
        turned = ws.merge([deltas[i] for i in order], method=method, base=start, **values)
        np.testing.assert_allclose(turned, plain, rtol=1e-12, atol=1e-12)


def test_disjoint_deltas_are_kept_whole_by_ram() -> None:
    """The case that it is made for: nothing is divided, RAM+ strengthens nothing."""
    base = np.zeros(6)
    first, second = np.array([3.0, 0, 0, 0, 0, 2]), np.array([0, 0, -4.0, 0, 5, 0])
    for method in ("ram", "ramplus_tl"):
        found = ws.merge([first, second], method=method, base=base)
        np.testing.assert_array_equal(found, first + second)


def test_without_lone_deltas_ramplus_is_ram() -> None:
    """Their count is what the ratio is divided by, also where epsilon is 0."""
    base, model = np.zeros(4), np.arange(4.0)
    for epsilon in (0.0, 1e-5):
        found = ws.merge([model, model], method="ramplus_tl", base=base, epsilon=epsilon)
        np.testing.assert_array_equal(found, model)


def test_consensus_of_no_task_is_task_arithmetic_and_of_all_only_what_all_serve() -> None:
    """k = 0 keeps the sum everywhere; opposite deltas that leave nothing serve nobody."""
    base = fixed_array((50,), np.float64, 1)
    models = [base + fixed_array((50,), np.float64, k, 0.1) for k in (2, 3)]
    whole = ws.merge(models, method="consensus_ta", base=base, k=0)
    np.testing.assert_allclose(
        whole, ws.merge(models, method="task_arithmetic", base=base), rtol=1e-14
    )
    kept = ws.merge(models, method="consensus_ta", base=base, k=2, mask_threshold=1e9)
    np.testing.assert_array_equal(kept, base)
    with pytest.raises(ArgumentError, match="k: expected at most the number of models, 2, got 3"):
        ws.merge(models, method="consensus_ta", base=base, k=3)


@pytest.mark.parametrize("method", ["nearswap", "ram", "ramplus_tl", "magmax", "consensus_ta"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_nan_of_any_input_is_a_nan_of_the_output(method: str, dtype: Any) -> None:
    """It is never taken for a delta that is too small to count; its neighbours are untouched."""
    count = 1 if method == "nearswap" else 3
    for place in range(count + 1):
        tensors = [fixed_array((8,), dtype, k) for k in range(count + 1)]
        tensors[place][5] = np.nan
        values = {"t": 0.1} if method == "nearswap" else {}
        found = ws.merge(tensors[:-1], method=method, base=tensors[-1], **values)
        np.testing.assert_array_equal(np.flatnonzero(np.isnan(found.astype(np.float64))), [5])


def information(count: int, shape: tuple[int, ...], dtype: Any = np.float32) -> list[np.ndarray]:
    return [np.abs(fixed_array(shape, np.float64, 70 + k)).astype(dtype) for k in range(count)]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("dtype", DTYPES)
def test_fisher_is_the_mean_weighted_by_information(dtype: Any, normalize: bool) -> None:
    """Within one rounding of the formula; information may have another element."""
    for shape in [(), (1,), (7, 13), (3, 5, 4)]:
        models = [fixed_array(shape, dtype, k) for k in range(3)]
        known = information(3, shape)
        weights = [1.0, 0.5, 2.0]
        found = ws.merge(models, weights, method="fisher", fisher=known, normalize_fisher=normalize)
        wide = [model.astype(np.float64) for model in models]
        exact = elementwise.fisher(
            wide, [each.astype(np.float64) for each in known], weights, normalize=normalize
        )
        assert found.dtype == dtype
        unit = float(ml_dtypes.finfo(dtype).eps)
        np.testing.assert_allclose(
            found.astype(np.float64),
            exact,
            rtol=0.51 * unit,
            atol=4 * 2.0**-52 + (unit > 1e-4) * 3e-8,
        )


def test_fisher_cut_into_tiles_is_the_same() -> None:
    """With the norms of a first pass, and one to three threads."""
    models = [fixed_array((300, 1000), ml_dtypes.bfloat16, k) for k in range(2)]
    known = information(2, (300, 1000))
    method = ws.methods()["fisher"]
    for normalize in (False, True):
        values = {"normalize_fisher": normalize}
        whole = ws.merge(models, method="fisher", fisher=known, threads=3, **values)
        settings = settings_of(method, 2, values)
        for tiles in (1, 4):
            found, cut = in_tiles(method, models, None, settings, tiles, statistics=known)
            assert cut >= min(tiles, 3)
            assert found.tobytes() == whole.tobytes()


def test_a_model_without_weight_is_left_out_of_fisher() -> None:
    """As of other sums: what is not finite in it does not show."""
    sound, bad = np.ones(2), np.array([np.nan, np.inf])
    found = ws.merge([sound, bad], [2, 0], method="fisher", fisher=[sound, bad])
    np.testing.assert_array_equal(found, sound)


def test_without_information_fisher_is_the_weighted_mean() -> None:
    """Zeros and negative numbers tell nothing."""
    models = [fixed_array((9,), np.float64, k) for k in range(2)]
    for known in ([np.zeros(9)] * 2, [np.full(9, -3.0)] * 2):
        for normalize in (False, True):
            if normalize and known[0][0] < 0:
                continue
            found = ws.merge(
                models, [1, 3], method="fisher", fisher=known, normalize_fisher=normalize
            )
            np.testing.assert_allclose(found, ws.merge(models, [1, 3]), rtol=1e-14)


def test_fisher_of_mappings_leaves_integers_alone() -> None:
    """Information is looked up by name; tensors that are copied need none."""
    models = [{"w": ONES * k, "ids": np.arange(3)} for k in (1, 3)]
    merged = ws.merge(models, method="fisher", fisher=[{"w": ONES}, {"w": ONES * 3}])
    np.testing.assert_allclose(merged["w"], 2.5, rtol=1e-6)
    np.testing.assert_array_equal(merged["ids"], np.arange(3))


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ArgumentError, "fisher: is missing", {}),
        (ArgumentError, "fisher: expected 2 values", {"fisher": [ONES]}),
        (ArgumentTypeError, "fisher: expected a sequence of 2", {"fisher": {"w": ONES}}),
        (ShapeError, "fisher[1]: expected shape (4,), got (3,)", {"fisher": [ONES, ONES[:3]]}),
        (NamesError, "fisher[0]: lacks ''", {"fisher": [{"w": ONES}, ONES]}),
        (ElementError, "fisher[0]: expected float16", {"fisher": [np.arange(4), ONES]}),
        (ArgumentError, "every weight is zero", {"fisher": [ONES] * 2, "weights": [0, 0]}),
        (ArgumentError, "at least 0, got -1", {"fisher": [ONES] * 2, "weights": [1, -1]}),
        (ArgumentError, "epsilon: expected at least", {"fisher": [ONES] * 2, "epsilon": 0}),
        (ArgumentError, "no such parameter; did you mean", {"fishers": [ONES] * 2}),
    ],
)
def test_wrong_information_is_refused(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    """With the argument, what was expected and what came."""
    with pytest.raises(error) as caught:
        ws.merge([ONES, ONES], method="fisher", **arguments)
    assert message in str(caught.value)


def test_passthrough_copies_bits_and_scales() -> None:
    """NaN payloads and negative zeros survive; a scale of 0 is zeros."""
    bits = np.array([0x7FA12345, 0xFFC00001, 0x80000000, 0x00000001], np.uint32)
    model = bits.view(np.float32)
    np.testing.assert_array_equal(ws.merge([model], method="passthrough").view(np.uint32), bits)
    np.testing.assert_array_equal(ws.merge([ONES], method="passthrough", scale=0), ONES * 0)
    with pytest.raises(ArgumentError, match="merges 1, got 2"):
        ws.merge([ONES, ONES], method="passthrough")


@given(st.integers(1, 6), st.floats(0, 1))
def test_ema_is_the_running_mean(count: int, decay: float) -> None:
    """The same as taking the checkpoints one after the other."""
    models = [fixed_array((5,), np.float64, k) for k in range(count)]
    running = models[0]
    for model in models[1:]:
        running = decay * running + (1 - decay) * model
    found = ws.merge(models, method="ema", decay=decay)
    np.testing.assert_allclose(found, running, rtol=1e-12, atol=1e-14)


def test_every_method_says_what_it_is() -> None:
    """A formula, a source, documented parameters; names in recipes are unique."""
    for name, method in ws.methods().items():
        assert method.name == name
        assert method.summary
        assert method.source
        names = [parameter.name for parameter in method.parameters]
        assert len(set(names)) == len(names)
        assert all(parameter.summary for parameter in method.parameters)
