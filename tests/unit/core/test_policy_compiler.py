"""What users wrote becomes what sidecars are told; a broken entry leaves its last good version."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.api.inferenceservice import InferenceService
from weir_core.sched.scheduler import Scheduler, SchedulerSettings
from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, EngineFacts, EngineKind
from weir_core.wire.class_entries import effective
from weir_core.wire.compiler import Declared, compile_policies
from weir_core.wire.policies import AdapterEntry, EngineMode, PolicyDocument, TenantEntry
from weir_core.wire.problems import Problem, name_of

Manifest = dict[str, Any]
PLAIN = PolicyDocument(max_queued=1024, max_body_bytes=16 << 20)
"""Of a service that says nothing, in a cluster without classes and tenants."""
BUILT_IN = {policy.name for policy in BUILT_IN_CLASSES}


def digest(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def resource(kind: str, name: str, spec: Manifest) -> Manifest:
    return {
        "apiVersion": "serving.weir.dev/v1alpha1",
        "kind": kind,
        "metadata": {"name": name, "resourceVersion": "7"},
        "spec": spec,
    }


def a_class(name: str, rank: int = 0, **spec: Any) -> Manifest:
    return resource("InferencePriorityClass", name, {"rank": rank, **spec})


def a_tenant(name: str, **spec: Any) -> Manifest:
    return resource("InferenceTenant", name, {"apiKeySecretRef": {"name": f"{name}-keys"}, **spec})


def keys(**of_tenant: str) -> dict[str, dict[str, str]]:
    """Return the Secret of each tenant, with the hash of its one key."""
    return {f"{name}-keys": {"k": digest(key)} for name, key in of_tenant.items()}


def service(**spec: Any) -> InferenceService:
    small = {"model": {"name": "m", "source": {"uri": "tiny://"}}}
    return InferenceService.model_validate(resource("InferenceService", "chat", {**small, **spec}))


def compiled(
    *manifests: Manifest,
    secrets: Mapping[str, Mapping[str, str]] | None = None,
    before: PolicyDocument | None = None,
    **spec: Any,
) -> tuple[PolicyDocument, list[Problem]]:
    def of(kind: str) -> list[Manifest]:
        return [each for each in manifests if each["kind"] == kind]

    declared = Declared(
        service(**spec), of("InferencePriorityClass"), of("InferenceTenant"), secrets or {}
    )
    return compile_policies(declared, before)


def good(*manifests: Manifest, **rest: Any) -> PolicyDocument:
    document, problems = compiled(*manifests, **rest)
    assert problems == []
    return document


def classes(document: PolicyDocument) -> dict[str, ClassPolicy]:
    return {policy.name: policy for policy in document.classes}


def tenants(document: PolicyDocument) -> dict[str, TenantEntry]:
    return {entry.policy.name: entry for entry in document.tenants}


def test_nothing_at_all_stands_for_the_built_in_classes_and_no_tenants() -> None:
    assert good() == PLAIN


def test_everything_a_user_can_say_arrives() -> None:
    document = good(
        a_class("standard", 5, maxQueueWait="1m30s", ttftTargetMs=250, shed="never"),
        a_class("gold", 9, minShare=0.5),
        a_tenant(
            "app",
            defaultClass="standard",
            maxClass="gold",
            weight=2,
            delegates=True,
            limits={"maxRequests": 3},
        ),
        secrets={"app-keys": {"old": digest("a").upper() + "\n", "new": digest("b")}},
        admission={"anonymousClass": "standard", "classes": ["gold", "standard"]},
        engine={"scheduling": {"mode": "custom", "classShares": {"gold": 0.7}, "tpotFloorMs": 20}},
    )
    assert [policy.name for policy in document.classes] == ["gold", "standard"]
    standard = classes(document)["standard"]
    assert (standard.max_queue_wait_s, standard.ttft_target_s, standard.shed) == (90, 0.25, "never")
    entry = tenants(document)["app"]
    assert (entry.default_class, entry.max_class, entry.delegates) == ("standard", "gold", True)
    assert (entry.policy.weight, entry.policy.max_requests) == (2, 3)
    assert entry.key_hashes == tuple(sorted([digest("a"), digest("b")]))
    assert document.anonymous_class == "standard"
    assert document.accepted_classes == ("gold", "standard")
    assert document.engine == EngineMode("custom", {"gold": 0.7}, 0.02)


def test_the_highest_class_of_a_tenant_is_its_default_unless_it_says() -> None:
    document = good(a_tenant("app", defaultClass="batch"), secrets=keys(app="a"))
    assert tenants(document)["app"].max_class == "batch"


STANDARD = a_class("standard")
BEFORE = good(
    STANDARD,
    a_class("gold", 9, minShare=0.5),
    a_class("iron", 1, minShare=0.3),
    a_tenant("app", defaultClass="gold"),
    a_tenant("bot"),
    secrets=keys(app="a", bot="b"),
    admission={"anonymousClass": "standard", "classes": ["gold", "standard"]},
    engine={"scheduling": {"mode": "throughput"}},
)


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        pytest.param({"rank": "high"}, "InferencePriorityClass/gold: spec.rank", id="a word"),
        pytest.param({}, "InferencePriorityClass/gold: spec.rank: is missing", id="nothing"),
        pytest.param(
            {"rank": 1, "maxQueueWait": "soon"},
            "spec.maxQueueWait: 'soon' is not a duration; write it like 30s",
            id="no duration",
        ),
        pytest.param(
            {"rank": 1, "minShare": 0.8},
            "spec.minShare: 0.8 together with the other classes' 0.3 is more than 1; "
            "write at most 0.7",
            id="more than there is",
        ),
    ],
)
def test_a_broken_class_stays_as_it_was_and_others_go_on(broken: Manifest, said: str) -> None:
    gold = resource("InferencePriorityClass", "gold", broken)
    iron = a_class("iron", 2, minShare=0.3)
    document, (problem,) = compiled(STANDARD, gold, iron, before=BEFORE)
    assert problem.reason == "InvalidClass"
    assert said in str(problem)
    assert classes(document)["gold"] == classes(BEFORE)["gold"]
    assert classes(document)["iron"].rank == 2


@pytest.mark.parametrize(
    ("newer", "where"),
    [
        pytest.param(
            a_class("gold", 9, burst=3), "InferencePriorityClass/gold: spec.burst", id="a class"
        ),
        pytest.param(
            a_tenant("app", limits={"images": 3}),
            "InferenceTenant/app: spec.limits.images",
            id="a tenant",
        ),
    ],
)
def test_a_field_that_only_a_later_weir_knows_is_told_and_the_rest_is_in_force(
    newer: Manifest, where: str
) -> None:
    document, (problem,) = compiled(STANDARD, newer, secrets=keys(app="a"))
    assert problem.reason == "UnknownField"
    assert str(problem).startswith(f"{where}: this version of Weir does not know it")
    assert classes(document).keys() | tenants(document).keys() > {"standard"}


def test_a_broken_class_that_never_was_good_is_not_there() -> None:
    document, (problem,) = compiled(STANDARD, a_class("new", rank=10**9), before=None)
    assert (problem.name, problem.field) == ("new", "spec.rank")
    assert set(classes(document)) == {"standard"}


@pytest.mark.parametrize(
    ("gold", "iron", "want"),
    [
        pytest.param(0.2, 0.8, (0.2, 0.8), id="room that one gives back, another may take"),
        pytest.param(0.2, 0.9, (0.2, 0.3), id="who asks for too much keeps what it had"),
        pytest.param(0.8, 0.3, (0.5, 0.3), id="who stays keeps its share"),
    ],
)
def test_shares_change_as_far_as_they_fit(
    gold: float, iron: float, want: tuple[float, float]
) -> None:
    document, _ = compiled(
        STANDARD, a_class("gold", minShare=gold), a_class("iron", minShare=iron), before=BEFORE
    )
    found = classes(document)
    assert (found["gold"].min_share, found["iron"].min_share) == want


def test_without_a_last_version_the_last_share_that_does_not_fit_is_left_out() -> None:
    shares = [a_class(name, minShare=0.5) for name in ("zinc", "standard", "gold")]
    document, (problem,) = compiled(*shares)
    assert set(classes(document)) == {"gold", "standard"}
    assert (problem.name, problem.field) == ("zinc", "spec.minShare")


def test_shares_that_make_exactly_one_fit() -> None:
    assert good(STANDARD, *(a_class(f"c{n}", minShare=0.1) for n in range(10)))


def test_a_class_that_is_gone_goes_on_while_a_tenant_names_it_but_for_its_share() -> None:
    app = a_tenant("app", defaultClass="gold")
    document, (problem,) = compiled(STANDARD, app, secrets=keys(app="a"), before=BEFORE)
    assert "there is no class gold; make it, or name one of standard" in str(problem)
    assert tenants(document)["app"] == tenants(BEFORE)["app"]
    assert (classes(document)["gold"].rank, classes(document)["gold"].min_share) == (9, 0)
    later = good(STANDARD, a_tenant("app"), secrets=keys(app="a"), before=document)
    assert set(classes(later)) == {"standard"}


def test_a_built_in_class_goes_on_while_it_is_named() -> None:
    first = good(a_tenant("app", defaultClass="batch"), secrets=keys(app="a"))
    document, problems = compiled(
        STANDARD, a_tenant("app", defaultClass="batch"), secrets=keys(app="a"), before=first
    )
    assert [problem.reason for problem in problems] == ["InvalidTenant"]
    assert set(classes(document)) == {"standard", "batch"}


def test_the_last_class_to_go_leaves_the_built_in_ones_and_those_still_named() -> None:
    app = a_tenant("app", defaultClass="gold")
    document, _ = compiled(app, secrets=keys(app="a"), before=BEFORE)
    assert set(classes(document)) == {*BUILT_IN, "gold"}


@pytest.mark.parametrize(
    ("tenant", "secrets", "reason", "said"),
    [
        pytest.param(
            a_tenant("app", weight=0), keys(app="a"), "InvalidTenant",
            "InferenceTenant/app: spec.weight", id="a weight out of range",
        ),
        pytest.param(
            a_tenant("app", defaultClass="golden"), keys(app="a"), "InvalidTenant",
            "spec.defaultClass: there is no class golden; make it, or name one of gold, standard",
            id="a default class that does not exist",
        ),
        pytest.param(
            a_tenant("app", maxClass="golden"), keys(app="a"), "InvalidTenant",
            "spec.maxClass: there is no class golden", id="a highest class that does not exist",
        ),
        pytest.param(
            a_tenant("app"), {}, "SecretMissing",
            "spec.apiKeySecretRef.name: there is no Secret app-keys", id="no Secret",
        ),
        pytest.param(
            a_tenant("app"), {"app-keys": {"2026": "sk-secret"}}, "InvalidSecret",
            "Secret/app-keys: data.2026: is not the SHA-256 hash of a key", id="a key, no hash",
        ),
        pytest.param(
            a_tenant("app"), keys(app="b"), "InvalidTenant",
            "InferenceTenant/app: spec.apiKeySecretRef: one of its keys is tenant bot's, too",
            id="another tenant's key",
        ),
    ],
)  # fmt: skip
def test_a_broken_tenant_stays_as_it_was_and_others_go_on(
    tenant: Manifest, secrets: dict[str, dict[str, str]], reason: str, said: str
) -> None:
    bot = a_tenant("bot", weight=3)
    document, (problem,) = compiled(
        STANDARD, a_class("gold", 9), tenant, bot,
        secrets={**keys(bot="b"), **secrets}, before=BEFORE,
    )  # fmt: skip
    assert problem.reason == reason
    assert said in str(problem)
    assert "sk-secret" not in str(problem)
    assert tenants(document)["app"] == tenants(BEFORE)["app"]
    assert tenants(document)["bot"].policy.weight == 3
    fresh, _ = compiled(
        STANDARD, a_class("gold", 9), tenant, bot, secrets={**keys(bot="b"), **secrets}
    )
    assert "bot" in tenants(fresh) or "app" in tenants(fresh)


def test_of_two_new_tenants_with_one_key_the_first_by_name_has_it() -> None:
    document, (problem,) = compiled(
        a_tenant("zoe"), a_tenant("amy"), secrets=keys(zoe="k", amy="k")
    )
    assert (set(tenants(document)), problem.name) == ({"amy"}, "zoe")


def test_a_tenant_keeps_its_key_from_one_that_comes_before_it_by_name() -> None:
    before = good(a_tenant("zoe"), secrets=keys(zoe="k"))
    document, (problem,) = compiled(
        a_tenant("zoe"), a_tenant("amy"), secrets=keys(zoe="k", amy="k"), before=before
    )
    assert (set(tenants(document)), problem.name) == ({"zoe"}, "amy")


def test_tenants_may_swap_their_keys() -> None:
    before = good(a_tenant("amy"), a_tenant("zoe"), secrets=keys(amy="a", zoe="z"))
    after = good(a_tenant("amy"), a_tenant("zoe"), secrets=keys(amy="z", zoe="a"), before=before)
    assert tenants(after)["amy"].key_hashes == (digest("z"),)


def test_a_secret_without_values_takes_a_tenant_its_keys() -> None:
    document = good(a_tenant("app"), secrets={"app-keys": {}}, before=BEFORE)
    assert tenants(document)["app"].key_hashes == ()


def test_a_tenant_that_is_gone_is_gone() -> None:
    assert good(STANDARD, a_class("gold"), before=BEFORE).tenants == ()


@pytest.mark.parametrize(
    ("admission", "field", "want"),
    [
        pytest.param({"defaultClass": "x"}, "defaultClass", "standard", id="default"),
        pytest.param({"classes": ["gold", "x"]}, "classes[1]", ("gold", "standard"), id="accepted"),
        pytest.param({"anonymousClass": "x"}, "anonymousClass", "standard", id="anonymous"),
    ],
)
def test_a_class_the_service_names_in_vain_leaves_the_field_as_it_was(
    admission: Manifest, field: str, want: object
) -> None:
    document, (problem,) = compiled(
        STANDARD, a_class("gold", 9), admission=admission, before=BEFORE
    )
    assert (problem.reason, problem.name) == ("InvalidAdmission", "chat")
    assert problem.field == f"spec.admission.{field}"
    assert want in (
        document.default_class, document.accepted_classes, document.anonymous_class
    )  # fmt: skip


def test_without_a_last_version_what_is_named_in_vain_gives_nobody_more() -> None:
    document, problems = compiled(
        a_class("gold", 9),
        a_class("tin", 1),
        admission={"classes": ["x"], "anonymousClass": "y"},
    )
    assert [problem.field.removeprefix("spec.admission.") for problem in problems] == [
        "defaultClass",
        "classes[0]",
        "anonymousClass",
    ]
    assert "is not set, and there is no class standard; write one of gold, tin" in str(problems[0])
    assert document.default_class == "tin"
    assert document.accepted_classes == ("tin",)
    assert document.anonymous_class is None


def test_shares_of_steps_for_a_class_that_does_not_exist_leave_the_mode_as_it_was() -> None:
    wrong = {"scheduling": {"mode": "custom", "classShares": {"x": 1}}}
    document, (problem,) = compiled(STANDARD, engine=wrong, before=BEFORE)
    assert problem.reason == "InvalidScheduling"
    assert problem.field == "spec.engine.scheduling.classShares.x"
    assert document.engine.mode == "throughput"
    assert compiled(STANDARD, engine=wrong)[0].engine == EngineMode()


def test_what_cannot_be_read_stays_as_it_was_and_is_said() -> None:
    document, problems = compile_policies(Declared(service(), None, None), BEFORE)
    assert [(each.reason, each.kind) for each in problems] == [
        ("Unreadable", "InferencePriorityClass"),
        ("Unreadable", "InferenceTenant"),
    ]
    assert (document.classes, document.tenants) == (BEFORE.classes, BEFORE.tenants)
    fresh, _ = compile_policies(Declared(service(), None), None)
    assert fresh == PLAIN


def test_an_object_without_a_name_is_a_problem_and_no_more() -> None:
    document, problems = compiled(
        {"kind": "InferencePriorityClass"}, {"kind": "InferenceTenant", "metadata": []}
    )
    assert [problem.name for problem in problems] == ["", ""]
    assert document == PLAIN


# ---- whatever comes in

NAMES = st.sampled_from(["standard", "gold", "iron", "batch", "app", "bot"])
SHARES = st.sampled_from([0.0, 0.1, 0.4, 0.7, 1.0])
RUBBISH = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=6,
)
CLASSES = st.builds(
    lambda name, rank, share: a_class(name, rank, minShare=share), NAMES, st.integers(-9, 9), SHARES
)
TENANTS = st.builds(
    lambda name, default, highest: a_tenant(name, defaultClass=default, maxClass=highest),
    NAMES, NAMES, NAMES,
)  # fmt: skip
BROKEN = st.builds(
    resource,
    st.sampled_from(["InferencePriorityClass", "InferenceTenant"]),
    NAMES,
    st.dictionaries(st.sampled_from(["rank", "weight", "minShare", "x"]), RUBBISH),
) | st.builds(lambda meta: {"kind": "InferenceTenant", "metadata": meta}, RUBBISH)
SECRETS = st.dictionaries(
    st.sampled_from(["app-keys", "bot-keys", "gold-keys"]),
    st.dictionaries(
        st.sampled_from(["1", "2"]), st.sampled_from(["a", "b", "c"]).map(digest) | st.text()
    ),
)
ADMISSIONS = st.fixed_dictionaries(
    {},
    optional={
        "defaultClass": NAMES,
        "anonymousClass": NAMES,
        "classes": st.lists(NAMES, max_size=3),
    },
)
OBJECTS = st.lists(
    CLASSES | TENANTS | BROKEN, max_size=8, unique_by=lambda one: (one["kind"], name_of(one))
)
WORLDS = st.builds(
    lambda found, secrets, admission: (found, {"secrets": secrets, "admission": admission}),
    OBJECTS, SECRETS, ADMISSIONS,
)  # fmt: skip
World = tuple[list[Manifest], Manifest]


@given(st.lists(WORLDS, min_size=1, max_size=3))
def test_whatever_comes_in_the_document_is_one_a_scheduler_can_work_with(
    worlds: list[World],
) -> None:
    document: PolicyDocument | None = None
    for manifests, rest in worlds:
        document, _ = compiled(*manifests, **rest, before=document)
        known = effective(document.classes)
        named = {document.default_class, *document.accepted_classes}
        named |= set(filter(None, [document.anonymous_class]))
        named |= {
            name for each in document.tenants for name in (each.default_class, each.max_class)
        }
        assert named <= known.keys()
        assert sum(policy.min_share for policy in document.classes) <= 1 + 1e-6
        hashes = [each for entry in document.tenants for each in entry.key_hashes]
        assert len(hashes) == len(set(hashes))
        assert PolicyDocument.decode(document.encode()) == document
        facts = EngineFacts(EngineKind.WEIR, 8, 2048, 100_000)
        scheduler = Scheduler(SchedulerSettings(facts, default_class=document.default_class))
        policies = [entry.policy for entry in document.tenants]
        assert scheduler.configure(tuple(known.values()), policies, now=1.0) == []


@given(WORLDS, WORLDS)
def test_the_order_in_which_objects_are_listed_changes_nothing(earlier: World, now: World) -> None:
    before, _ = compiled(*earlier[0], **earlier[1])
    first = compiled(*now[0], **now[1], before=before)
    assert compiled(*reversed(now[0]), **now[1], before=before) == first


@given(WORLDS, WORLDS)
def test_compiling_the_same_again_settles(earlier: World, now: World) -> None:
    before, _ = compiled(*earlier[0], **earlier[1])
    once, _ = compiled(*now[0], **now[1], before=before)
    twice, _ = compiled(*now[0], **now[1], before=once)
    assert compiled(*now[0], **now[1], before=twice)[0] == twice


def test_a_default_class_above_the_highest_is_a_problem_and_the_highest_holds() -> None:
    document, problems = compiled(
        a_tenant("app", defaultClass="interactive", maxClass="batch"),
        secrets=keys(app="a"),
    )
    entry = tenants(document)["app"]
    assert (entry.default_class, entry.max_class) == ("batch", "batch")
    assert entry.key_hashes == (digest("a"),)
    assert [str(problem) for problem in problems] == [
        "InferenceTenant/app: spec.defaultClass: interactive is above maxClass batch, which holds "
        "meanwhile; lower the one or raise the other"
    ]


def test_a_class_that_rises_above_the_highest_of_a_tenant_is_lowered_for_it() -> None:
    tenant = a_tenant("app", defaultClass="slow", maxClass="fast")
    world = [a_class("standard"), a_class("fast", 5), tenant]
    before = good(*world, a_class("slow", 1), secrets=keys(app="a"))
    document, problems = compiled(*world, a_class("slow", 9), secrets=keys(app="a"), before=before)
    assert tenants(document)["app"].default_class == "fast"
    assert [problem.field for problem in problems] == ["spec.defaultClass"]


@pytest.mark.parametrize(
    ("admission", "fields", "default", "anonymous"),
    [
        pytest.param(
            {"classes": ["interactive", "batch"], "defaultClass": "standard"},
            ["spec.admission.defaultClass"], "batch", None, id="the next lower class",
        ),
        pytest.param(
            {"classes": ["interactive"], "defaultClass": "batch"},
            ["spec.admission.defaultClass"], "interactive", None, id="nothing is lower",
        ),
        pytest.param({"classes": ["batch"]}, [], "batch", None, id="a default nobody wrote"),
        pytest.param(
            {"classes": ["standard", "batch"], "anonymousClass": "interactive"},
            ["spec.admission.anonymousClass"], "standard", "standard", id="anonymous lowered",
        ),
        pytest.param(
            {"classes": ["standard"], "anonymousClass": "batch"},
            ["spec.admission.anonymousClass"], "standard", None, id="anonymous gets no more",
        ),
    ],
)  # fmt: skip
def test_a_class_that_the_service_does_not_accept_is_a_problem(
    admission: Manifest, fields: list[str], default: str, anonymous: str | None
) -> None:
    document, problems = compiled(admission=admission)
    assert [problem.field for problem in problems] == fields
    assert (document.default_class, document.anonymous_class) == (default, anonymous)


def test_names_and_limits_are_told_as_the_spec_says_them() -> None:
    document = good(
        model={
            "name": "m",
            "aliases": ["gpt", "gpt"],
            "source": {"uri": "tiny://"},
            "adapters": [{"name": "sql", "source": {"uri": "hf://o/sql@v2"}}],
        },
        admission={"maxQueued": 7, "maxBodyBytes": 2048},
    )
    assert document.aliases == ("gpt",)
    assert document.adapters == (AdapterEntry("sql", "hf://o/sql@v2"),)
    assert (document.max_queued, document.max_body_bytes) == (7, 2048)
