"""Regularisation functions R(θ): what a flow descends along the level set.

A :class:`geoflow.RegularizingFlow` takes any of these, with options or without, or its text as
:func:`get` reads it; any callable θ (P,) → scalar that autograd differentiates, whose ``__name__``
goes into the archive; or a Problem, whose loss is R then.
"""

from geoflow.manifold.regularizers.curvature import gradient_norm, hessian_trace, sharpness
from geoflow.manifold.regularizers.named import (
    REGULARIZERS,
    Regularizer,
    get,
    weighted_sum,
)
from geoflow.manifold.regularizers.norms import (
    distance_to,
    group_lasso,
    l1,
    pseudo_huber_norm,
    quantization_error,
    quartic_norm,
    squared_norm,
)
from geoflow.manifold.regularizers.outputs import jacobian_norm, loss, margin
from geoflow.manifold.regularizers.paths import path_norm

DEFAULT = squared_norm.__name__

__all__ = [
    "DEFAULT",
    "REGULARIZERS",
    "Regularizer",
    "distance_to",
    "get",
    "gradient_norm",
    "group_lasso",
    "hessian_trace",
    "jacobian_norm",
    "l1",
    "loss",
    "margin",
    "path_norm",
    "pseudo_huber_norm",
    "quantization_error",
    "quartic_norm",
    "sharpness",
    "squared_norm",
    "weighted_sum",
]


def __dir__() -> list[str]:
    return sorted(__all__)
