"""What is said while the command line starts and ends, when it cannot take care of errors itself.

Loading its packages takes seconds, in which Ctrl-C may come, or a package may choke on a setting of
its own. Whoever imports geoflow gets its errors as they are.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import TracebackType
from typing import NoReturn

# As those of :mod:`geoflow.cli.terminal`, which is not there yet.
BAD_INPUT, INTERRUPTED = 2, 130

NAMES = ("geoflow", "geoflow.exe")


def watch() -> None:
    """From now on, where this process is the command line, say in one line why it cannot start."""
    if _STARTED_AS_COMMAND:
        sys.excepthook = _one_line
        try:
            os.getcwd()
        except OSError as error:
            # A library that asks for it says something else, and ends the process.
            _end(
                f"error: the working folder is gone ({error.strerror}); cd to one that is there",
                BAD_INPUT,
            )


def started() -> None:
    """From now on the command line takes care of errors by itself."""
    if sys.excepthook is _one_line:
        sys.excepthook = sys.__excepthook__


def ending() -> None:
    """From now on, where this process is the command line, let Ctrl-C do nothing.

    All is done and said, and the exit status is known: what Python and its libraries do as they end
    would be interrupted at length, and the status be that of a signal.
    """
    if _STARTED_AS_COMMAND and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.SIG_IGN)


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
    _end(text, status)


def _end(text: str, status: int) -> NoReturn:
    if sys.stderr is not None:
        sys.stderr.write(f"geoflow: {text}\n")
        sys.stderr.flush()
    # The status that Python itself would give is another.
    os._exit(status)


# Once the module that -m names is found, the arguments have its file in that place.
_STARTED_AS_COMMAND = is_command()

watch()
