"""`weir check`: what is wrong with files, for a CI that has no cluster.

What cannot be taken at all raises, as in `weir render`. What may be right beside objects that only
the cluster has (a tenant's Secret, a class of the platform team's) is a warning.
"""

from __future__ import annotations

from collections.abc import Iterator

from weir_cli import policies
from weir_cli.documents import Documents
from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.errors import InvalidSpec


def resources(found: Documents) -> Iterator[str]:
    """Return a line for each resource: where it stands, its kind and its name.

    Raises:
        InvalidSpec: There is none, so that a check would say nothing.
    """
    if not found.where:
        raise InvalidSpec("FILE", "no resource in any of the files; name those with your resources")
    for (kind, namespace, name), where in found.where.items():
        of_cluster = kind == InferencePriorityClass.__name__
        yield f"{where}: {kind} {name if of_cluster else f'{namespace}/{name}'}"


def warnings(found: Documents) -> list[str]:
    """Return what these files alone do not settle: place and message of each, once."""
    said = [
        f"{policies.place(problem, found, service)}: {problem.message}"
        for service in found.services
        for problem in policies.compiled(found, service)[1]
    ]
    return list(dict.fromkeys(said))  # a tenant of two services is told once
