"""The bundled digits: what was stored is what is documented, with its licence."""

from __future__ import annotations

import hashlib
from importlib import resources

import numpy as np
import pytest

import weightshare as ws

FOLDER = resources.files("weightshare.datasets")


@pytest.fixture(scope="module")
def digits():
    return ws.datasets.load_digits()


def test_shapes_dtypes_and_range_are_as_documented(digits):
    X, y = digits
    assert (X.shape, X.dtype, y.shape, y.dtype) == ((1797, 64), np.float32, (1797,), np.int64)
    assert (X.min(), X.max()) == (0.0, 16.0)
    assert np.array_equal(X, X.round())


def test_every_digit_occurs_as_often_as_in_the_source(digits):
    _, y = digits
    assert np.bincount(y).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]


def test_values_are_those_of_the_source(digits):
    X, y = digits
    assert X[0].reshape(8, 8)[0].tolist() == [0, 0, 5, 13, 9, 1, 0, 0]
    stored = X.astype(np.uint8).tobytes() + y.astype(np.uint8).tobytes()
    assert (
        hashlib.sha256(stored).hexdigest()
        == "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"
    )


def test_each_call_gives_arrays_of_its_own(digits):
    X, _ = digits
    again, _ = ws.datasets.load_digits()
    again[:] = 0.0
    assert X.max() == 16.0


def test_the_images_are_those_of_scikit_learn_where_it_is_installed(digits):
    datasets = pytest.importorskip("sklearn.datasets")
    theirs = datasets.load_digits()
    assert np.array_equal(digits[0], theirs.data)
    assert np.array_equal(digits[1], theirs.target)


def test_the_file_is_small_and_holds_no_pickle():
    with FOLDER.joinpath("digits.npz").open("rb") as file:
        assert len(file.read()) <= 150_000
        file.seek(0)
        with np.load(file, allow_pickle=False) as stored:
            assert {name: stored[name].dtype for name in stored} == {
                "pixels": np.uint8,
                "labels": np.uint8,
            }


@pytest.mark.parametrize("fact", ["CC BY 4.0", "10.24432/C50P49", "Alpaydin", "What was changed"])
def test_the_licence_beside_the_data_names_source_and_changes(fact):
    assert fact in FOLDER.joinpath("digits-LICENSE.txt").read_text(encoding="utf-8")
