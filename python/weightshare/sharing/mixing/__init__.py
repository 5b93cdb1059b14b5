"""Mixing matrices: who takes how much from whom.

Every function returns a new float64 matrix A for ``ws.mix(models, A)``. Rows are receivers:
``w_i = Σ_j a_ij w_j``, so row i holds the shares from which the new model i is made.

====================  ================================================  ======================
function              A                                                   use it for
====================  ================================================  ======================
`pair`                [[α, 1-α], [1-α, α]]                                two models
`softmax`             rows sum to one                                     directed transfer
`sinkhorn`            symmetric, doubly stochastic, from similarity       consensus: the default
`metropolis`          symmetric, doubly stochastic, sparse                many models (n > 64)
`laplacian`           I - strength · Lap, or its implicit form            soft sharing
`projection`          mean inside each cluster                            hard sharing in clusters
`interpolation`       Lagrange basis at the targets                       models on a coordinate
`regression`          hat matrix of a polynomial fit                      smoothing on coordinates
`circulant`           convolution round a ring                            models in a cycle
====================  ================================================  ======================

`diagnose` tells what a matrix will do when it is applied again and again.
"""

from __future__ import annotations

from weightshare.sharing.mixing.checks import MixingWarning
from weightshare.sharing.mixing.coupling import laplacian, projection
from weightshare.sharing.mixing.diagnosis import Diagnosis, diagnose
from weightshare.sharing.mixing.polynomial import circulant, interpolation, regression
from weightshare.sharing.mixing.stochastic import metropolis, pair, sinkhorn, softmax

__all__ = [
    "Diagnosis",
    "MixingWarning",
    "circulant",
    "diagnose",
    "interpolation",
    "laplacian",
    "metropolis",
    "pair",
    "projection",
    "regression",
    "sinkhorn",
    "softmax",
]
