"""What all resource types share: frozen, camelCase on the wire, unknown fields are errors.

A spec is checked twice: by the API server, which knows the schema and the rules in it, and by
Weir, offline and in the operator. Whatever both can say is said once, here and beside the types:
`text` and `rules` put the same words into the schema and into Weir's own answer. No type is
lenient where the API server is not: a number in quotes is no number.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, Any, Final, NamedTuple, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel
from pydantic_core import PydanticCustomError

from weir_core.units import DURATION_PATTERN

Location = tuple[str | int, ...]
"""Where in a document, such as `("spec", "pools", 1, "name")`."""


class Model(BaseModel):
    """Base of every resource and wire type."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", alias_generator=to_camel, populate_by_name=True
    )


class Contradiction(NamedTuple):
    """What is wrong with a value that is of its type."""

    where: Location
    """From the value that was looked at; empty for all of it."""
    message: str


class Contradictions(ValueError):
    """All that a validator found; `weir_core.api.reading` makes a fault of each."""

    def __init__(self, found: Sequence[Contradiction]) -> None:
        super().__init__("; ".join(each.message for each in found))
        self.found = tuple(found)


Checked = TypeVar("Checked")


def none_of(value: Checked, found: Iterable[Contradiction]) -> Checked:
    """Return `value` if nothing was found wrong with it.

    Raises:
        Contradictions: Something was.
    """
    every = list(found)
    if every:
        raise Contradictions(every)
    return value


def check(find: Callable[[Any], Iterator[Contradiction]]) -> AfterValidator:
    """Return the validator of a field that must have none of what `find` finds."""
    return AfterValidator(lambda value: none_of(value, find(value)))


class Rule(NamedTuple):
    """What the API server checks by itself, in CEL."""

    rule: str
    message: str
    expression: str = ""
    """CEL for a message that quotes what was written; `message` where it cannot be told."""
    field: str = ""
    """The field below this one that is at fault, such as `.name`."""


def rules(*given: Rule) -> dict[str, Any]:
    """Return the schema extension for rules the API server checks."""
    names = ("rule", "message", "messageExpression", "fieldPath")
    written = [dict(zip(names, each, strict=True)) for each in given]
    return {
        "x-kubernetes-validations": [
            {name: value for name, value in each.items() if value} for each in written
        ]
    }


def quoted(text: str) -> str:
    """Return a CEL string that is `text`."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'") + "'"


def text(pattern: str, says: str, max_length: int, *more: Rule) -> Any:
    """Return a text's constraints: its pattern, and what to write where it does not match.

    The schema has the pattern as a rule: the API server would answer a `pattern` with the regular
    expression, for which few people know what to write.
    """
    matches = Rule(f"self.matches({quoted(pattern)})", says)
    return Field(pattern=pattern, max_length=max_length, json_schema_extra=rules(matches, *more))


def keyed_by(field: str) -> dict[str, Any]:
    """Return the schema extension for a list whose items are told apart by `field`.

    The API server refuses two items of one key, and server-side apply merges by it.
    """
    return {"x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": [field]}


def _twice(items: Sequence[Any]) -> Iterator[Contradiction]:
    first: dict[str, int] = {}
    for index, item in enumerate(items):
        before = first.setdefault(item.name, index)
        if before != index:
            message = f"{item.name!r} is the name of item {before}, too; leave one of them out"
            yield Contradiction((index, "name"), message)


NAMES_DIFFER = check(_twice)
"""Validator of a list that is `keyed_by` its items' names."""

Integer = Annotated[int, Field(strict=True)]
Number = Annotated[float, Field(strict=True)]
Switch = Annotated[bool, Field(strict=True)]

DNS_LABEL_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"
DNS_LABEL_SAYS = (
    "is not a name here; write small letters, digits and dashes, like h100-spot, and begin and end "
    "with a letter or a digit"
)
DnsLabel = Annotated[str, text(DNS_LABEL_PATTERN, DNS_LABEL_SAYS, 63)]
SUBDOMAIN_PATTERN = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*$"
SUBDOMAIN_SAYS = (
    "is not an object's name; write small letters, digits, dashes and dots only, and begin and end "
    "with a letter or a digit"
)
Duration = Annotated[
    str, text(DURATION_PATTERN, "is not a duration; write it like 30s, 5m or 250ms", 32)
]

QUANTITY_PATTERN = r"^([0-9]+(\.[0-9]*)?|\.[0-9]+)([KMGTPE]i|[numkMGTPE]|[eE][-+]?[0-9]+)?$"
QUANTITY_SAYS = (
    "is not a quantity; write a number with one of Kubernetes' units, like 4, 500m or 16Gi"
)
COUNT_PATTERN = r"^[0-9]+%$"
COUNT_SAYS = "is neither a count nor a percentage; write it like 1 or 25%"


def _whole_or(pattern: str, says: str) -> Any:
    """Return the validator and the rule of a whole number that is not negative, or of a text."""

    def fits(value: object) -> object:
        whole = isinstance(value, int) and not isinstance(value, bool) and value >= 0
        if whole or (isinstance(value, str) and re.search(pattern, value)):
            return value
        raise PydanticCustomError("quantity", "{says}", {"says": says})

    # A pattern, and not a rule: of such a value the API server thinks that it may be as long as a
    # whole request, and finds every rule too expensive.
    return BeforeValidator(fits), Field(json_schema_extra={"pattern": pattern, "minimum": 0})


Quantity = Annotated[int | str, *_whole_or(QUANTITY_PATTERN, QUANTITY_SAYS)]
"""A Kubernetes quantity such as `4`, `500m` or `16Gi`."""
CountOrShare = Annotated[int | str, *_whole_or(COUNT_PATTERN, COUNT_SAYS)]
"""A number of pods, or a percentage of them."""
FreeForm = dict[str, Any]
"""An object Weir passes on as it is; the API server checks it where it ends up."""


METADATA: Final = (
    *("annotations", "creationTimestamp", "deletionGracePeriodSeconds", "deletionTimestamp"),
    *("finalizers", "generateName", "generation", "labels", "managedFields", "name", "namespace"),
    *("ownerReferences", "resourceVersion", "selfLink", "uid"),
)
"""Fields of any object's metadata in Kubernetes."""


class ObjectMeta(Model):
    """The part of an object's metadata that Weir reads."""

    model_config = ConfigDict(extra="ignore")

    name: Annotated[str, text(SUBDOMAIN_PATTERN, SUBDOMAIN_SAYS, 63)]
    namespace: DnsLabel = "default"
    uid: str = ""
    generation: int = 0
    labels: dict[str, str] = Field(default_factory=dict)
    annotations: dict[str, str] = Field(default_factory=dict)
