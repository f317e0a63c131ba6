"""Who asks, and for which class: API keys, headers and bodies against the policy document.

A tenant is known by its API key, of which only the SHA-256 hash is here. A request may name a
class; it may lower itself that way, and never rises above its tenant's highest class. A header
that asks for too much is an error, because its sender believes in a promise that nobody made;
OpenAI's `service_tier` and vLLM's `priority` are wishes, and end at what is allowed.

Without tenants, and without a class for requests without a key, a pod serves nothing. A sidecar
that listens on the loopback only, as under `weir up`, serves its own machine then, for any class.
"""

from __future__ import annotations

import hmac
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.wire.fields import RequestBody
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_sidecar.frontend import errors

ANONYMOUS: Final = "anonymous"
"""The tenant of requests without a key."""

CLASS_HEADERS: Final = (
    b"x-llm-d-inference-objective",
    b"x-gateway-inference-objective",
    b"x-weir-class",
)
TENANT_HEADERS: Final = (b"x-llm-d-inference-fairness-id", b"x-gateway-inference-fairness-id")
TTFT_HEADERS: Final = (b"x-llm-d-slo-ttft-ms", b"x-slo-ttft-ms")
EXPLAIN_HEADER: Final = b"x-weir-explain"
SESSION_HEADER: Final = b"x-session-id"
SECRET_HEADERS: Final = frozenset({b"authorization", b"x-api-key"})
"""Read here and never passed on: the engine has no use for its clients' keys."""
READ_HEADERS: Final = frozenset(
    {
        *CLASS_HEADERS,
        *TENANT_HEADERS,
        *TTFT_HEADERS,
        EXPLAIN_HEADER,
        SESSION_HEADER,
        b"content-type",
        *SECRET_HEADERS,
    }
)

_MAX_NAME: Final = 253
Said = Mapping[bytes, str]
"""What a request says in `READ_HEADERS`, by lower-case name."""


@dataclass(frozen=True, slots=True)
class Caller:
    """Whoever a key, or the lack of one, stands for.

    Attributes:
        tenant: Who is accounted for the request.
        default_class: Class of requests that name none.
        max_rank: Rank of the highest class it may ask for.
        delegates: It may name whom a request is accounted to.
        key: Name of the API key in the tenant's Secret; empty where it is not known.
    """

    tenant: str
    default_class: str
    max_rank: float
    delegates: bool = False
    key: str = ""


class Directory:
    """A policy document, ready to be asked.

    Args:
        document: What the operator says.
    """

    def __init__(self, document: PolicyDocument) -> None:
        self.classes: tuple[ClassPolicy, ...] = document.classes or BUILT_IN_CLASSES
        self.tenants: tuple[TenantPolicy, ...] = tuple(t.policy for t in document.tenants)
        self.anonymous_class = document.anonymous_class
        self._policies = {policy.name: policy for policy in self.classes}
        self._ranks = {policy.name: policy.rank for policy in self.classes}
        accepted = set(document.accepted_classes) or set(self._ranks)
        # Accepted classes, the highest first; names break ties so that replays agree.
        self._accepted = [
            policy.name
            for policy in sorted(self.classes, key=lambda policy: (-policy.rank, policy.name))
            if policy.name in accepted
        ]
        self._here = Caller(
            ANONYMOUS, document.anonymous_class or document.default_class, float("inf")
        )
        self._anonymous = self._nobody(document.anonymous_class)
        # hash -> (hash, whose it is)
        self._by_key: dict[bytes, tuple[bytes, Caller | None]] = {}
        for entry in document.tenants:
            # A document of an earlier version has no names.
            names = entry.key_names or ("",) * len(entry.key_hashes)
            for key_hash, name in zip(entry.key_hashes, names, strict=True):
                digest = bytes.fromhex(key_hash)
                self._by_key[digest] = (digest, self._caller(entry, name))

    @property
    def openness(self) -> str:
        """Who may call, in words, for the log and for `/state`."""
        if self.tenants and self.anonymous_class is None:
            return f"{len(self.tenants)} tenants, by API key"
        if self.tenants:
            return f"{len(self.tenants)} tenants, by API key, and anybody as {self.anonymous_class}"
        if self.anonymous_class is not None:
            return f"anybody, as {self.anonymous_class} (no tenants)"
        return "no client on a network (no tenants)"

    def identify(self, said: Said, *, from_here: bool) -> Caller:
        """Return who asks.

        Args:
            said: The request's headers.
            from_here: It comes from this machine, and that is to count.

        Raises:
            ApiError: 401, the key is missing or unknown.
        """
        if not self.tenants:
            caller = self._here if from_here else self._anonymous
            if caller is None:
                raise errors.unauthorized(
                    "This service has neither tenants nor a class for requests without a key, so "
                    "it serves nothing here. Declare an InferenceTenant, or set "
                    "spec.admission.anonymousClass."
                )
            return caller
        key = _key_in(said)
        if key is None:
            if self._anonymous is None:
                raise errors.unauthorized(
                    "An API key is needed: send it as `Authorization: Bearer KEY`."
                )
            return self._anonymous
        digest = sha256(key.encode("utf-8", "surrogateescape")).digest()
        # What is looked up and compared is a hash that callers cannot steer, so neither the
        # table's timing nor the comparison's tells anything of a key.
        known, caller = self._by_key.get(digest, (b"", None))
        if caller is None or not hmac.compare_digest(known, digest):
            raise errors.unauthorized("This API key is not known here.")
        return caller

    def rank_by_head(self, caller: Caller, said: Said) -> int:
        """Return the rank that the headers alone give a request; its body may still lower it.

        Raises:
            ApiError: 400, there is no such class; 403, it is not for this caller or service.
        """
        asked = _first(said, CLASS_HEADERS)
        name = self._asked_for(asked, caller) if asked else caller.default_class
        return self._ranks.get(name, 0)

    def rank_of(self, class_name: str) -> int:
        """Return the rank of a class; of one that is gone meanwhile, the lowest."""
        return self._ranks.get(class_name, min(self._ranks.values()))

    def policy(self, class_name: str) -> ClassPolicy:
        """Return a class; of one that is gone meanwhile, the lowest there is."""
        found = self._policies.get(class_name)
        return found or min(self.classes, key=lambda policy: policy.rank)

    def tenant_of(self, caller: Caller, said: Said) -> str:
        """Return who is accounted for: whom a delegate names, else the caller."""
        named = _first(said, TENANT_HEADERS) if caller.delegates else None
        return named[:_MAX_NAME] if named else caller.tenant

    def ttft_target_s(self, class_name: str) -> float | None:
        """Return what a class is promised; nothing where it is gone meanwhile."""
        found = self._policies.get(class_name)
        return None if found is None else found.ttft_target_s

    def class_of(self, caller: Caller, said: Said, fields: RequestBody) -> str:
        """Return the class of a request.

        Raises:
            ApiError: 400, there is no such class; 403, it is not for this caller or service.
        """
        asked = _first(said, CLASS_HEADERS)
        if asked:
            return self._asked_for(asked, caller)
        wanted = self._wanted(fields)
        if wanted is None:
            wanted = self._ranks.get(caller.default_class, 0)
            if caller.default_class in self._accepted and wanted <= caller.max_rank:
                return caller.default_class
        name = self._highest(min(wanted, caller.max_rank)) or self._lowest(caller)
        if name is None:
            raise errors.forbidden("This service accepts no class that this key may use.")
        return name

    def _asked_for(self, name: str, caller: Caller) -> str:
        rank = self._ranks.get(name)
        if rank is None:
            raise errors.bad_request(
                f"There is no priority class {name[:_MAX_NAME]!r}; the classes here are "
                f"{', '.join(self._accepted)}.",
                code="unknown_class",
            )
        if name not in self._accepted:
            raise errors.forbidden(
                f"This service does not accept the class {name}, only {', '.join(self._accepted)}."
            )
        if rank > caller.max_rank:
            allowed = [each for each in self._accepted if self._ranks[each] <= caller.max_rank]
            raise errors.forbidden(
                f"The class {name} is above what this caller may ask for"
                + (f": {', '.join(allowed)}." if allowed else ".")
            )
        return name

    def _wanted(self, fields: RequestBody) -> float | None:
        """Return the rank that the body wishes for, or None where it has no wish."""
        tier = fields.service_tier
        if tier == "priority":
            return float("inf")
        if tier == "flex":
            return float("-inf")
        if tier in self._ranks:
            return self._ranks[tier]
        if fields.priority is not None and fields.priority > 0:
            return -fields.priority  # vLLM's polarity: higher is less important
        return None

    def _highest(self, max_rank: float) -> str | None:
        return next((name for name in self._accepted if self._ranks[name] <= max_rank), None)

    def _lowest(self, caller: Caller) -> str | None:
        lowest = self._accepted[-1] if self._accepted else None
        return lowest if lowest and self._ranks[lowest] <= caller.max_rank else None

    def _nobody(self, class_name: str | None) -> Caller | None:
        if class_name is None:
            return None
        return Caller(ANONYMOUS, class_name, self._ranks.get(class_name, float("-inf")))

    def _caller(self, entry: TenantEntry, key: str) -> Caller:
        return Caller(
            entry.policy.name,
            entry.default_class,
            self._ranks.get(entry.max_class, self._ranks.get(entry.default_class, float("-inf"))),
            entry.delegates,
            key,
        )


def ttft_target_s(said: Said) -> float | None:
    """Return the target that a request sets itself, in seconds.

    Raises:
        ApiError: 400, it is not a positive number of milliseconds.
    """
    text = _first(said, TTFT_HEADERS)
    if text is None:
        return None
    try:
        target_s = float(text) / 1000.0
    except ValueError:
        target_s = 0.0
    if not 0.0 < target_s < float("inf"):
        raise errors.bad_request(
            f"{TTFT_HEADERS[0].decode()} must be a positive number of milliseconds.",
            code="bad_target",
        )
    return target_s


def wants_explanation(said: Said) -> bool:
    """Tell whether the answer should say why it came when it came."""
    return said.get(EXPLAIN_HEADER, "") in ("1", "true")


def is_here(address: str | None) -> bool:
    """Tell whether a peer's address is this machine's loopback."""
    return address is not None and (address.startswith("127.") or address == "::1")


def _key_in(said: Said) -> str | None:
    """Return the key, from OpenAI's header or from Anthropic's."""
    scheme, _, key = said.get(b"authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        return key.strip()
    return said.get(b"x-api-key") or None


def _first(said: Said, names: tuple[bytes, ...]) -> str | None:
    for name in names:
        value = said.get(name)
        if value is not None:
            return value.strip()
    return None
