"""What is said while the command line starts, before it can take care of errors by itself.

Loading its packages takes seconds, in which Ctrl-C may come, or a package may choke on a setting of
its own. Whoever imports geoflow gets its errors as they are.
"""

from __future__ import annotations

import os
import sys
from types import TracebackType

# As those of :mod:`geoflow.cli.terminal`, which is not there yet.
BAD_INPUT, INTERRUPTED = 2, 130

NAMES = ("geoflow", "geoflow.exe")


def watch() -> None:
    """From now on, where this process is the command line, say in one line why it cannot start."""
    if is_command():
        sys.excepthook = _one_line


def started() -> None:
    """From now on the command line takes care of errors by itself."""
    if sys.excepthook is _one_line:
        sys.excepthook = sys.__excepthook__


def is_command() -> bool:
    """Whether this process was started as the command line, by its name or by ``-m geoflow``."""
    processes = sys.modules.get("multiprocessing.process")
    if not sys.argv or (processes is not None and processes.parent_process() is not None):
        # A worker has the arguments of the process that started it.
        return False
    if sys.argv[0] != "-m":
        return os.path.basename(sys.argv[0]) in NAMES
    # What stands before the arguments: the name of a module that is being looked for.
    before = sys.orig_argv[: len(sys.orig_argv) - len(sys.argv) + 1]
    return bool(before) and before[-1] in ("geoflow", "-mgeoflow", "geoflow.__main__")


def _one_line(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    chain: list[BaseException | None] = [error]
    while (last := chain[-1]) is not None:
        chain.append(last.__cause__ or last.__context__)
    # A library of C that was interrupted says something else of it.
    if any(isinstance(one, KeyboardInterrupt) for one in chain):
        text, status = "interrupted", INTERRUPTED
    elif isinstance(error, Exception):
        lines = [line.strip() for line in str(error).splitlines()]
        said = next(filter(None, lines), "no message")[:200]
        text, status = (
            f"error: a package cannot be loaded ({kind.__name__}: {said}); look at its "
            "installation, and at its settings in files and in the environment",
            BAD_INPUT,
        )
    else:
        sys.__excepthook__(kind, error, trace)
        return
    if sys.stderr is not None:
        sys.stderr.write(f"geoflow: {text}\n")
        sys.stderr.flush()
    # The status that Python itself would give is another.
    os._exit(status)


watch()
