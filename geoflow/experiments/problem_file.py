"""A Python file of the user's own that holds a problem, loaded because its name was given.

Only the command line names such a file, each time anew: an archive holds its hash and nothing
that could be run.
"""

from __future__ import annotations

import hashlib
import sys
import traceback
import types
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geoflow.errors import InputError
from geoflow.system import files
from geoflow.system.translation import kind_and_reason, reason

# Bytes of a program that somebody has written.
LARGEST = 2**24


@dataclass(frozen=True)
class Source:
    """A file that has been loaded.

    Attributes
    ----------
    path : Path
        Absolute.
    sha256 : str
        Of its bytes.
    """

    path: Path
    sha256: str

    @classmethod
    def load(cls, text: str, sha256: str | None = None) -> tuple[Source, str, Callable[..., Any]]:
        """Load a file, once a process, and return the function of it that is named.

        The file is a module of a private name. Its folder is where it imports from while it is
        loaded, and not later.

        Parameters
        ----------
        text : str
            ``FILE.py:FUNCTION``.
        sha256 : str, optional
            What the file must have; None: anything.

        Raises
        ------
        InputError
            No such file or function, an error in the file, or another file than it must be.
        """
        file, colon, name = text.rpartition(":")
        if not colon or not file or not name.isidentifier():
            raise InputError(f"--problem {text}: use FILE.py:FUNCTION")
        path = Path(file).absolute()
        try:
            content = files.content(path, LARGEST)
        except (OSError, ValueError) as error:
            raise InputError(
                f"--problem {text}: {path} cannot be read ({reason(error)}); name a Python file"
            ) from None
        source = cls(path, hashlib.sha256(content).hexdigest())
        if sha256 not in (None, source.sha256):
            raise InputError(f"{path} has changed since it was loaded; start again")
        module = source._module(content)
        function = getattr(module, name, None)
        if not callable(function):
            what = "is no function" if hasattr(module, name) else "is not there"
            there = [n for n, f in vars(module).items() if _is_own(f, module)]
            raise InputError(
                f"--problem {text}: {name} {what}; {path.name} has "
                f"{', '.join(there) or 'no function'}"
            )
        return source, name, function

    @contextmanager
    def errors(self) -> Iterator[None]:
        """Say in one line where in the file something has failed.

        Errors that do not come from the file pass as they are.

        Raises
        ------
        InputError
            With the file, the line and the error.
        """
        try:
            yield
        except (Exception, SystemExit) as error:
            line = self._line(error)
            if line is None:
                raise
            if isinstance(error, SyntaxError):
                # Of which Python says the file and the line, too.
                said = f"{type(error).__name__}: {error.msg}"
            else:
                ours = isinstance(error, InputError)
                said = str(error) if ours else kind_and_reason(error)
            raise InputError(f"{self.path}, line {line}: {said}") from error

    def _module(self, content: bytes) -> types.ModuleType:
        name = f"_geoflow_problem_{hashlib.sha256(bytes(self.path)).hexdigest()[:8]}_{self.sha256}"
        if name in sys.modules:
            return sys.modules[name]
        module = types.ModuleType(name)
        module.__file__ = str(self.path)
        # Dataclasses and pickle look for the module of a class by its name.
        sys.modules[name] = module
        folder = str(self.path.parent)
        sys.path.insert(0, folder)
        try:
            with self.errors():
                # The bytes that were hashed, and no file beside them that Python keeps.
                exec(self._compiled(content), vars(module))
        except BaseException:
            del sys.modules[name]
            raise
        finally:
            if folder in sys.path:
                sys.path.remove(folder)
        return module

    def _compiled(self, content: bytes) -> types.CodeType:
        try:
            return compile(content, str(self.path), "exec")
        except ValueError as error:
            # Python before 3.11.4, of null bytes.
            raise SyntaxError(str(error)) from None

    def _line(self, error: BaseException) -> int | None:
        """Return the line of the file that the error comes from; None where it is not of it."""
        file = str(self.path)
        if isinstance(error, SyntaxError) and error.filename in (file, None):
            return error.lineno or 1
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if frame.filename == file]
        return lines[-1] if lines else None


def _is_own(value: object, module: types.ModuleType) -> bool:
    return isinstance(value, types.FunctionType) and value.__module__ == module.__name__
