"""A policy document that a sidecar cannot work with is refused as a whole."""

from __future__ import annotations

from dataclasses import replace

import pytest

from weir_core.sched.types import BUILT_IN_CLASSES, ClassPolicy, TenantPolicy
from weir_core.wire.policies import PolicyDocument, TenantEntry

HASH = "0a" * 32


def tenant(name: str = "app", *hashes: str, most: str = "standard") -> TenantEntry:
    return TenantEntry(TenantPolicy(name), "standard", most, key_hashes=hashes or (HASH,))


def test_a_good_one_comes_back_as_it_was() -> None:
    whole = PolicyDocument(BUILT_IN_CLASSES, (tenant(),), "batch", ("batch",), "batch")
    assert PolicyDocument.decode(whole.encode()) == whole
    assert PolicyDocument.decode(b"{}") == PolicyDocument()
    assert PolicyDocument.decode(b'{"new":1}') == PolicyDocument()


GOLD = ClassPolicy("standard", rank=1)


@pytest.mark.parametrize(
    ("document", "said"),
    [
        pytest.param(
            PolicyDocument(tenants=(tenant("app", "zz" * 32),)), "tenant app: a key hash", id="hex"
        ),
        pytest.param(
            PolicyDocument(tenants=(tenant("app", "0a"),)), "tenant app: a key hash", id="short"
        ),
        pytest.param(
            PolicyDocument(tenants=(tenant("app", HASH.upper()),)),
            "tenant app: a key hash",
            id="upper case, which no key has",
        ),
        pytest.param(
            PolicyDocument(tenants=(tenant("a"), tenant("b"))),
            "tenants a and b have one key",
            id="one key of two",
        ),
        pytest.param(
            PolicyDocument(tenants=(tenant(), tenant())), "tenant app is there twice", id="twice"
        ),
        pytest.param(
            PolicyDocument(tenants=(tenant(most="gold"),)),
            "tenant app: max_class: there is no class gold",
            id="a tenant's class",
        ),
        pytest.param(
            PolicyDocument(default_class="gold"), "default_class: there is no class gold", id="own"
        ),
        pytest.param(
            PolicyDocument(accepted_classes=("batch", "gold")),
            r"accepted_classes\[1\]: there is no class gold",
            id="accepted",
        ),
        pytest.param(
            PolicyDocument(anonymous_class="gold"),
            "anonymous_class: there is no class gold",
            id="anonymous",
        ),
        pytest.param(
            PolicyDocument((GOLD, replace(GOLD, rank=2))),
            "class standard is there twice",
            id="a class twice",
        ),
        pytest.param(
            PolicyDocument((replace(GOLD, min_share=1.5),)), "min_share 1.5 is not", id="a share"
        ),
        pytest.param(
            PolicyDocument((replace(GOLD, min_share=0.6), replace(GOLD, name="b", min_share=0.6))),
            "add up to 1.2",
            id="too many shares",
        ),
        pytest.param(
            PolicyDocument((replace(GOLD, rank=10**7),)), "rank 10000000 is beyond", id="a rank"
        ),
        pytest.param(
            PolicyDocument((replace(GOLD, max_queue_wait_s=-1.0),)), "-1 is below 0", id="a wait"
        ),
        pytest.param(
            PolicyDocument((replace(GOLD, weight=0.0),)), "is not above 0", id="no weight"
        ),
        pytest.param(
            PolicyDocument(
                tenants=(TenantEntry(TenantPolicy("app", max_requests=0), "batch", "batch"),)
            ),
            "tenant app: its weight or a limit",
            id="a limit of nothing",
        ),
    ],
)
def test_one_that_cannot_be_used_is_refused_with_a_reason(
    document: PolicyDocument, said: str
) -> None:
    with pytest.raises(ValueError, match=said):
        PolicyDocument.decode(document.encode())


@pytest.mark.parametrize("data", [b"", b"[]", b'{"classes":1}', b"\xff"])
def test_what_is_no_document_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        PolicyDocument.decode(data)
