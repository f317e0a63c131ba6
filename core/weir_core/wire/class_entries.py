"""The classes of a policy document, out of the cluster's InferencePriorityClasses.

What cannot be taken as it is written leaves the last good version in force. A class that is gone
while a tenant or the service still names it goes on, too, but for its minShare: taking it away
would change the rank of requests whose owner was told nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from weir_core.api.priorityclass import InferencePriorityClass
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy
from weir_core.wire.policies import class_policy
from weir_core.wire.problems import Manifest, Problem, name_of, read, unheard_of

Classes = Mapping[str, ClassPolicy]

_ROUNDING = 1e-9


def effective(classes: Iterable[ClassPolicy]) -> Classes:
    """Return the classes in force by name; none stands for the built-in ones."""
    return {policy.name: policy for policy in classes} or {
        policy.name: policy for policy in BUILT_IN_CLASSES
    }


def compile_classes(
    manifests: Sequence[Manifest], before: Classes
) -> tuple[dict[str, ClassPolicy], list[Problem]]:
    """Return the classes to put in force, by name and in the order of names.

    Args:
        manifests: Every InferencePriorityClass of the cluster.
        before: The last good version of each class.
    """
    wanted: dict[str, ClassPolicy] = {}
    problems: list[Problem] = []
    present: set[str] = set()
    for manifest in sorted(manifests, key=name_of):
        present.add(name_of(manifest))
        found = read(manifest, InferencePriorityClass, "InvalidClass")
        if isinstance(found, Problem):
            problems.append(found)
        else:
            wanted[found.metadata.name] = class_policy(found)
    kept = {name: before[name] for name in present & before.keys()}
    chosen, refused = _within_one(wanted, kept)
    problems += [*refused, *unheard_of(manifests, InferencePriorityClass)]
    return dict(sorted(chosen.items())), problems


def retained(names: Iterable[str], classes: Classes, before: Classes) -> dict[str, ClassPolicy]:
    """Return `classes` with those of `names` that are gone and were there before.

    Args:
        names: Classes that an entry in force names.
        classes: What the cluster has; none stands for the built-in ones.
        before: The last good version of each class.
    """
    missing = sorted(set(names) - effective(classes.values()).keys())
    if not missing:
        return dict(classes)
    held = {name: replace(before[name], min_share=0.0) for name in missing if name in before}
    return {**effective(classes.values()), **held}


def _within_one(wanted: Classes, kept: Classes) -> tuple[dict[str, ClassPolicy], list[Problem]]:
    """Put as many of the wanted classes in force as leave the sum of their minShare within 1.

    Those that give back some of their share go first, because others may rely on it.
    """
    everything = {**kept, **wanted}
    if _total(everything) <= 1:
        return everything, []
    chosen = dict(kept) if _total(kept) <= 1 else {}
    problems = []
    for name in sorted(wanted, key=lambda each: (_added(each, wanted, kept), each)):
        trial = {**chosen, name: wanted[name]}
        if _total(trial) <= 1:
            chosen = trial
        else:
            problems.append(_too_much(wanted[name], chosen))
    return chosen, problems


def _total(classes: Classes) -> float:
    return sum(policy.min_share for policy in classes.values()) - _ROUNDING


def _added(name: str, wanted: Classes, kept: Classes) -> float:
    return wanted[name].min_share - (kept[name].min_share if name in kept else 0.0)


def _too_much(policy: ClassPolicy, chosen: Classes) -> Problem:
    others = sum(each.min_share for each in chosen.values() if each.name != policy.name)
    return Problem(
        "InvalidClass",
        "InferencePriorityClass",
        policy.name,
        "spec.minShare",
        f"{policy.min_share:g} together with the other classes' {others:g} is more than 1; "
        f"write at most {max(1 - others, 0):g}",
    )
