"""What is shown of long work as it goes: on a terminal, and in a notebook."""

from __future__ import annotations

import sys
import threading
import warnings
from typing import Any

from tqdm import TqdmWarning

from geoflow.system.kinds import check_switch

with warnings.catch_warnings():
    # A notebook without ipywidgets gets the line of a terminal, without being told off.
    warnings.simplefilter("ignore", TqdmWarning)
    from tqdm.auto import tqdm


class Bar(tqdm):  # type: ignore[misc]
    """tqdm's bar, with a lock of its own.

    That of tqdm is a semaphore that forked processes share: one that is killed while it holds it
    would have all the others wait for ever, even for a bar that is not shown.
    """

    _lock = threading.RLock()


def progress_bar(wanted: bool, *args: Any, **options: Any) -> Bar:
    """Return tqdm's bar: a widget where the notebook has those, else a line on standard error.

    Parameters
    ----------
    wanted : bool
        Show it, where standard error is a terminal or a notebook's.
    *args, **options
        As :class:`tqdm.tqdm` takes them.

    Raises
    ------
    InputError
        ``wanted``, of users the argument ``progress``, is neither True nor False.
    """
    check_switch(wanted, "progress")
    # A notebook's standard error says that it is no terminal.
    notebook = type(sys.stderr).__module__ == "ipykernel.iostream"
    # Python has none where the descriptor is closed, as for a daemon.
    nowhere = sys.stderr is None or getattr(sys.stderr, "closed", False)
    # disable=None: shown on a terminal only.
    hidden = True if nowhere or not wanted else False if notebook else None
    return Bar(*args, disable=hidden, **options)


def duration(seconds: float) -> str:
    """A time to wait, to two digits or so, in the unit people think in."""
    if seconds < 100:
        return f"{seconds:.2g} s"
    if seconds < 6000:
        return f"{seconds / 60:.2g} min"
    return f"{seconds / 3600:,.1f} h"
