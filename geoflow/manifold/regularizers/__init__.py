"""Regularisation functions R(θ): what a flow descends along the level set.

A :class:`geoflow.RegularizingFlow` takes any of these by name and options, any callable θ (P,) →
scalar that autograd differentiates, whose ``__name__`` goes into the archive, or a Problem, whose
loss is R then.
"""

from geoflow.manifold.regularizers.named import (
    REGULARIZERS,
    Regularizer,
    get,
    weighted_sum,
)
from geoflow.manifold.regularizers.norms import (
    pseudo_huber_norm,
    quartic_norm,
    squared_norm,
)

DEFAULT = squared_norm.__name__

__all__ = [
    "DEFAULT",
    "REGULARIZERS",
    "Regularizer",
    "get",
    "pseudo_huber_norm",
    "quartic_norm",
    "squared_norm",
    "weighted_sum",
]
