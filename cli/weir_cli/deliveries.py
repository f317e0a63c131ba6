"""What sidecars are to be told, until each of them has been told.

A disk may be full just when a key is revoked. So a document is applied when it is in the file of
every sidecar of its service, and is written again and again until then; it is said when that takes
longer, and when it is done.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from weir_cli.documents import Object
from weir_cli.replica import make_link, replace_file


@dataclass
class _Delivery:
    """A document on its way.

    Attributes:
        text: The document.
        left: The files that do not hold it yet, and whose they are.
        links: What must be there before, each with what it is of.
        done: What to tell the user in the end.
        trouble: What was last told of what is in the way.
    """

    text: str
    left: dict[Path, str]
    links: Mapping[Path, Path]
    done: str
    trouble: str = ""


class Deliveries:
    """The documents on their way, by service; a newer one takes an older one's place."""

    def __init__(self) -> None:
        self._due: dict[Object, _Delivery] = {}

    def add(
        self,
        service: Object,
        text: str,
        files: Mapping[Path, str],
        done: str,
        links: Mapping[Path, Path] = MappingProxyType({}),
    ) -> None:
        """Begin to deliver a document to files that are given with their owners' names.

        The directories that it speaks of are linked before.
        """
        self._due[service] = _Delivery(text, dict(files), links, done)

    def attempt(self) -> Iterator[str]:
        """Write what is due, and yield what to tell the user of it."""
        for service, delivery in list(self._due.items()):
            trouble = _write(delivery)
            if not delivery.left:
                del self._due[service]
                yield f"{service[1]}: {delivery.done}"
            elif trouble != delivery.trouble:
                delivery.trouble = trouble
                yield f"{service[1]}: not applied everywhere yet: {trouble}; trying until it is"


def _write(delivery: _Delivery) -> str:
    """Write a document where it is missing; return what is in the way of the first that fails."""
    try:
        for link, target in delivery.links.items():
            make_link(link, target)
    except OSError as error:
        return f"{error.filename or 'the weights'}: {error.strerror or error}"
    trouble = ""
    for path, owner in list(delivery.left.items()):
        try:
            replace_file(path, delivery.text)
        except OSError as error:
            trouble = trouble or f"{owner}: {error.strerror or error}"
        else:
            del delivery.left[path]
    return trouble
