"""Who asks and for which class, without a socket."""

from __future__ import annotations

import contextlib
import hashlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weir_core.sched.types import BUILT_IN_CLASSES, TenantPolicy
from weir_core.wire.fields import RequestBody
from weir_core.wire.policies import PolicyDocument, TenantEntry
from weir_sidecar.frontend.auth import Caller, Directory, is_here, ttft_target_s
from weir_sidecar.frontend.errors import ApiError

RANKS = {policy.name: policy.rank for policy in BUILT_IN_CLASSES}
NAMES = sorted(RANKS)


def entry(name: str = "chat", *, delegates: bool = False) -> TenantEntry:
    digest = hashlib.sha256(f"sk-{name}".encode()).hexdigest()
    return TenantEntry(TenantPolicy(name), "standard", "standard", delegates, (digest,))


def bearer(secret: str) -> dict[bytes, str]:
    return {b"authorization": f"Bearer {secret}"}


def test_without_tenants_this_machine_may_ask_for_anything() -> None:
    directory = Directory(PolicyDocument())
    caller = directory.identify(bearer("anything"), from_here=True)
    assert caller == Caller("anonymous", "standard", float("inf"))
    assert directory.openness == "no client on a network (no tenants)"


def test_without_tenants_nobody_else_may() -> None:
    with pytest.raises(ApiError) as refusal:
        Directory(PolicyDocument()).identify({}, from_here=False)
    assert refusal.value.status == 401
    assert "InferenceTenant" in refusal.value.message


def test_an_anonymous_class_opens_the_service_up_to_that_class() -> None:
    directory = Directory(PolicyDocument(anonymous_class="batch"))
    caller = directory.identify({}, from_here=False)
    assert (caller.default_class, caller.max_rank) == ("batch", -100)
    with pytest.raises(ApiError) as refusal:
        directory.class_of(caller, {b"x-weir-class": "standard"}, RequestBody())
    assert refusal.value.status == 403


def test_a_wrong_key_is_refused_even_where_no_key_would_do() -> None:
    directory = Directory(PolicyDocument(tenants=(entry(),), anonymous_class="batch"))
    assert directory.identify({}, from_here=False).tenant == "anonymous"
    assert directory.identify(bearer("sk-chat"), from_here=False).tenant == "chat"
    with pytest.raises(ApiError):
        directory.identify(bearer("sk-chatt"), from_here=True)


def test_only_delegates_name_whom_a_request_is_accounted_to() -> None:
    directory = Directory(PolicyDocument(tenants=(entry(), entry("gateway", delegates=True))))
    said = {b"x-llm-d-inference-fairness-id": "team-a"}
    chat = directory.identify(bearer("sk-chat"), from_here=False)
    gateway = directory.identify(bearer("sk-gateway"), from_here=False)
    assert directory.tenant_of(chat, said) == "chat"
    assert directory.tenant_of(gateway, said) == "team-a"
    assert directory.tenant_of(gateway, {}) == "gateway"


def test_a_default_class_above_the_highest_is_not_given() -> None:
    above = TenantEntry(TenantPolicy("chat"), "interactive", "batch", False, entry().key_hashes)
    directory = Directory(PolicyDocument(tenants=(above,)))
    caller = directory.identify(bearer("sk-chat"), from_here=False)
    assert directory.class_of(caller, {}, RequestBody()) == "batch"


def test_the_canonical_header_wins() -> None:
    directory = Directory(PolicyDocument())
    caller = directory.identify({}, from_here=True)
    said = {b"x-weir-class": "interactive", b"x-llm-d-inference-objective": "batch"}
    assert directory.class_of(caller, said, RequestBody()) == "batch"


def test_a_service_without_an_acceptable_class_says_so() -> None:
    directory = Directory(PolicyDocument(accepted_classes=("interactive",), tenants=(entry(),)))
    caller = directory.identify(bearer("sk-chat"), from_here=False)
    with pytest.raises(ApiError) as refusal:
        directory.class_of(caller, {}, RequestBody())
    assert refusal.value.status == 403


@given(
    max_class=st.sampled_from(NAMES),
    default_class=st.sampled_from(NAMES),
    accepted=st.lists(st.sampled_from(NAMES), unique=True),
    tier=st.sampled_from([None, "auto", "default", "flex", "priority", "scale", *NAMES]),
    priority=st.none() | st.integers(),
    header=st.none() | st.sampled_from([*NAMES, "unknown", ""]),
)
def test_no_wish_raises_a_request_above_its_callers_highest_class(
    max_class: str,
    default_class: str,
    accepted: list[str],
    tier: str | None,
    priority: int | None,
    header: str | None,
) -> None:
    most = max(max_class, default_class, key=RANKS.__getitem__)
    directory = Directory(PolicyDocument(accepted_classes=tuple(accepted)))
    caller = Caller("t", default_class, RANKS[most])
    said = {} if header is None else {b"x-weir-class": header}
    fields = RequestBody(service_tier=tier, priority=priority)
    with contextlib.suppress(ApiError):
        name = directory.class_of(caller, said, fields)
        assert RANKS[name] <= RANKS[most]
        assert not accepted or name in accepted


@pytest.mark.parametrize(
    ("address", "want"),
    [("127.0.0.1", True), ("127.0.1.7", True), ("::1", True), ("10.1.2.3", False), (None, False)],
)
def test_tells_this_machine_from_others(address: str | None, want: bool) -> None:
    assert is_here(address) is want


def test_a_target_is_in_milliseconds() -> None:
    assert ttft_target_s({b"x-slo-ttft-ms": "250"}) == 0.25
    assert ttft_target_s({}) is None
