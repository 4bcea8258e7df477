"""Whether the flow in float32 that is compared is the one in float64."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from geoflow.errors import ConvergenceError, CriticalPointError, InputError
from geoflow.manifold.flows import RegularizingFlow, check_single
from geoflow.manifold.regularizers.named import bound
from geoflow.system import kinds
from geoflow.walking.fitting import PART, ROUNDINGS

EPS = torch.finfo(torch.float32).eps

# Of θ, whose rounding is half an eps, and of what is evaluated there; relative to the norm.
SAME_START, SAME_VALUE = 100 * EPS, math.sqrt(EPS)
# Of an R that evaluates problems. Along random vectors, which are others in another dtype, it is
# known to some hundredths only, and a gradient by differences may be nothing but rounding.
SAME_ESTIMATE = 0.1

# Of a loss, beside that: a cross-entropy is what is left of numbers of the size of 1.
OF_LOSS = 10 * EPS

Values = dict[str, Tensor]

LOSS, R, R_GRADIENT = "loss at theta0", "R at theta0", "gradient of R at theta0"


def check_counterpart(single: RegularizingFlow, flow: RegularizingFlow) -> None:
    """Refuse a flow in float32 that is another than the one in float64.

    The number of parameters, the start and the level are compared, and L, R and ∇R at the start,
    by one gradient of each flow. What cannot be evaluated there is left to its walk, which says
    why.

    Parameters
    ----------
    single, flow : RegularizingFlow
        In float32 and in float64.

    Raises
    ------
    InputError
        They differ by more than float32 rounds, or ``single`` has several constraints.
    """
    check_single(single, "a comparison of solvers")
    here, there = single.problem.theta0, flow.problem.theta0
    if here.numel() != there.numel():
        raise _another("P", *(_number(t.numel()) for t in (here, there)))
    if _distance(here, there) > SAME_START * float(there.norm()):
        raise _another("theta0", here, there)
    levels = [_number(f.level_set.level) for f in (single, flow)]
    try:
        now, then = _values(single, here), _values(flow, there)
        different = _different(now, then, flow)
        # The loss of a network that fits its data is what is left of numbers that cancel.
        beside = [_values(flow, there + k * EPS * there.abs()) for k in ROUNDINGS if different]
    except (ConvergenceError, CriticalPointError):
        return
    for name in different:
        change = max(_distance(values[name], then[name]) for values in beside)
        if change < PART * _distance(now[name], then[name]):
            raise _another(name, now[name], then[name])
    # Where none is given the level is the loss at the start, with its rounding.
    residuals = [level - values[LOSS] for level, values in zip(levels, (now, then), strict=True)]
    if min(_distance(*levels), _distance(*residuals)) > SAME_VALUE * float(levels[1].abs()):
        raise _another("level", *levels)


def _values(flow: RegularizingFlow, theta: Tensor) -> Values:
    state = flow.evaluate(theta)
    return {
        LOSS: _number(state.loss),
        R: _number(state.regularizer),
        R_GRADIENT: state.regularizer_gradient,
    }


def _different(now: Values, then: Values, flow: RegularizingFlow) -> list[str]:
    """What differs by more than it may, if θ were not rounded."""
    rtols, atols = {LOSS: SAME_VALUE, R: SAME_VALUE, R_GRADIENT: SAME_VALUE}, {LOSS: OF_LOSS}
    if bound(flow.regularizer, flow.problem).problems:
        rtols |= {R: SAME_ESTIMATE, R_GRADIENT: math.inf}
    return [
        name
        for name, rtol in rtols.items()
        if _distance(now[name], then[name]) > rtol * float(then[name].norm()) + atols.get(name, 0.0)
    ]


def _number(value: float) -> Tensor:
    return torch.tensor(value, dtype=torch.float64, device="cpu")


def _distance(a: Tensor, b: Tensor) -> float:
    """In float64, wherever the two flows are computed."""
    here, there = (t.detach().to("cpu", torch.float64) for t in (a, b))
    return float(torch.dist(here, there))


def _another(name: str, here: Tensor, there: Tensor) -> InputError:
    values = [f"{t.item():.7g}" if t.ndim == 0 else kinds.shown(t.tolist()) for t in (here, there)]
    return InputError(
        f"float32 is another flow: its {name} is {values[0]} where that of flow is {values[1]}; "
        "give the same loss, level, R and theta0 in float32"
    )
