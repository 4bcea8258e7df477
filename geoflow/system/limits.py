"""What would take days, by a number that is too large, is refused before any work is done."""

from __future__ import annotations

from geoflow.errors import InputError

# Of a loss, its gradient or a Hessian-vector product, in one analysis: a quarter of an hour where
# each takes a millisecond, a day where it takes a tenth of a second.
EVALUATIONS = 1_000_000

# Floating-point operations in one analysis: an hour at 3·10⁹ a second.
OPERATIONS = 10**13

# Epochs of training in one call, of all networks together; the paper's table has 210,000.
EPOCHS = 10_000_000


def check_work(amount: int, most: int, argument: str, unit: str) -> None:
    """Refuse more work than one call does.

    Parameters
    ----------
    amount, most : int
        Of some unit: what is asked for, and the limit.
    argument : str
        What decides it, with its value.
    unit : str
        In the plural.

    Raises
    ------
    InputError
        More is asked for.
    """
    if amount > most:
        raise InputError(
            f"{argument} takes {_count(amount)} {unit}, and a call makes at most {_count(most)}; "
            "ask for less"
        )


def _count(amount: int) -> str:
    return f"{amount:,}" if amount < 10**9 else f"{float(min(amount, 10**300)):.2g}"
