"""The model of an InferenceService: its names, and where its weights come from."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Final, Literal

from pydantic import ConfigDict, Field, model_validator

from weir_core.api.base import (
    NAMES_DIFFER,
    SUBDOMAIN_PATTERN,
    Contradiction,
    Integer,
    Model,
    Rule,
    Switch,
    keyed_by,
    none_of,
    rules,
    text,
)

FETCHED: Final = ("hf", "s3", "gs", "az")
"""Schemes whose sources are downloaded, with a Secret where one is named."""

URI_PATTERN = r"^(tiny://[a-z0-9-]*|(hf|s3|gs|az|pvc|oci|file)://[^\s]+)$"
MODEL_NAME_PATTERN = r"^[A-Za-z0-9]([-A-Za-z0-9_./:]*[A-Za-z0-9])?$"
NAME_SAYS: Final = (
    "is not a model's name; begin and end with a letter or a digit, with letters, digits and "
    "-_./: between them, like qwen3-8b"
)
URI_SAYS: Final = (
    "is not a source; write hf://ORG/MODEL[/FOLDER][@REVISION], s3://BUCKET/PATH, "
    "gs://BUCKET/PATH, az://CONTAINER/PATH, pvc://CLAIM/PATH, oci://IMAGE, file:///PATH or tiny://"
)
SECRET_UNUSED: Final = (
    f"only sources with {', '.join(f'{each}://' for each in FETCHED)} are downloaded with a "
    "Secret; leave secretRef out"
)
SECRET_NAME_SAYS: Final = (
    "is not the name of a Secret; write small letters, digits, dashes and dots only, like hf-token"
)
ModelName = Annotated[str, text(MODEL_NAME_PATTERN, NAME_SAYS, 253)]
Uri = Annotated[str, text(URI_PATTERN, URI_SAYS, 1024)]


class SecretRef(Model):
    """A Secret in the same namespace."""

    name: Annotated[str, text(SUBDOMAIN_PATTERN, SECRET_NAME_SAYS, 253)] = Field(
        description="Name of the Secret."
    )


class Source(Model):
    """Where the weights come from."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                f"!has(self.secretRef) || self.uri.matches('^({'|'.join(FETCHED)})://')",
                SECRET_UNUSED,
                field=".secretRef",
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

    @model_validator(mode="after")
    def _uses_its_secret(self) -> Source:
        unused = self.secret_ref is not None and self.uri.partition("://")[0] not in FETCHED
        found = [Contradiction(("secretRef",), SECRET_UNUSED)] if unused else []
        return none_of(self, found)


WHOLE_MODEL: Final = "tiny:// is a whole model, and no adapter; write where the adapter is"
MOST_ADAPTERS: Final = 32
SLOTS_BY_DEFAULT: Final = (4, 8, 16, MOST_ADAPTERS)
AdapterRank = Literal[1, 8, 16, 32, 64, 128, 256, 320, 512]
"""Those of vLLM."""


class Adapter(Model):
    """A LoRA adapter, served as a model of its own name."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("!self.source.uri.startsWith('tiny://')", WHOLE_MODEL, field=".source.uri"),
        )
    )

    name: ModelName = Field(description="Name clients ask for.")
    source: Source = Field(description="Where the adapter's weights come from.")

    @model_validator(mode="after")
    def _is_no_model(self) -> Adapter:
        is_model = self.source.uri.startswith("tiny://")
        return none_of(self, [Contradiction(("source", "uri"), WHOLE_MODEL)] if is_model else [])


CLAIM_SAYS: Final = (
    "is not the name of a claim; write small letters, digits, dashes and dots only, like models"
)
NODE_PATH_PATTERN = r"^(/([^./\s][^/\s]*|\.[^./\s][^/\s]*|\.\.[^/\s]+))+$"
NODE_PATH_SAYS: Final = (
    "is not a directory of a node; write an absolute path without . and .., and without a slash "
    "at its end, like /var/lib/weir/models"
)
ONE_CACHE: Final = "is in one place; write claimName or hostPath, and not both"
NO_PREFETCH: Final = (
    "fills a claim; a directory of a node is filled by the first replica there, so leave prefetch "
    "out"
)
CACHED: Final = ("tiny", *FETCHED)
NOTHING_CACHED: Final = (
    "holds what is downloaded, and this source is a volume already; leave cache out"
)


class Cache(Model):
    """Where downloaded models are kept for all replicas and later ones."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule("has(self.claimName) != has(self.hostPath)", ONE_CACHE),
            Rule(
                "!has(self.prefetch) || !self.prefetch || !has(self.hostPath)",
                NO_PREFETCH,
                field=".prefetch",
            ),
        )
    )

    claim_name: Annotated[str, text(SUBDOMAIN_PATTERN, CLAIM_SAYS, 253)] | None = Field(
        default=None,
        description="PersistentVolumeClaim in the same namespace, which exists already. Replicas "
        "on several nodes need one of access mode ReadWriteMany. Default: none.",
    )
    host_path: Annotated[str, text(NODE_PATH_PATTERN, NODE_PATH_SAYS, 1024)] | None = Field(
        default=None,
        description="Directory of each node, which user 65532 may write to. The cluster may forbid "
        "it: Pod Security Standards do, but for `privileged`. Default: none.",
    )
    prefetch: Switch = Field(
        default=False,
        description="Whether a Job fills the claim at once, without waiting for a replica. "
        "Default: false.",
    )
    compiled: Switch = Field(
        default=False,
        description="Whether what engines compile (torch.compile, Triton) and find out about a "
        "model is kept there, too. Untested on GPUs. Default: false.",
    )

    @model_validator(mode="after")
    def _is_in_one_place(self) -> Cache:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        if (self.claim_name is None) == (self.host_path is None):
            yield Contradiction((), ONE_CACHE)
        if self.prefetch and self.host_path is not None:
            yield Contradiction(("prefetch",), NO_PREFETCH)


TAKEN: Final = "the model has this name itself; give the adapter another one"
FEW_SLOTS: Final = (
    "is less than the number of adapters that are listed; write that number or more, or leave it "
    "out"
)


class ModelSpec(Model):
    """The model and the names clients call it by."""

    model_config = ConfigDict(
        json_schema_extra=rules(
            Rule(
                "!has(self.adapters) || self.adapters.all(a, a.name != self.name && "
                "(!has(self.aliases) || !(a.name in self.aliases)))",
                TAKEN,
                field=".adapters",
            ),
            Rule(
                "!has(self.adapterSlots) || !has(self.adapters) || "
                "self.adapters.size() <= self.adapterSlots",
                FEW_SLOTS,
                field=".adapterSlots",
            ),
            Rule(
                f"!has(self.cache) || self.source.uri.matches('^({'|'.join(CACHED)})://')",
                NOTHING_CACHED,
                field=".cache",
            ),
        )
    )

    name: Annotated[
        str,
        text(
            MODEL_NAME_PATTERN,
            NAME_SAYS,
            253,
            Rule("self == oldSelf", "the model's name cannot be changed"),
        ),
    ] = Field(
        description="Name clients send as `model`. Cannot be changed: it is what clients, "
        "dashboards and caches know the service by.",
    )
    aliases: tuple[ModelName, ...] = Field(
        default=(), description="Further names for the same model. Default: none.", max_length=16
    )
    source: Source = Field(description="Where the weights come from.")
    cache: Cache | None = Field(
        default=None,
        description="Where downloads are kept, for all replicas of all services that name the same "
        "place; a change replaces the pods. Default: each pod has its own.",
    )
    adapters: Annotated[tuple[Adapter, ...], NAMES_DIFFER] = Field(
        default=(),
        description="LoRA adapters served beside the model. They are loaded and unloaded while "
        "the engine runs; one that needs a volume or a Secret which the pods lack replaces them. "
        "Default: none.",
        max_length=MOST_ADAPTERS,
        json_schema_extra=keyed_by("name"),
    )
    adapter_slots: Annotated[Integer, Field(ge=0, le=MOST_ADAPTERS)] | None = Field(
        default=None,
        description="Adapters the engine has room for; a change replaces the pods. Default: 0 "
        "without adapters, else 4, 8, 16 or 32, the least that holds those that are listed.",
    )
    adapter_rank: AdapterRank = Field(
        default=16,
        description="Highest LoRA rank of an adapter; a change replaces the pods. Default: 16.",
    )

    @model_validator(mode="after")
    def _has_its_names_alone(self) -> ModelSpec:
        return none_of(self, self._wrong())

    def _wrong(self) -> Iterator[Contradiction]:
        for index, adapter in enumerate(self.adapters):
            if adapter.name in (self.name, *self.aliases):
                yield Contradiction(("adapters", index, "name"), f"{adapter.name!r}: {TAKEN}")
        if self.adapter_slots is not None and self.adapter_slots < len(self.adapters):
            yield Contradiction(("adapterSlots",), f"{self.adapter_slots} {FEW_SLOTS}")
        if self.cache is not None and self.source.uri.partition("://")[0] not in CACHED:
            yield Contradiction(("cache",), NOTHING_CACHED)

    @property
    def slots(self) -> int:
        """Adapters that the engine has room for."""
        if self.adapter_slots is not None:
            return self.adapter_slots
        listed = len(self.adapters)
        return next(each for each in SLOTS_BY_DEFAULT if listed <= each) if listed else 0
