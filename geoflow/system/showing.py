"""What a message shows of a value: one short line, whatever it is."""

from __future__ import annotations

import reprlib
from itertools import islice
from typing import Any

# Characters of the line.
LONGEST = 60
# Numbers of an array; of more its shape.
FEW = 3


class _Short(reprlib.Repr):
    """Dicts in their order: settings have their name first. Whole numbers of any length."""

    def __init__(self) -> None:
        super().__init__()
        # Texts are cut where the line ends, and not before.
        self.maxstring = LONGEST

    def repr_int(self, x: int, level: int) -> str:
        try:
            return super().repr_int(x, level)
        except ValueError:  # of more digits than Python writes
            return f"a number of {x.bit_length()} bits"

    def repr_Tensor(self, x: Any, level: int) -> str:
        """Of many numbers the shape says more than the first of them do."""
        few = x.numel() <= FEW
        return self.repr_instance(x, level) if few else f"a tensor of shape {tuple(x.shape)}"

    repr_Parameter = repr_Tensor

    def repr_ndarray(self, x: Any, level: int) -> str:
        few = x.size <= FEW
        return self.repr_instance(x, level) if few else f"an array of shape {x.shape}"

    def repr1(self, x: Any, level: int) -> str:
        # Of a network's state too, which is an OrderedDict.
        return self.repr_dict(x, level) if isinstance(x, dict) else super().repr1(x, level)

    def repr_dict(self, x: dict[Any, Any], level: int) -> str:
        if level <= 0 and x:
            return "{...}"
        first = islice(x.items(), self.maxdict)
        parts = [f"{self.repr1(k, level - 1)}: {self.repr1(v, level - 1)}" for k, v in first]
        return f"{{{', '.join([*parts, '...'] if len(x) > self.maxdict else parts)}}}"


def shown(value: Any) -> str:
    """A value in one short line."""
    line = (_Short().repr(value).splitlines() or [""])[0]
    return line if len(line) <= LONGEST else line[: LONGEST - 1] + "…"
