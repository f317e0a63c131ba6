"""One concern of a service: the kinds it owns, what it desires of them, and what it says.

A pass takes the parts one after the other, each with what those before it have seen. What keeps a
part from its work is said in that part's condition, and stops no other part.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

from weir_operator.cluster import Cluster
from weir_operator.conditions import Verdict
from weir_operator.kinds import Kind
from weir_operator.observed import Observed, identity
from weir_operator.render import Manifest


@dataclass(frozen=True)
class Owned:
    """A kind of which a part makes objects."""

    kind: Kind
    reason: str
    """What for, in the table of rights."""
    listed: bool = True
    """Whether a pass lists the service's; what is not is read by its name."""
    watched: bool = True
    """Whether a change by others asks for a pass at once, so that it is undone."""
    deleted: bool = True
    """Whether the part deletes them itself, beside the garbage collector."""
    by_all: bool = True
    """Whether every service has some. Without a right to others, services that need none go on."""


class Part:
    """One concern; this one has nothing to do."""

    condition: ClassVar[str]
    """The condition that says whether it could do its work."""
    owns: ClassVar[tuple[Owned, ...]] = ()

    async def observe(self, seen: Observed, cluster: Cluster) -> Observed:
        """Read what it needs beside its own objects.

        Raises:
            ClusterUnavailable: The API server cannot serve now, or refuses.
        """
        return seen

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return the objects there should be, in the order they are to be applied. Pure.

        Raises:
            InvalidSpec: The spec contradicts itself in a way only rendering shows.
        """
        return ()

    def applied(self, seen: Observed, desired: Sequence[Manifest]) -> Observed:
        """Return what is there now that those were applied. Pure.

        Args:
            seen: What the pass has seen so far.
            desired: The desired objects, as the API server has answered to them.
        """
        return seen

    def superfluous(self, seen: Observed, desired: Sequence[Manifest]) -> Sequence[Manifest]:
        """Return the objects to delete: by default, those it owns and does not desire. Pure."""
        asked_for = {identity(each) for each in desired}
        kinds = {each.kind.name for each in self.owns}
        return [
            each
            for each in seen.owned
            if each["kind"] in kinds
            and identity(each) not in asked_for
            and "deletionTimestamp" not in each["metadata"]
        ]

    async def follow_up(self, seen: Observed, cluster: Cluster) -> Observed:
        """Do what can only be done once its objects are as they should be."""
        return seen

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Return what it says, its own condition among it. Pure."""
        raise NotImplementedError

    def is_settled(self, seen: Observed) -> bool:
        """Tell whether only a change of an object can make it say or do something else. Pure."""
        return True

    def forget(self, service: tuple[str, str]) -> None:
        """Forget a service (namespace, name) that is gone."""
