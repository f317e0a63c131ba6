"""What the operator may do, and what for. `make generate` writes the chart's rules from it.

What it owns it takes from the parts; the rest is here. Written out verb by verb: no wildcard, no
exec, and of pods only metadata is patched.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import Final, NamedTuple

from weir_operator.kinds import CLASS, EVENT, POD, SECRET, SERVICE, TENANT, Kind
from weir_operator.parts import Owned, owned


class Right(NamedTuple):
    """Verbs on one resource of the API."""

    kind: Kind
    verbs: tuple[str, ...]
    reason: str
    subresource: str = ""

    @property
    def resource(self) -> str:
        """The resource as RBAC names it."""
        return "/".join(filter(None, (self.kind.plural, self.subresource)))


_IN_A_NAMESPACE: Final = (
    Right(SERVICE, ("get", "list", "watch"), "what users ask for"),
    Right(SERVICE, ("patch",), "what became of it", "status"),
    Right(
        SERVICE,
        ("update",),
        "to own objects where the OwnerReferencesPermissionEnforcement plugin is on",
        "finalizers",
    ),
    Right(TENANT, ("list", "watch"), "whose keys and limits sidecars are told of"),
    Right(TENANT, ("patch",), "what became of them", "status"),
    Right(
        POD,
        ("list", "patch"),
        "why a replica is not ready is in its pods' state; annotations bring a new Secret soon, "
        "and say which goes first",
    ),
    Right(EVENT, ("create",), "the story that `kubectl describe` tells"),
)
_WATCH_SECRETS: Final = (
    Right(
        SECRET,
        ("watch",),
        "an edited Secret counts within seconds. The operator asks for metadata alone, which RBAC "
        "cannot demand: a watch of whole objects begins with every Secret there is, so with this "
        "right whoever has the operator's token can read all Secrets of these namespaces without "
        "knowing their names",
    ),
)
_IN_THE_CLUSTER: Final = (
    Right(CLASS, ("list", "watch"), "the one thing it reads that is in no namespace"),
)


def in_a_namespace() -> Sequence[Right]:
    """Return the rights in each namespace it watches, one for each resource."""
    return (*_IN_A_NAMESPACE, *map(_to_own, owned()))


def chart_rules() -> str:
    """Return the chart's template with the rules."""
    blocks = {
        "weir.namespaceRules": in_a_namespace(),
        "weir.secretWatchRules": _WATCH_SECRETS,
        "weir.classRules": _IN_THE_CLUSTER,
    }
    return "\n".join(_block(name, rights) for name, rights in blocks.items())


def _to_own(each: Owned) -> Right:
    verbs = ["get"]
    verbs += ["list"] if each.listed else []
    verbs += ["watch"] if each.watched else []
    verbs += ["create", "patch"]
    verbs += ["delete"] if each.deleted else []
    return Right(each.kind, tuple(verbs), each.reason)


def _block(name: str, rights: Iterable[Right]) -> str:
    lines = [f'{{{{- define "{name}" -}}}}']
    for right in rights:
        lines += [
            *_comment(right.reason),
            f"- apiGroups: [{right.kind.group or chr(34) * 2}]",
            f"  resources: [{right.resource}]",
            f"  verbs: [{', '.join(right.verbs)}]",
        ]
    return "\n".join([*lines, "{{- end -}}", ""])


def _comment(reason: str) -> list[str]:
    text = f"{reason[0].upper()}{reason[1:]}."
    return [f"# {line}" for line in textwrap.wrap(text, 98)]
