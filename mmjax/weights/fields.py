"""Reading the fields of someone else's config, with errors that name the field."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

REQUIRED = object()


@dataclasses.dataclass(frozen=True)
class Fields:
    values: Mapping[str, Any]
    where: str  # for messages: the file, and the object in it

    def get(self, name: str, kind: type, default: Any = REQUIRED) -> Any:
        """The field as `kind`, an int passing for a float; `default` is what the other library takes if it's absent."""
        value = self.values.get(name)
        if value is None and default is not REQUIRED:
            return default
        good = isinstance(value, (int, float) if kind is float else kind) and (kind is bool or value is not True)
        if not good or (kind is int and value < 0):
            found = "is missing" if name not in self.values else f"is {value!r}"
            raise ValueError(f"{self.where}: {name} {found}, expected {_KINDS[kind]}")
        return value

    def part(self, name: str) -> "Fields":
        """The object under `name`."""
        return Fields(self.get(name, dict), f"{self.where}: {name}")

    def one_of(self, name: str, choices: Mapping[str, Any], default: str) -> Any:
        value = self.get(name, str, default)
        if value not in choices:
            raise ValueError(f"{self.where}: {name} is {value!r}, supported are {', '.join(choices)}")
        return choices[value]

    def expect(self, name: str, only: Any) -> None:
        """Refuses what isn't supported; an absent field is fine."""
        value = self.values.get(name, only)
        if value != only:
            raise ValueError(f"{self.where}: {name} is {value!r}, supported is {only!r} only")

    def side(self, name: str, default: int) -> int:
        """Of a square; some files spell it as [224, 224]."""
        value = self.values.get(name)
        if isinstance(value, list) and len(set(value)) == 1:
            return Fields({name: value[0]}, self.where).get(name, int)
        return self.get(name, int, default)

    def colour(self, name: str, default: Sequence[float]) -> tuple[float, ...]:
        """Three numbers, of red, green and blue."""
        value = self.values.get(name, default)
        if not isinstance(value, Sequence) or len(value) != 3 or not all(isinstance(x, float | int) for x in value):
            raise ValueError(f"{self.where}: {name} is {value!r}, expected three numbers")
        return tuple(float(x) for x in value)

    def labels(self) -> tuple[str, ...]:
        """Of id2label, {"0": "LABEL_0", ...}, in the order of the numbers."""
        names = self.get("id2label", dict, {"0": "LABEL_0", "1": "LABEL_1"})
        if set(names) != {str(i) for i in range(len(names))}:
            raise ValueError(f"{self.where}: id2label must number its labels 0, 1, 2 ..., got {', '.join(names)}")
        return tuple(names[str(i)] for i in range(len(names)))


_KINDS = {int: "a whole number", float: "a number", str: "a string", dict: "an object", bool: "true or false"}
