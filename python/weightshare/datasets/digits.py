"""The handwritten digits: 1,797 images of 8 × 8 pixels, bundled with the package."""

from __future__ import annotations

from importlib import resources

import numpy as np
from numpy.typing import NDArray

_FILE = "digits.npz"


def load_digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Return the images of 1,797 handwritten digits, and which digit each one is.

    These are the test images of "Optical Recognition of Handwritten Digits", written by 13
    people, in their first order, with scikit-learn's values: divide by 16 for numbers from 0 to 1.
    The licence (CC BY 4.0) and the citation lie beside the data, in ``digits-LICENSE.txt``.

    Returns
    -------
    X : ndarray of float32, shape (1797, 64)
        Ink of each pixel, whole numbers from 0 (none) to 16; row by row from the top left, so
        ``X[i].reshape(8, 8)`` is an image. A new array at each call.
    y : ndarray of int64, shape (1797,)
        The digit, 0 to 9.

    References
    ----------
    Alpaydin and Kaynak, "Optical Recognition of Handwritten Digits", UCI Machine Learning
    Repository, 1998, https://doi.org/10.24432/C50P49.

    Examples
    --------
    >>> import weightshare as ws
    >>> X, y = ws.datasets.load_digits()
    >>> X.shape, X.dtype.name, y[:6].tolist()
    ((1797, 64), 'float32', [0, 1, 2, 3, 4, 5])
    """
    with (
        resources.files("weightshare.datasets").joinpath(_FILE).open("rb") as file,
        np.load(file, allow_pickle=False) as stored,
    ):
        pixels, labels = stored["pixels"], stored["labels"]
    return pixels.reshape(len(pixels), -1).astype(np.float32), labels.astype(np.int64)
