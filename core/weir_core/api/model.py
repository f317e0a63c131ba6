"""The model of an InferenceService: its names, and where its weights come from."""

from __future__ import annotations

from typing import Annotated

from pydantic import ConfigDict, Field

from weir_core.api.base import Model, keyed_by, rules

URI_PATTERN = r"^(tiny://[a-z0-9-]*|(hf|s3|gs|az|pvc|oci|file)://[^\s]+)$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9_./:]*[A-Za-z0-9])?$"
ModelName = Annotated[str, Field(pattern=MODEL_NAME_PATTERN, max_length=253)]
Uri = Annotated[str, Field(pattern=URI_PATTERN, max_length=1024)]


class SecretRef(Model):
    """A Secret in the same namespace."""

    name: str = Field(description="Name of the Secret.", min_length=1, max_length=253)


class Source(Model):
    """Where the weights come from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            (
                "!has(self.secretRef) || self.uri.matches('^(hf|s3|gs|az)://')",
                "secretRef is used by hf://, s3://, gs:// and az:// sources only",
            ),
        )
    )

    uri: Uri = Field(
        description="Where the weights are: hf://ORG/MODEL[/FOLDER][@REVISION], s3://BUCKET/PATH, "
        "gs://BUCKET/PATH, az://CONTAINER/PATH, pvc://CLAIM/PATH, oci://IMAGE (mounted as an image "
        "volume), file:///PATH (on the node), or tiny:// for a small generated model that needs no "
        "download."
    )
    secret_ref: SecretRef | None = Field(
        default=None,
        description="Secret whose keys become environment variables of the download, for example "
        "HF_TOKEN or AWS_ACCESS_KEY_ID. All sources of one scheme that name a Secret name the same "
        "one. Default: anonymous.",
    )


class Adapter(Model):
    """A LoRA adapter, served as a model of its own name."""

    name: ModelName = Field(description="Name clients ask for.")
    source: Source = Field(description="Where the adapter's weights come from.")


class ModelSpec(Model):
    """The model and the names clients call it by."""

    name: ModelName = Field(
        description="Name clients send as `model`. Cannot be changed: it is what clients, "
        "dashboards and caches know the service by.",
        json_schema_extra=rules(("self == oldSelf", "the model's name cannot be changed")),
    )
    aliases: tuple[ModelName, ...] = Field(
        default=(), description="Further names for the same model. Default: none.", max_length=16
    )
    source: Source = Field(description="Where the weights come from.")
    adapters: tuple[Adapter, ...] = Field(
        default=(),
        description="LoRA adapters served beside the model. Default: none.",
        max_length=32,
        json_schema_extra=keyed_by("name"),
    )
