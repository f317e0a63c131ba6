"""What the API server says, as what the operator should do about it."""

from __future__ import annotations

import json

import pytest
from kubernetes.aio.client.exceptions import ApiException

from weir_core.errors import ClusterRefuses, ClusterUnavailable, InvalidSpec, WeirError
from weir_operator.cluster import translated


@pytest.mark.parametrize(
    ("status", "about", "want"),
    [
        pytest.param(400, "Deployment chat-cpu", InvalidSpec, id="an unknown field"),
        pytest.param(422, "Deployment chat-cpu", InvalidSpec, id="an invalid value"),
        pytest.param(403, "Deployment chat-cpu", ClusterRefuses, id="no rights, quota or webhook"),
        pytest.param(409, "Deployment chat-cpu", ClusterUnavailable, id="a conflict"),
        pytest.param(429, "", ClusterUnavailable, id="overload"),
        pytest.param(503, "", ClusterUnavailable, id="an outage"),
        pytest.param(401, "", ClusterUnavailable, id="a token that is being replaced"),
        pytest.param(400, "", ClusterUnavailable, id="a bad read is no fault of the spec"),
    ],
)
def test_translates(status: int, about: str, want: type[WeirError]) -> None:
    error = ApiException(status=status, reason="Because")
    error.body = json.dumps({"message": "the reason why"})
    found = translated(error, about)
    assert type(found) is want
    assert "the reason why" in str(found)


@pytest.mark.parametrize(
    ("message", "want"),
    [
        pytest.param(".spec.x: field not declared in schema", InvalidSpec, id="a misspelt field"),
        pytest.param("etcdserver: request timed out", ClusterUnavailable, id="a real failure"),
    ],
)
def test_an_internal_error_may_be_the_specs(message: str, want: type[WeirError]) -> None:
    error = ApiException(status=500, reason="Internal Server Error")
    error.body = json.dumps({"message": f"failed to create typed patch object: {message}"})
    assert type(translated(error, "Deployment chat-cpu")) is want


@pytest.mark.parametrize(
    ("status", "message"),
    [
        pytest.param(
            400, 'admission webhook "v.example.com" denied the request: no', id="a webhook"
        ),
        pytest.param(
            422,
            "deployments.apps \"chat\" is forbidden: ValidatingAdmissionPolicy 'p' with binding "
            "'b' denied request: no",
            id="a policy",
        ),
        pytest.param(
            500,
            'Internal error occurred: failed calling webhook "v.example.com": context deadline',
            id="a webhook that is down",
        ),
    ],
)
def test_what_an_admission_controller_refuses_is_no_fault_of_the_spec(
    status: int, message: str
) -> None:
    error = ApiException(status=status, reason="Because")
    error.body = json.dumps({"message": message})
    found = translated(error, "Deployment chat-cpu")
    assert type(found) is ClusterRefuses
    assert message in str(found)


@pytest.mark.parametrize(
    ("message", "says_so"),
    [
        pytest.param(
            'jobs.batch is forbidden: User "system:serviceaccount:w:w" cannot list resource "jobs"',
            True,
            id="a right",
        ),
        pytest.param('jobs "a" is forbidden: exceeded quota: q', False, id="a quota"),
    ],
)
def test_a_missing_right_is_told_with_what_grants_it(message: str, says_so: bool) -> None:
    error = ApiException(status=403, reason="Forbidden")
    error.body = json.dumps({"message": message})
    said = str(translated(error, ""))
    assert said.startswith(f"the API server refuses: {message}")
    assert ("helm upgrade" in said) is says_so
