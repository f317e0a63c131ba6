"""Whether the cache holds the model before a replica needs it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import ClassVar

from weir_operator.conditions import PREFETCH, Verdict, wrong
from weir_operator.kinds import JOB
from weir_operator.observed import Observed
from weir_operator.parts.part import Owned, Part
from weir_operator.render import Images, Manifest, pod_templates, prefetch_jobs
from weir_operator.revisions import choose


class Prefetch(Part):
    """Jobs that fetch into a claim.

    Args:
        images: Container images where a spec names none.
    """

    condition = PREFETCH
    owns: ClassVar[tuple[Owned, ...]] = (
        Owned(JOB, "models come to a claim ahead of replicas", by_all=False),
    )

    def __init__(self, images: Images) -> None:
        self._images = images

    def desired(self, seen: Observed) -> Sequence[Manifest]:
        """Return the Jobs; those of a spec that is wrong stay as they are.

        Like replicas they are made from the kept templates, so that an upgrade of the operator
        alone fetches nothing again.
        """
        service = seen.service
        if service is None or service.spec.model.cache is None:
            return ()
        chosen = choose(service, pod_templates(service, self._images), seen.owned)
        return prefetch_jobs(service, {pool: each.template for pool, each in chosen.items()})

    def applied(self, seen: Observed, desired: Sequence[Manifest]) -> Observed:
        """Return how far they are."""
        there = [each for each in seen.owned if each["kind"] == JOB.name]
        return replace(seen, prefetches=there if seen.service is None else desired)

    def superfluous(self, seen: Observed, desired: Sequence[Manifest]) -> Sequence[Manifest]:
        """Return what is there and not desired."""
        return super().superfluous(seen, desired) if seen.service is not None else ()

    def verdicts(self, seen: Observed) -> Mapping[str, Verdict]:
        """Say whether all are done."""
        return {PREFETCH: _prefetch(seen.prefetches)}


def _prefetch(jobs: Iterable[Manifest]) -> Verdict:
    states = {each["metadata"]["name"]: _ended(each) for each in jobs}
    if not states:
        return Verdict("True", "NotAsked", "spec.model.cache asks for none")
    for name, (type_, words) in states.items():
        if type_ == "Failed":
            said = f"{words}; its pods' logs tell more. Delete it, and it is tried again"
            return wrong("PrefetchFailed", f"job {name}", said)
    running = [name for name, (type_, _) in states.items() if not type_]
    if running:
        return Verdict("False", "Fetching", f"job {running[0]} fetches into the cache")
    return Verdict("True", "Fetched", "the cache holds what the replicas need")


def _ended(job: Manifest) -> tuple[str, str]:
    """Return how a Job ended, and why; empty while it runs."""
    for each in job.get("status", {}).get("conditions", ()):
        if each["type"] in {"Complete", "Failed"} and each["status"] == "True":
            return each["type"], f"{each.get('reason', '')}: {each.get('message', '')}"
    return "", ""
