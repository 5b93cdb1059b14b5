"""ws.GD, ws.SGD, ws.SGDR: sentences about optimizer steps in place."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import pytest

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    ElementError,
    NamesError,
    ShapeError,
)


def normal(*shape, dtype=np.float64, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def written_out(w, gradients, lr, momentum, nesterov, weight_decay):
    """The rule of the docstring in NumPy."""
    v = np.zeros_like(w)
    for g in gradients:
        v = momentum * v + g
        u = g + momentum * v if nesterov else v
        w = (1 - lr * weight_decay) * w - lr * u
    return w


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("momentum", "nesterov", "weight_decay"),
    [(0, False, 0), (0.9, False, 0), (0.9, True, 0.01), (0, False, 0.1)],
)
def test_steps_follow_the_rule(dtype, momentum, nesterov, weight_decay, threads):
    w, gradients = normal(40, 50, dtype=dtype), normal(5, 40, 50, dtype=dtype, seed=1)
    expected = written_out(w.astype(np.float64), gradients, 0.1, momentum, nesterov, weight_decay)
    step = ws.SGD(
        0.1, momentum=momentum, nesterov=nesterov, weight_decay=weight_decay, threads=threads
    )
    for g in gradients:
        step.step(w, g)
    np.testing.assert_allclose(w, expected, atol=1e-14 if dtype == np.float64 else 2e-6)


def test_torch_takes_the_same_steps():
    torch = pytest.importorskip("torch")
    w, gradients = normal(100), normal(6, 100, seed=1)
    parameter = torch.nn.Parameter(torch.from_numpy(w.copy()))
    peer = torch.optim.SGD([parameter], lr=0.05, momentum=0.9, nesterov=True)
    ours = ws.SGD(0.05, momentum=0.9, nesterov=True)
    for g in gradients:
        parameter.grad = torch.from_numpy(g.copy())
        peer.step()
        ours.step(w, g)
    np.testing.assert_allclose(w, parameter.detach().numpy(), atol=1e-14)


def test_a_mapping_moves_by_name_and_torch_tensors_move_in_place():
    params = {"w": normal(3, 2), "b": np.zeros(2, ml_dtypes.bfloat16)}
    expected = params["w"] - 0.5
    step = ws.GD(0.5)
    step.step(params, {"b": np.ones(2, np.float32), "w": np.ones((3, 2))})
    np.testing.assert_array_equal(params["w"], expected)
    np.testing.assert_array_equal(params["b"].astype(float), -0.5)


def test_strided_parameters_are_changed_in_place_too():
    whole = normal(4, 6)
    kept = whole.copy()
    ws.GD(1.0).step(whole[:, ::2], np.ones((4, 3)))
    np.testing.assert_array_equal(whole[:, ::2], kept[:, ::2] - 1)
    np.testing.assert_array_equal(whole[:, 1::2], kept[:, 1::2])


def test_gradient_descent_finds_the_minimum_of_a_quadratic():
    w = normal(5)
    step = ws.GD(0.4)
    for _ in range(200):
        step.step(w, 2 * (w - 3))
    np.testing.assert_allclose(w, 3, atol=1e-12)


def test_the_state_goes_on_where_it_stopped():
    gradients = normal(6, 10, seed=1)
    for make in (
        lambda: ws.SGD(0.1, momentum=0.9, nesterov=True, weight_decay=0.01),
        lambda: ws.SGDR(0.1, 3, 2, steps_per_epoch=1, momentum=0.5),
    ):
        through, halted = normal(10), normal(10)
        first, second, third = make(), make(), make()
        for g in gradients:
            first.step(through, g)
        for g in gradients[:3]:
            second.step(halted, g)
        third.load_state_dict(second.state_dict())
        for g in gradients[3:]:
            third.step(halted, g)
        np.testing.assert_array_equal(halted, through)


def test_sgdr_gives_the_golden_rates():
    golden = [
        0.1, 0.085502, 0.0505, 0.015498, 0.1, 0.096232, 0.085502, 0.069443, 0.0505, 0.031557, 0.015498,
        0.004768, 0.1, 0.099049,
    ]  # fmt: skip
    step, w, rates = ws.SGDR(0.1, T_0=4, T_mult=2, lr_min=0.001), np.zeros(1), []
    for _ in golden:
        rates.append(step.lr)
        step.step(w, np.zeros(1))
    np.testing.assert_allclose(rates, golden, atol=5e-7)


def test_sgdr_restarts_where_torch_misses_it():
    step = ws.SGDR(0.1, T_0=1, T_mult=3)
    state = step.state_dict()
    state["steps"] = 121  # 1 + 3 + 9 + 27 + 81
    step.load_state_dict(state)
    assert step.lr == 0.1


def test_the_rate_may_be_set_but_not_of_a_schedule():
    step = ws.SGD(0.1)
    step.lr = 0.5
    assert step.lr == 0.5
    with pytest.raises(ArgumentError, match="schedule"):
        ws.SGDR(0.1, 4).lr = 0.5


@pytest.mark.parametrize(
    ("make", "error", "words"),
    [
        (lambda: ws.GD(0), ArgumentError, "lr"),
        (lambda: ws.GD(-1.0), ArgumentError, "lr"),
        (lambda: ws.GD(np.nan), ArgumentError, "lr"),
        (lambda: ws.GD("fast"), ArgumentTypeError, "lr"),
        (lambda: ws.SGD(0.1, momentum=1.0), ArgumentError, "momentum"),
        (lambda: ws.SGD(0.1, momentum=-0.1), ArgumentError, "momentum"),
        (lambda: ws.SGD(0.1, nesterov=True), ArgumentError, "nesterov: needs momentum"),
        (lambda: ws.SGD(0.1, weight_decay=-1), ArgumentError, "weight_decay"),
        (lambda: ws.SGD(2.0, weight_decay=1.0), ArgumentError, "must not pass 1"),
        (lambda: ws.SGDR(0.1, 0), ArgumentError, "T_0"),
        (lambda: ws.SGDR(0.1, 2.5), ArgumentTypeError, "T_0"),
        (lambda: ws.SGDR(0.1, 2, 0), ArgumentError, "T_mult"),
        (lambda: ws.SGDR(0.1, 2, lr_min=0.2), ArgumentError, "lr_min"),
        (lambda: ws.SGDR(0.1, 2, decay=0), ArgumentError, "decay"),
        (lambda: ws.SGDR(0.1, 2, steps_per_epoch=0), ArgumentError, "steps_per_epoch"),
    ],
)
def test_settings_out_of_range_are_refused(make, error, words):
    with pytest.raises(error, match=words):
        make()


@pytest.mark.parametrize(
    ("params", "grads", "error", "words"),
    [
        (np.ones(3), np.ones(4), ShapeError, r"grads: expected shape \(3,\), got \(4,\)"),
        (np.ones((3, 1)), np.ones(3), ShapeError, "grads: expected shape"),
        (np.ones(3, int), np.ones(3), ElementError, "params: .*int64"),
        (np.ones(3), np.ones(3, int), ElementError, "grads: .*int64"),
        (np.ones(3, ">f8"), np.ones(3), ElementError, "params: expected native"),
        ([1.0, 2.0], [1.0, 1.0], ArgumentTypeError, "params: expected an array to change in place"),
        ({"a": np.ones(2)}, np.ones(2), ArgumentTypeError, "form of params"),
        ({"a": np.ones(2)}, {"b": np.ones(2)}, NamesError, "names of params"),
        (np.broadcast_to(np.ones(1), (3,)), np.ones(3), ArgumentError, "read-only"),
    ],
)
def test_parameters_and_gradients_that_do_not_fit_are_refused(params, grads, error, words):
    with pytest.raises(error, match=words):
        ws.SGD(0.1, momentum=0.9).step(params, grads)


def test_nothing_moves_when_one_tensor_of_a_mapping_does_not_fit():
    params = {"a": np.zeros(2), "b": np.zeros(2)}
    with pytest.raises(ShapeError):
        ws.GD(0.1).step(params, {"a": np.ones(2), "b": np.ones(3)})
    np.testing.assert_array_equal(params["a"], 0)


def test_other_parameters_than_before_are_refused():
    step = ws.SGD(0.1, momentum=0.9)
    step.step(np.zeros(3), np.ones(3))
    with pytest.raises(ShapeError, match="new optimizer"):
        step.step(np.zeros(4), np.ones(4))
    with pytest.raises(ArgumentError, match="expected one of SGD, got GD"):
        ws.SGD(0.1).load_state_dict(ws.GD(0.1).state_dict())
    w = np.zeros(3)
    with pytest.raises(ArgumentError, match="shares memory"):
        ws.GD(0.1).step(w, w)


def test_a_memory_mapped_parameter_moves_in_place(tmp_path):
    w = np.memmap(tmp_path / "w", np.float32, "w+", shape=(3,))
    ws.GD(0.5).step(w, np.ones(3, np.float32))
    np.testing.assert_array_equal(w, -0.5)


def test_a_number_without_memory_is_refused_instead_of_left_alone():
    with pytest.raises(ArgumentTypeError, match="change in place, got float64"):
        ws.GD(0.1).step({"b": np.float64(1.0)}, {"b": np.float64(1.0)})


def test_tied_parameters_are_not_stepped_twice():
    tied = np.ones(3)
    with pytest.raises(ArgumentError, match="tied weights once"):
        ws.GD(0.1).step({"e": tied, "h": tied}, {"e": np.ones(3), "h": np.ones(3)})
    x, y = np.ones(2), np.full(2, 10.0)
    with pytest.raises(ArgumentError, match="shares memory"):
        ws.GD(1.0).step({"b": y, "a": x}, {"b": np.ones(2), "a": y})
    np.testing.assert_array_equal(tied, 1.0)


@pytest.mark.parametrize(
    "change",
    [{"lr": -1}, {"momentum": 1.0}, {"steps": -3}, {"velocity": None}, {"velocity": {"": [1j]}}],
)
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(change):
    step = ws.SGD(0.1, momentum=0.9)
    before = repr(step.state_dict())
    with pytest.raises((ArgumentError, ArgumentTypeError, ElementError)):
        step.load_state_dict(step.state_dict() | {"momentum": 0.5} | change)
    assert repr(step.state_dict()) == before
