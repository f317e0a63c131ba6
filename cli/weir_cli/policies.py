"""Classes and tenants of the user's files, compiled into what each service's sidecars are told.

The compiler is the operator's. A cluster keeps the last good version of what is broken; here, at
the start, there is none, so a problem is an error that names the file.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping

from msgspec.structs import replace

from weir_cli.documents import Documents
from weir_core.api import labels
from weir_core.api.base import Model
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import Fault, InvalidSpec
from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.policies import PeerEntry, PolicyDocument
from weir_core.wire.problems import Manifest, Problem


def compiled(
    documents: Documents, service: InferenceService, before: PolicyDocument | None = None
) -> tuple[PolicyDocument, list[Problem]]:
    """Return what the sidecars of a service are to be told, and what is not in it as written.

    Peers and their keys are not in the files: they stay as they are in `before`.
    """
    namespace = service.metadata.namespace
    declared = Declared(
        service=service,
        classes=[_manifest(each) for each in documents.classes],
        tenants=[
            _manifest(each) for each in documents.tenants if each.metadata.namespace == namespace
        ],
        secrets={
            name: values
            for (where, name), values in documents.secrets.items()
            if where == namespace
        },
    )
    document, problems = compile_policies(declared, before)
    if before is not None:
        document = replace(document, peers=before.peers, peer_keys=before.peer_keys)
    return document, problems


def with_peers(
    document: PolicyDocument, addresses: Mapping[str, str], key: str, gateway: str
) -> PolicyDocument:
    """Return the document with the peers, whose `addresses` are given by name, and their key."""
    peers = tuple(
        PeerEntry(name, f"{address}:{labels.PEER_PORT}", serves=name != gateway)
        for name, address in sorted(addresses.items())
    )
    return replace(document, peers=peers, peer_keys=(key,))


def compiled_whole(documents: Documents, service: InferenceService) -> PolicyDocument:
    """Return what the sidecars of a service are to be told.

    Raises:
        InvalidSpec: Something is not as it must be; the error names file, object and field of
            each.
    """
    document, problems = compiled(documents, service)
    if problems:
        raise InvalidSpec.of(
            [Fault(place(each, documents, service), each.message) for each in problems]
        )
    return document


def place(problem: Problem, documents: Documents, service: InferenceService) -> str:
    """Return file, document, object and field of a problem."""
    namespaces = (service.metadata.namespace, "default")  # a class is in none
    found = (documents.where.get((problem.kind, each, problem.name)) for each in namespaces)
    where = next(filter(None, found), "files")
    return f"{where} ({problem.kind} {problem.name}): {problem.field}"


def _manifest(resource: Model) -> Manifest:
    return resource.model_dump(mode="json", by_alias=True, exclude_unset=True)


def is_open(document: PolicyDocument) -> bool:
    """Tell whether anybody who reaches a sidecar from its own machine is served."""
    return not document.tenants and document.anonymous_class is None


def check_reachable(service: str, document: PolicyDocument, host: str) -> None:
    """Check that nobody is served by accident.

    The gateway relays from this machine, so to a sidecar all of its clients are of this machine.

    Raises:
        InvalidSpec: The service would be open to everybody who reaches `host`.
    """
    if is_open(document) and not is_loopback(host):
        raise InvalidSpec(
            f"--host {host}",
            f"service {service} has no tenants, so everybody who reaches this address could use "
            "it; declare an InferenceTenant for each client (examples/tenants.yaml shows how), or "
            "set spec.admission.anonymousClass if that is what you want",
        )


def is_loopback(host: str) -> bool:
    """Tell whether an address is reached from this machine only."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def callers(document: PolicyDocument) -> str:
    """Return who may call a service, in words."""
    count = len(document.tenants)
    by_key = f"{count} tenant{'s' if count != 1 else ''} by API key" if count else ""
    if document.anonymous_class is not None:
        rest = f"everybody {'else ' if count else ''}as {document.anonymous_class}"
        return f"open to {', '.join(filter(None, [by_key, rest]))}"
    return f"open to {by_key}" if by_key else "open to this machine only (no tenants)"
