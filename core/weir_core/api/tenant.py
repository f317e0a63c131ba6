"""InferenceTenant: who sends a request, what it may ask for and how much of it."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from weir_core.api.base import DnsLabel, Model, ObjectMeta, keyed_by
from weir_core.api.model import SecretRef
from weir_core.api.status import Condition


class TenantLimits(Model):
    """Bounds on what one tenant has in flight and sends."""

    max_requests: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Requests waiting and running at once. Default: no limit."
    )
    tokens_per_minute: Annotated[int, Field(ge=1)] | None = Field(
        default=None, description="Prompt and output tokens in a minute. Default: no limit."
    )


class InferenceTenantSpec(Model):
    """A tenant's keys, classes and limits."""

    api_key_secret_ref: SecretRef = Field(
        description="Secret whose values are SHA-256 hashes of the tenant's API keys, in hex. "
        "Keys themselves are never stored."
    )
    default_class: DnsLabel = Field(
        default="standard", description="Class of requests that name none. Default: standard."
    )
    max_class: DnsLabel | None = Field(
        default=None,
        description="Highest class this tenant may ask for; a header lowers a request's class, "
        "never raises it above this. Default: defaultClass.",
    )
    delegates: bool = Field(
        default=False,
        description="Whether its requests may name the tenant they are accounted to, in the "
        "header x-llm-d-inference-fairness-id, as a gateway's do. Default: false.",
    )
    weight: Annotated[float, Field(ge=0.001, le=1000)] = Field(
        default=1.0, description="Share among tenants of a class. Default: 1."
    )
    limits: TenantLimits = Field(default=TenantLimits(), description="Default: no limits.")


class InferenceTenantStatus(Model):
    """What became of a tenant."""

    observed_generation: int = Field(default=0, description="Generation last acted upon.")
    keys: int = Field(default=0, description="API keys that its Secret holds.")
    conditions: tuple[Condition, ...] = Field(
        default=(),
        description="Accepted: the tenant is in force as it is written.",
        json_schema_extra=keyed_by("type"),
    )


class InferenceTenant(Model):
    """A client of the cluster's models."""

    api_version: Literal["serving.weir.dev/v1alpha1"] = "serving.weir.dev/v1alpha1"
    kind: Literal["InferenceTenant"] = "InferenceTenant"
    metadata: ObjectMeta
    spec: InferenceTenantSpec
    status: InferenceTenantStatus | None = None
