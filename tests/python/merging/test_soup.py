"""Greedy soup: which models stay, in memory and from file to file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import weightshare as ws
from weightshare.errors import (
    ArgumentError,
    ArgumentTypeError,
    CheckpointError,
    ElementError,
    NamesError,
    OutputExistsError,
    ShapeError,
)
from weightshare.merging.soup import greedy_soup

MakeModel = Callable[..., Path]


def near(target: float) -> Callable[[Any], float]:
    """Score that is higher the nearer the mean of a model is to the target."""
    return lambda model: -abs(float(np.mean(np.asarray(model, np.float64))) - target)


def greedy(values: list[float], target: float) -> tuple[list[int], float]:
    """The algorithm on numbers."""
    order = sorted(range(len(values)), key=lambda i: abs(values[i] - target))
    kept = order[:1]
    best = abs(values[kept[0]] - target)
    for i in order[1:]:
        mean = np.mean([values[k] for k in [*kept, i]])
        if abs(mean - target) <= best:
            kept, best = [*kept, i], abs(mean - target)
    return kept, -best


@given(st.lists(st.integers(-40, 40), min_size=1, max_size=6, unique=True), st.integers(-20, 20))
def test_the_soup_is_that_of_the_algorithm(numbers: list[int], target: int) -> None:
    """Sorted by score alone; one joins when the score does not fall."""
    values = [number / 4 for number in numbers]
    soup = greedy_soup([np.array([value, value]) for value in values], near(target + 0.1))
    kept, best = greedy(values, target + 0.1)
    assert soup.kept == tuple(kept)
    assert soup.score == pytest.approx(best, abs=1e-9)
    assert soup.scores == tuple(near(target + 0.1)(value) for value in values)
    np.testing.assert_allclose(soup.model, np.mean([values[i] for i in kept]), atol=1e-12)
    assert [place for place, _, stays in soup.history if stays] == kept
    assert soup.history[0] == (kept[0], soup.scores[kept[0]], True)


def test_an_order_is_kept_and_saves_scores() -> None:
    """Only the first is scored alone; a model that lowers the score stays out."""
    calls: list[float] = []

    def score(model: Any) -> float:
        calls.append(float(model["w"][0]))
        return -abs(calls[-1] - 2)

    models = [{"w": np.float32([value])} for value in (0.0, 4.0, 9.0)]
    soup = greedy_soup(models, score, order=[2, 0, 1])
    assert calls == [9.0, 4.5, pytest.approx(13 / 3)]
    assert soup.kept == (2, 0, 1)
    assert soup.scores == (None, None, -7.0)
    assert list(soup.model) == ["w"]


def folder_score(path: str) -> float:
    with ws.open_checkpoint(path) as model:
        return -abs(float(model["w"].astype(np.float64).mean()) - 3.0)


def test_checkpoints_are_averaged_from_file_to_file(make_model: MakeModel, tmp_path: Path) -> None:
    """The same bytes as in memory; the tokenizer and the configuration come along; nothing stays."""
    tensors = [
        {"w": np.full((30, 4), value, ml_dtypes.bfloat16), "ids": np.arange(5)}
        for value in (0.0, 4.0, 9.0)
    ]
    paths = [
        make_model(f"m{i}", each, config={"a": i}, files={"tokenizer.json": "{}"})
        for i, each in enumerate(tensors)
    ]
    seen: list[str] = []

    def score(path: str) -> float:
        seen.append(path)
        return folder_score(path)

    soup = greedy_soup(paths, score, out=tmp_path / "out" / "soup")
    assert soup.kept == (1, 0)
    assert soup.model == str(tmp_path / "out" / "soup")
    assert seen[:3] == [str(path) for path in paths]
    assert not any(Path(path).exists() for path in seen[3:])
    in_memory = greedy_soup([{"w": each["w"]} for each in tensors], lambda m: near(3.0)(m["w"]))
    with ws.open_checkpoint(soup.model) as merged:
        assert merged["w"].tobytes() == in_memory.model["w"].tobytes()
        np.testing.assert_array_equal(merged["ids"], np.arange(5))
    names = {entry.name for entry in Path(soup.model).iterdir()}
    assert {"config.json", "tokenizer.json", "model.safetensors", "README.md"} <= names
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["soup"]


def test_single_files_give_a_single_file(make_model: MakeModel, tmp_path: Path) -> None:
    """And an existing one is replaced only when that is allowed."""
    paths = [
        make_model(name, {"w": np.float32([value])}) / "model.safetensors"
        for name, value in (("a", 2.0), ("b", 4.0))
    ]
    out = tmp_path / "soup.safetensors"
    soup = greedy_soup(paths, folder_score, out=out)
    assert soup.kept == (0, 1)
    with ws.open_checkpoint(out) as merged:
        assert float(merged["w"][0]) == 3.0
    with pytest.raises(OutputExistsError, match="overwrite"):
        greedy_soup(paths, folder_score, out=out)
    assert greedy_soup(paths, folder_score, out=out, overwrite=True).score == 0.0


def test_a_score_that_fails_leaves_nothing(make_model: MakeModel, tmp_path: Path) -> None:
    """Neither the soup nor what was made on the way."""
    paths = [make_model(name, {"w": np.ones(2, np.float32)}) for name in "ab"]

    def score(path: str) -> float:
        if "soup" in path:
            raise RuntimeError("evaluation failed")
        return 1.0

    with pytest.raises(RuntimeError, match="evaluation failed"):
        greedy_soup(paths, score, out=tmp_path / "new" / "soup")
    assert list((tmp_path / "new").iterdir()) == []


ONE = np.ones(2)


@pytest.mark.parametrize(
    ("error", "message", "arguments"),
    [
        (ArgumentError, "at least one model", {"models": []}),
        (ArgumentTypeError, "expected a sequence", {"models": "a"}),
        (ArgumentTypeError, "some of both", {"models": [ONE, "a"]}),
        (ArgumentError, "out: models in memory", {"out": "x"}),
        (ArgumentError, "out: is missing", {"models": ["a", "b"]}),
        (ArgumentError, "order: expected each of the places 0 to 1 once", {"order": [0, 0]}),
        (ArgumentError, "order: expected each", {"order": [0]}),
        (ArgumentError, "order: expected each", {"order": 1}),
        (ArgumentError, "order: expected each", {"order": ["a", 0]}),
        (ArgumentTypeError, "score: expected a callable, got float", {"score": 0.5}),
        (ArgumentError, "score: expected a number, got nan", {"score": lambda _: np.nan}),
        (ArgumentError, "score: expected a number, got 'x'", {"score": lambda _: "x"}),
        (ArgumentError, "score: expected a number, got None", {"score": lambda _: None}),
        (ShapeError, "expected shape (2,), got (3,)", {"models": [ONE, np.ones(3)]}),
    ],
)
def test_wrong_arguments_are_refused_before_anything_is_scored(
    error: type[Exception], message: str, arguments: dict[str, Any]
) -> None:
    """With the argument, what was expected and what came."""
    with pytest.raises(error) as caught:
        greedy_soup(**{"models": [ONE, ONE], "score": near(0), **arguments})
    assert message in str(caught.value)


def test_checkpoints_that_do_not_fit_are_refused_before_anything_is_scored(
    make_model: MakeModel, tmp_path: Path
) -> None:
    """Other names, shapes, element types, or no checkpoint at all."""
    first = make_model("first", {"w": np.ones(2, np.float32)})
    wrong: list[tuple[type[Exception], dict[str, Any]]] = [
        (NamesError, {"v": np.ones(2, np.float32)}),
        (ShapeError, {"w": np.ones(3, np.float32)}),
        (ElementError, {"w": np.ones(2, np.int32)}),
    ]
    for place, (error, tensors) in enumerate(wrong):
        other = make_model(f"other{place}", tensors)
        with pytest.raises(error):
            greedy_soup([first, other], lambda _: 1 / 0, out=tmp_path / "out")
    with pytest.raises((CheckpointError, OSError)):
        greedy_soup([first, tmp_path / "none"], lambda _: 1 / 0, out=tmp_path / "out")
    assert not (tmp_path / "out").exists()
