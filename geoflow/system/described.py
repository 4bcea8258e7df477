"""How an object of settings shows itself: by the call that makes it again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


class Described:
    """With ``options``, the arguments that its constructor takes, it shows itself as that call."""

    @property
    def options(self) -> Mapping[str, Any]:
        """Constructor arguments."""
        return {}

    def __repr__(self) -> str:
        given = (f"{name}={value!r}" for name, value in self.options.items())
        return f"{type(self).__name__}({', '.join(given)})"
