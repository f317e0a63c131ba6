"""Where a spec says how many accelerators a replica has, and that it says the same everywhere.

`accelerator.count` is what a replica gets and `engine.parallelism` is what its engine uses. An
amount in a container's resources that differs from the count would lose against it without a
word, and accelerators that no part of the engine uses would stand idle.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Final, Protocol

from weir_core.api.base import Rule, quoted

DEFAULT_RESOURCE: Final = "nvidia.com/gpu"
RESOURCE_PATTERN: Final = r"^[a-z0-9][-a-z0-9.]*/[A-Za-z0-9][-A-Za-z0-9_.]*$"
RESOURCE_SAYS: Final = "is not an extended resource; write its whole name, like nvidia.com/gpu"
ACCELERATOR_PATTERN: Final = r"^(nvidia\.com|amd\.com|habana\.ai|gpu\.intel\.com)/|/(gpu|tpu|npu)$"
"""Extended resources that are accelerators; networks and the like (rdma/ib) stand beside them."""
USUAL: Final = (
    DEFAULT_RESOURCE,
    *("amd.com/gpu", "google.com/tpu", "habana.ai/gaudi", "gpu.intel.com/xe", "gpu.intel.com/i915"),
)
PREFILL_CONTEXT_FLAGS: Final = ("--prefill-context-parallel-size", "--prefill_context", "-pcp")
"""Arguments by which an engine uses more accelerators than `engine.parallelism` says."""
DATA_OVER_NODES: Final = (
    "an engine that spreads over nodes has one data parallel rank; leave data out, and write more "
    "replicas"
)
UNEVEN: Final = "each of the nodes holds the same part of an engine"


class Sizes(Protocol):
    """How an engine is divided."""

    @property
    def tensor(self) -> int:
        """Tensor parallel size."""

    @property
    def pipeline(self) -> int:
        """Pipeline parallel size."""

    @property
    def data(self) -> int:
        """Data parallel size."""

    @property
    def nodes(self) -> int:
        """Nodes that one engine spreads over."""


def wrong_amount(resource: str, count: int, asked: str, amount: Any) -> str | None:
    """Return what is wrong with an amount of `asked` beside `count` of `resource`, if anything."""
    same = asked == resource
    if (same and str(amount) == str(count)) or not (same or re.search(ACCELERATOR_PATTERN, asked)):
        return None
    return (
        f"{amount} of {asked} contradicts accelerator, which is {count} of {resource}; write "
        f"accelerator: {{resource: {asked}, count: {amount}}} and leave {asked} out here"
    )


def wrong_count(count: int, sizes: Sizes) -> str | None:
    """Return what is wrong with `count` accelerators for an engine of these sizes, if anything."""
    if sizes.nodes > 1:
        return _wrong_over_nodes(count, sizes)
    need = sizes.tensor * sizes.pipeline * sizes.data
    if count in (0, need):
        return None
    said = f"{count} accelerators a replica and an engine of tensor x pipeline x data = {need}"
    if count < need:
        return f"{said} do not fit; write accelerator: {{count: {need}}}"
    tensor = count // (sizes.pipeline * sizes.data)
    return (
        f"{said} leave {count - need} idle; write engine.parallelism.tensor: {tensor}, or "
        f"accelerator: {{count: {need}}}"
    )


def _wrong_over_nodes(count: int, sizes: Sizes) -> str | None:
    """Return what is wrong with `count` accelerators on each node, if anything."""
    if sizes.data > 1:
        return DATA_OVER_NODES
    need = sizes.tensor * sizes.pipeline
    if need % sizes.nodes:
        return (
            f"{UNEVEN}, and tensor x pipeline = {need} is no multiple of {sizes.nodes} nodes; "
            "write another tensor or other nodes"
        )
    if count in (0, need // sizes.nodes):
        return None
    return (
        f"{count} accelerators on each of {sizes.nodes} nodes and an engine of tensor x pipeline = "
        f"{need} do not fit; write accelerator: {{count: {need // sizes.nodes}}}"
    )


_RESOURCE: Final = (
    "(has(self.accelerator) && has(self.accelerator.resource) ? self.accelerator.resource : "
    f"'{DEFAULT_RESOURCE}')"
)
_COUNT: Final = "(has({0}.accelerator) && has({0}.accelerator.count) ? {0}.accelerator.count : 1)"


def pool_rules() -> tuple[Rule, ...]:
    """Return what the API server checks of a pool's resources.

    It cannot look through all names in the budget of a rule, so of other accelerators it knows
    the usual ones; Weir itself goes by `ACCELERATOR_PATTERN`.
    """
    return tuple(rule for section in ("limits", "requests") for rule in _pool_rules(section))


def _pool_rules(section: str) -> Iterator[Rule]:
    amounts, count = f"self.resources.{section}", _COUNT.format("self")
    there = f"!has(self.resources) || !has({amounts}) || "
    amount = f"{amounts}[{_RESOURCE}]"
    yield Rule(
        f"{there}!({_RESOURCE} in {amounts}) || "
        f"(type({amount}) == int ? {amount} == {count} : {amount} == string({count}))",
        "contradicts accelerator, which is 1 of nvidia.com/gpu where nothing is written; write the "
        "number as accelerator.count and leave the accelerators out here",
        field=f".resources.{section}",
    )
    usual = ", ".join(map(quoted, USUAL))
    yield Rule(
        f"{there}[{usual}].all(k, k == {_RESOURCE} || !(k in {amounts}))",
        "asks for other accelerators than accelerator.resource; write them as accelerator: "
        "{resource: NAME, count: N} and leave them out here",
        field=f".resources.{section}",
    )


def parallelism_rules() -> tuple[Rule, ...]:
    """Return what the API server checks of the pools' accelerators and the engines' sizes."""
    sizes = ("tensor", "pipeline", "data")
    need = " * ".join(_size("self", size, "1") for size in sizes)
    need_of_pool = " * ".join(_size("p", size, _size("self", size, "1")) for size in sizes)
    count = _COUNT.format("p")
    nodes = _size("self", "nodes", "1")
    nodes_of_pool = _size("p", "nodes", nodes)
    data_of_pool = _size("p", "data", _size("self", "data", "1"))
    with_pools = "has(self.pools) && self.pools.size() > 0"
    return (
        Rule(
            f"{_has_more('self')} || ({with_pools} ? "
            f"self.pools.all(p, {count} == 0 || {count} * {nodes_of_pool} == {need_of_pool} || "
            f"{_has_more('p')}) : {nodes} == {need})",
            "accelerator.count of each pool must be tensor x pipeline x data of engine.parallelism "
            "(the pool's own where it is written, each of them 1 where nothing is) divided by its "
            "nodes, or 0 for the CPU: write the same number",
            field=".pools",
        ),
        Rule(
            f"{with_pools} ? self.pools.all(p, {nodes_of_pool} == 1 || {data_of_pool} == 1) : "
            f"{nodes} == 1 || {_size('self', 'data', '1')} == 1",
            DATA_OVER_NODES,
            field=".pools",
        ),
        Rule(
            f"!({with_pools}) || self.pools.all(p, {need_of_pool} % {nodes_of_pool} == 0)",
            f"{UNEVEN}: write a tensor x pipeline that is a multiple of nodes",
            field=".pools",
        ),
    )


def _size(of: str, size: str, otherwise: str) -> str:
    sizes = f"{of}.engine.parallelism"
    there = f"has({of}.engine) && has({sizes}) && has({sizes}.{size})"
    return f"({there} ? {sizes}.{size} : {otherwise})"


def _has_more(of: str) -> str:
    """Return CEL for whether arguments say that an engine uses more accelerators."""
    more = " || ".join(f"a.startsWith('{flag}')" for flag in PREFILL_CONTEXT_FLAGS)
    args = f"{of}.engine.args"
    return f"(has({of}.engine) && has({args}) && {args}.exists(a, {more}))"
