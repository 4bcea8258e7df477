"""Regularisation functions by name and options, as archives and the command line have them."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from numbers import Real
from typing import Any, Protocol, overload, runtime_checkable

import numpy as np
from torch import Tensor

from geoflow.errors import InputError
from geoflow.manifold.regularizers.bound import (
    BoundRegularizer,
    Loss,
    OwnFunction,
    ThetaFunction,
    Weighted,
)
from geoflow.problems.protocol import ProblemLike, check_problem
from geoflow.system.kinds import check_kind, is_finite, listed, shown
from geoflow.system.naming import named

# Makes R for a problem, or for θ alone where there is none.
Make = Callable[[ProblemLike | None], BoundRegularizer]

# Options that are texts; all others are numbers.
WORDS = ("tensors",)
# Between the patterns of one option, and between the terms of a sum.
BETWEEN_PATTERNS, BETWEEN_TERMS = "|", " + "
# In the name of one that was made for a problem beforehand: no text says for which.
OF_ANOTHER = " of a problem given"
TERM = re.compile(r"([-+]?[0-9.]+(?:e[-+]?[0-9]+)?)\*(.+)")


@runtime_checkable
class Bindable(Protocol):
    """What is made for a problem before it is a regularisation function of θ."""

    def bind(self, problem: ProblemLike) -> BoundRegularizer:
        """Make it for the parameters, the network and the data of a problem."""


class Regularizer:
    """One of geoflow's regularisation functions, with options.

    Made by calling the function of its name without θ, as ``squared_norm(tensors="*.weight")``.
    Archives have its ``__name__``, from which :func:`get` makes it again; another process, and a
    copy, make it by calling ``again``.
    """

    def __init__(
        self, name: str, make: Make, sign: int, again: Callable[[], Regularizer] | None = None
    ) -> None:
        self.__name__ = name
        self._make = make
        self.sign = sign
        self._again = again

    def __reduce_ex__(self, protocol: Any) -> Any:
        # What makes it for a problem is a function inside another, which pickle does not take.
        return (self._again, ()) if self._again else super().__reduce_ex__(protocol)

    def __repr__(self) -> str:
        return f"Regularizer({self.__name__})"

    def __call__(self, theta: Tensor) -> Tensor:
        """R(θ), differentiable in θ, of a function of θ alone.

        Raises
        ------
        InputError
            It needs to know a problem: give it to a flow.
        """
        if not isinstance(theta, Tensor):
            raise InputError(
                f"regularizer {self.__name__!r}: theta={theta!r} is no tensor; options go by name"
            )
        made = self._make(None)
        if not isinstance(made, ThetaFunction):
            raise needs_problem(f"regularizer {self.__name__!r}", "it is no function of θ alone")
        return made.function(theta) if self.sign > 0 else -made.function(theta)

    def bind(self, problem: ProblemLike) -> BoundRegularizer:
        """Make it for the parameters, the network and the data of a problem.

        Of a problem that is divided into groups of examples it is made for the whole. What is
        returned can be given to a flow of another problem of the same parameters.

        Raises
        ------
        InputError
            The problem is not of the kind that it needs.
        """
        if not hasattr(problem, "tensors"):
            raise InputError(f"regularizer {self.__name__!r}: problem={problem!r}; give a Problem")
        made = self._make(getattr(problem, "whole", problem))
        made = made if self.sign > 0 else Weighted([(-1.0, made)])
        # An archive must not name it as if it were of its own problem.
        vars(made)["__name__"] = f"{self.__name__}{OF_ANOTHER}"
        return made


class WeightedSum:
    """Σ wᵢRᵢ, from :func:`weighted_sum`."""

    def __init__(self, terms: Sequence[tuple[float, Any]]) -> None:
        self.terms: tuple[tuple[float, Any], ...] = tuple(terms)
        self.__name__: str = BETWEEN_TERMS.join(f"{w!r}*{name_of(r)}" for w, r in self.terms)

    def __repr__(self) -> str:
        return f"WeightedSum({self.__name__})"

    def bind(self, problem: ProblemLike) -> BoundRegularizer:
        """Make every term for a problem."""
        made = Weighted([(w, bound(r, problem)) for w, r in self.terms])
        vars(made)["__name__"] = f"{self.__name__}{OF_ANOTHER}"
        return made


class NamedRegularizer(Protocol):
    """A function of this module's kind: of θ, or without it of options."""

    __name__: str
    options: Mapping[str, Any]

    @overload
    def __call__(self, theta: Tensor, /, **options: Any) -> Tensor: ...

    @overload
    def __call__(self, /, **options: Any) -> Regularizer: ...

    def bind(self, problem: ProblemLike) -> BoundRegularizer:
        """Make it, without options, for a problem."""


# Named in archives: a file decides what is read, never what is run.
REGULARIZERS: dict[str, NamedRegularizer] = {}
# Functions of what no text holds.
UNNAMED = {
    "loss": "the loss of a problem",
    "distance_to": "the distance to a point",
}


def regularizer(build: Callable[..., Make]) -> NamedRegularizer:
    """Give a function of options its name among :data:`REGULARIZERS`, and what all have in common.

    Called with θ first, the function gives R(θ); called with options alone, a
    :class:`Regularizer`. Each takes ``sign``: −1 turns R round, so that a walk goes up.
    """
    parameters = inspect.signature(build).parameters
    defaults = {n: p.default for n, p in parameters.items()} | {"sign": 1}

    def chosen(given: Mapping[str, Any]) -> Regularizer:
        options = _options(build.__name__, given, defaults)
        make = build(**{n: v for n, v in options.items() if n != "sign"})
        name = suffix(build.__name__, options, defaults)
        again: Any = functools.partial(function, **options)
        return Regularizer(name, make, options["sign"], again)

    @functools.wraps(build)
    def function(theta: Tensor | None = None, /, **options: Any) -> Any:
        made = chosen(options)
        return made if theta is None else made(theta)

    kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.KEYWORD_ONLY
    function.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
        [
            inspect.Parameter("theta", kinds[0], default=None),
            *(inspect.Parameter(n, kinds[1], default=v) for n, v in defaults.items()),
        ]
    )
    function.bind = lambda problem: chosen({}).bind(problem)  # type: ignore[attr-defined]
    function.options = defaults  # type: ignore[attr-defined]
    REGULARIZERS[build.__name__] = function  # type: ignore[assignment]
    return function  # type: ignore[return-value]


def weighted_sum(*terms: tuple[float, Any]) -> WeightedSum:
    """R = Σ wᵢRᵢ.

    Parameters
    ----------
    *terms : (float, R)
        A weight, of either sign, and whatever a :class:`geoflow.RegularizingFlow` takes: a
        function of this module or its text, a Problem, or a callable θ → scalar. Of the first kind
        alone, the sum has a name that :func:`get` reads, as
        ``"1.0*squared_norm + 0.1*l1:epsilon=0.01"``.

    Raises
    ------
    InputError
        No term, a weight that is zero or not finite, or an R that is none.
    """
    if not terms:
        raise InputError("weighted_sum() has no term; give (weight, R), one or more")
    checked: list[tuple[float, Any]] = []
    for term in terms:
        if not isinstance(term, tuple | list) or len(term) != 2:
            raise InputError(f"weighted_sum: {shown(term)} is no term; give (weight, R)")
        weight, one = term
        if isinstance(weight, bool | np.bool_) or not isinstance(weight, Real):
            raise InputError(
                f"weighted_sum: the weight {shown(weight)} is no number; give (weight, R)"
            )
        if not is_finite(weight) or weight == 0:
            raise InputError(
                f"weighted_sum: the weight {shown(weight)} is no use; give a finite one, or leave "
                "the term out"
            )
        if isinstance(one, str):
            one = get(one)
        if not _may_be_one(one):
            raise _is_none(f"weighted_sum: {shown(one)}")
        checked.append((float(weight), one))
    return WeightedSum(checked)


def get(name: str) -> Any:
    """Return the regularisation function of this name, as an archive has it.

    Parameters
    ----------
    name : str
        ``"squared_norm"``, or with options ``"l1:epsilon=0.1,tensors=*.weight"``: those of the
        function's signature but θ. Numbers all but ``tensors``, patterns with ``|`` between them.
        Or a weighted sum, ``"squared_norm + 0.1*l1"``. What is returned has this name.

    Raises
    ------
    InputError
        It is not one of geoflow's, or does not take these options.
    """
    check_kind(name, str, "regularizer", "its name, such as 'squared_norm'")
    terms = [term.strip() for term in name.split(BETWEEN_TERMS)]
    weighted = [TERM.fullmatch(term) for term in terms]
    if len(terms) == 1 and not weighted[0]:
        return _one(terms[0])
    try:
        weights = [float(match[1]) if match else 1.0 for match in weighted]
    except ValueError:
        raise InputError(f"regularizer {name!r}: a weight is no number; use 0.1*NAME") from None
    names = [match[2] if match else term for term, match in zip(terms, weighted, strict=True)]
    return weighted_sum(*((w, _one(one)) for w, one in zip(weights, names, strict=True)))


def _one(name: str) -> Any:
    if (base := name.partition(":")[0]) in UNNAMED:
        raise InputError(
            f"flow: R is {UNNAMED[base]} ({name}), which an archive does not hold; make the flow "
            "in Python and give it"
        )
    if name.endswith(OF_ANOTHER):
        raise InputError(
            f"flow: R is {name}, which an archive does not hold; make the flow in Python and "
            "give it"
        )
    base, options = named(name, words=WORDS)
    if base not in REGULARIZERS:
        raise InputError(
            f"flow: the regularisation function {shown(name)} is not one of geoflow's own "
            f"({', '.join(REGULARIZERS)}); use one of these, or make the flow in Python and give it"
        )
    if isinstance(patterns := options.get("tensors"), str):
        options["tensors"] = patterns.split(BETWEEN_PATTERNS)
    function = REGULARIZERS[base]
    found = function(**options)
    return function if found.__name__ == base else found


def bound(one: Any, problem: ProblemLike) -> BoundRegularizer:
    """Make R for a problem, of whatever a :class:`geoflow.RegularizingFlow` takes.

    Raises
    ------
    InputError
        It is no function, and no problem of the same parameters.
    """
    if isinstance(one, Bindable) or callable(getattr(one, "bind", None)):
        return one.bind(problem)
    if hasattr(one, "value_and_gradient"):
        if callable(getattr(one, "hessian", None)):
            return one
        check_problem(one, "regularizer")
        for what in ("shape", "dtype", "device"):
            here, there = getattr(one.theta0, what), getattr(problem.theta0, what)
            if here != there:
                raise InputError(
                    f"regularizer: its theta0 has {what} {here} and that of the level set {there}; "
                    "make both problems of the same parameters"
                )
        if one.loss(one.theta0).ndim:
            raise InputError(
                "regularizer: it is several problems, which have no one loss; give a weighted_sum "
                "of them"
            )
        return Loss(one)
    if callable(one):
        return OwnFunction(one, problem)
    raise _is_none(f"regularizer={shown(one)}")


def _is_none(what: str) -> InputError:
    """What is said of what can be no R."""
    return InputError(
        f"{what} is none; give a callable θ → scalar, one of gf.regularizers "
        f"({', '.join(REGULARIZERS)}), or a Problem"
    )


def _may_be_one(one: Any) -> bool:
    return callable(one) or hasattr(one, "value_and_gradient") or isinstance(one, Bindable)


def name_of(one: Any) -> str:
    """Name of whatever a :class:`geoflow.RegularizingFlow` takes as R, as archives have it."""
    found = getattr(one, "__name__", None)
    if isinstance(found, str):
        return found
    is_problem = hasattr(one, "value_and_gradient") and not hasattr(one, "hessian")
    return "loss" if is_problem else type(one).__name__


def _options(name: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> dict[str, Any]:
    for option in given:
        if option not in defaults:
            known = ", ".join(defaults)
            raise InputError(
                f"regularizer {name!r}: {option!r} is none of its options ({known}); use those"
            )
    options = {**defaults, **given}
    for option, value in options.items():
        if option not in WORDS:
            options[option] = _number(name, option, value, defaults[option])
    if options["sign"] not in (1, -1):
        raise InputError(f"regularizer {name!r}: sign={given['sign']!r}; use 1 or -1")
    if "tensors" in options:
        options["tensors"] = checked_patterns(name, options["tensors"])
    return options


def _number(name: str, option: str, value: Any, default: Any) -> Any:
    """As the default is: a whole number, also where it is None, or any."""
    if value is None and default is None:
        return None
    whole = default is None or isinstance(default, int)
    usable = isinstance(value, Real) and not isinstance(value, bool | np.bool_)
    if not usable or not is_finite(value) or (whole and value != int(value)):
        kind = "a whole number" if whole else "a number"
        raise InputError(f"regularizer {name!r}: {option}={shown(value)}; use {kind}")
    return int(value) if whole else float(value)


def checked_patterns(name: str, given: Any) -> tuple[str, ...] | None:
    """Return patterns of names that a text can hold, as :func:`get` reads them.

    Raises
    ------
    InputError
        No texts, or with a sign in them that the text of the options has.
    """
    if given is None:
        return None
    what = f"regularizer {name!r}: tensors"
    one = isinstance(given, str)
    patterns = (given,) if one else tuple(listed(given, what, "patterns of names"))
    for pattern in patterns:
        taken = (BETWEEN_PATTERNS, BETWEEN_TERMS, ",", "=")
        if not isinstance(pattern, str) or not pattern or any(t in pattern for t in taken):
            raise InputError(
                f"regularizer {name!r}: tensors={pattern!r}; use patterns of names, as '*.weight', "
                "without commas, equals signs and bars"
            )
    if not patterns:
        raise InputError(f"regularizer {name!r}: tensors=[] names none; leave it out for all")
    return patterns


def suffix(name: str, options: Mapping[str, Any], defaults: Mapping[str, Any]) -> str:
    """Name with those options that are not the defaults, as archives have it."""
    different = {k: v for k, v in options.items() if k not in defaults or v != defaults[k]}
    listed = ",".join(
        f"{k}={BETWEEN_PATTERNS.join(v) if isinstance(v, tuple) else v}"
        for k, v in different.items()
    )
    return f"{name}:{listed}" if listed else name


def needs_problem(name: str, why: str) -> InputError:
    """What is said of a function that is called with θ and needs to know what θ is of."""
    return InputError(
        f"{name}: {why}; give it to a RegularizingFlow, to weighted_sum, or as an observable, "
        "which know the problem"
    )
