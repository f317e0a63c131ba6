"""Sources that may reach a service's pods, in the words of Kubernetes' NetworkPolicy.

A misspelt field of a selector would select everything: so the types are written out, and nothing of
them is passed on unread.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterator, Sequence
from typing import Annotated, Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api.base import Contradiction, Model, Rule, check, none_of, rules, text

VALUES = (
    "operators In and NotIn need values, Exists and DoesNotExist have none; write values to match"
)
NOTHING = "selects nothing; write a namespaceSelector, a podSelector or an ipBlock"
BOTH = "ipBlock stands alone; put the selectors into an item of their own"
NO_SOURCES = (
    "is empty, which some would read as any source and some as none; write at least one, or leave "
    "it out"
)
CIDR_PATTERN = r"^[0-9a-fA-F.:]+/[0-9]{1,3}$"
CIDR_SAYS = "is not a block of addresses; write it like 10.0.0.0/8 or fd00::/8"
Cidr = Annotated[str, text(CIDR_PATTERN, CIDR_SAYS, 43)]


class Requirement(Model):
    """One expression over a label."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "(self.operator in ['In', 'NotIn']) == "
                "(has(self.values) && self.values.size() > 0)",
                VALUES,
            )
        )
    )

    key: str = Field(description="The label's key.", max_length=316)
    operator: Literal["In", "NotIn", "Exists", "DoesNotExist"] = Field(
        description="How the label's value and `values` relate."
    )
    values: tuple[Annotated[str, Field(max_length=63)], ...] = Field(
        default=(), description="For In and NotIn. Default: none.", max_length=32
    )

    @model_validator(mode="after")
    def _has_values(self) -> Requirement:
        fits = (self.operator in {"In", "NotIn"}) == bool(self.values)
        return none_of(self, [] if fits else [Contradiction((), VALUES)])


class LabelSelector(Model):
    """Labels to match; an empty one matches all."""

    match_labels: dict[str, Annotated[str, Field(max_length=63)]] = Field(
        default_factory=dict, description="Labels to have. Default: any.", max_length=32
    )
    match_expressions: tuple[Requirement, ...] = Field(
        default=(), description="Expressions to fulfil, all of them. Default: none.", max_length=16
    )


class IpBlock(Model):
    """Addresses; pods' own ones count or not, as the network plugin has it."""

    cidr: Cidr = Field(description="The block, like 10.0.0.0/8.")
    except_: tuple[Cidr, ...] = Field(
        default=(),
        alias="except",
        description="Blocks inside it that are left out. Default: none.",
        max_length=16,
    )

    @model_validator(mode="after")
    def _is_of_addresses(self) -> IpBlock:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        whole = _network(self.cidr)
        if whole is None:
            yield Contradiction(("cidr",), f"{self.cidr!r} {CIDR_SAYS}")
        for index, each in enumerate(self.except_):
            part = _network(each)
            if part is None:
                yield Contradiction(("except", index), f"{each!r} {CIDR_SAYS}")
            elif whole is not None and not _is_inside(part, whole):
                wrong = f"{each!r} is no part of {self.cidr}; write a smaller block inside it"
                yield Contradiction(("except", index), wrong)


class Source(Model):
    """Pods or addresses, as an item of `from` in a NetworkPolicy."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "has(self.ipBlock) || has(self.podSelector) || has(self.namespaceSelector)", NOTHING
            ),
            Rule(
                "!has(self.ipBlock) || !(has(self.podSelector) || has(self.namespaceSelector))",
                BOTH,
            ),
        )
    )

    namespace_selector: LabelSelector | None = Field(
        default=None,
        description="Namespaces whose pods are meant; {} for all. Default: the service's own.",
    )
    pod_selector: LabelSelector | None = Field(
        default=None, description="Pods that are meant. Default: all of those namespaces."
    )
    ip_block: IpBlock | None = Field(
        default=None, description="Addresses that are meant, in place of pods. Default: none."
    )

    @model_validator(mode="after")
    def _selects(self) -> Source:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        selects = self.namespace_selector is not None or self.pod_selector is not None
        if self.ip_block is None and not selects:
            yield Contradiction((), NOTHING)
        if self.ip_block is not None and selects:
            yield Contradiction((), BOTH)


def _not_empty(sources: Sequence[Source] | None) -> Iterator[Contradiction]:
    if sources is not None and not sources:
        yield Contradiction((), NO_SOURCES)


Sources = Annotated[
    tuple[Source, ...],
    Field(max_length=32, json_schema_extra=rules(Rule("self.size() > 0", NO_SOURCES))),
    check(_not_empty),
]


class NetworkSpec(Model):
    """What the service's NetworkPolicy admits."""

    allow_from: Sources | None = Field(
        default=None,
        description="Sources that may call the API, port 8000. The service's pods reach each "
        "other in any case. Default: the chart's networkPolicy.allowFrom, or any source.",
    )
    scrape_from: Sources | None = Field(
        default=None,
        description="Sources that may read metrics and probes, port 8001. The operator and the "
        "kubelet of the node may in any case. Default: the chart's networkPolicy.scrapeFrom, or "
        "any source.",
    )


_Network = ipaddress.IPv4Network | ipaddress.IPv6Network


def _network(block: str) -> _Network | None:
    try:
        return ipaddress.ip_network(block, strict=False)
    except ValueError:
        return None


def _is_inside(part: _Network, whole: _Network) -> bool:
    if isinstance(part, ipaddress.IPv4Network):
        same = isinstance(whole, ipaddress.IPv4Network) and part.subnet_of(whole)
    else:
        same = isinstance(whole, ipaddress.IPv6Network) and part.subnet_of(whole)
    return same and part != whole
