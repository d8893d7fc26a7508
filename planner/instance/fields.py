"""Fields: read values from a cluster file; a bad one is named together with its file."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from swarm.errors import BadInput

NEXT = "Correct the file; docs/cluster-format.md describes it."


@dataclass(frozen=True, slots=True)
class Fields:
    """One object of a file, and the way to it; every reader raises BadInput naming the field."""

    values: Mapping[str, Any]
    path: str  # of the object within the file
    file: str

    def refuse(self, name: str, why: str) -> BadInput:
        """The error for a field, to be raised."""
        return BadInput(f"{self.file}: {self.path}{name} {why}.", NEXT)

    def has(self, name: str) -> bool:
        """Whether the field is there and not null."""
        return self.values.get(name) is not None

    def number(self, name: str, least: float = 0.0, *, above: bool = True) -> float:
        """A finite number above `least`, or at least it."""
        value = self._present(name)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.refuse(name, f"is {value!r:.40} where a number is needed")
        if not math.isfinite(value) or value < least or (above and value == least):
            raise self.refuse(name, f"is {value} and must be {_bound(least, above)}")
        return float(value)

    def count(self, name: str, least: int = 1) -> int:
        """A whole number of at least `least`."""
        value = self.number(name, least, above=False)
        if value != int(value):
            raise self.refuse(name, f"is {value} where a whole number is needed")
        return int(value)

    def optional(self, name: str, default: float, *, above: bool = True) -> float:
        """A number, or the default where the field is missing."""
        return self.number(name, above=above) if self.has(name) else default

    def text(self, name: str) -> str:
        """A string."""
        value = self._present(name)
        if not isinstance(value, str) or not value:
            raise self.refuse(name, f"is {value!r:.40} where a name is needed")
        return value

    def text_or(self, name: str, default: str) -> str:
        """A string, or the default where the field is missing."""
        return self.text(name) if self.has(name) else default

    def section_or_empty(self, name: str) -> "Fields":
        """An object within this one; an empty one where it is missing."""
        return self.section(name) if self.has(name) else self.within(name, {})

    def within(self, name: str, values: Mapping[str, Any]) -> "Fields":
        """An object of ours in the place of a field."""
        return Fields(values, f"{self.path}{name}.", self.file)

    def section(self, name: str) -> "Fields":
        """An object within this one."""
        value = self._present(name)
        if not isinstance(value, dict):
            raise self.refuse(name, f"is {value!r:.40} where an object is needed")
        return self.within(name, value)

    def sections(self, name: str) -> "list[Fields]":
        """A list of objects."""
        value = self._present(name)
        if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
            raise self.refuse(name, "must be a list of objects")
        return [Fields(item, f"{self.path}{name}[{i}].", self.file) for i, item in enumerate(value)]

    def numbers(self, name: str) -> list[float]:
        """A list of at least one positive number."""
        value = self._present(name)
        if not isinstance(value, list) or not value:
            raise self.refuse(name, "must be a list of numbers")
        entries = Fields(dict(zip(map(str, range(len(value))), value, strict=True)), "", self.file)
        named = Fields(entries.values, f"{self.path}{name}.", self.file)
        return [named.number(place) for place in entries.values]

    def _present(self, name: str) -> object:
        if name not in self.values:
            raise self.refuse(name, "is missing")
        return self.values[name]


def _bound(least: float, above: bool) -> str:
    return f"above {least:g}" if above else f"at least {least:g}"
