"""Names that operator, sidecar, engine and command line must agree on.

Each is defined here once; a manifest, a probe or a test that needs one imports it.
"""

from __future__ import annotations

from typing import Final

GROUP: Final = "serving.weir.dev"
VERSION: Final = "v1alpha1"
API_VERSION: Final = f"{GROUP}/{VERSION}"

FIELD_MANAGER: Final = "weir-operator"
PART_OF: Final = "weir"
GATEWAY: Final = "gateway"
"""Component of the pods that stand in for replicas."""
OPERATOR: Final = "operator"
"""Component of the operator's pods (helm/weir/templates/_helpers.tpl)."""
CONSOLE: Final = "console"
"""Component of the console's pods (helm/weir/templates/console.yaml)."""

# Label keys (recommended by Kubernetes) and our own.
NAME: Final = "app.kubernetes.io/name"
INSTANCE: Final = "app.kubernetes.io/instance"
COMPONENT: Final = "app.kubernetes.io/component"
PART_OF_LABEL: Final = "app.kubernetes.io/part-of"
MANAGED_BY: Final = "app.kubernetes.io/managed-by"
SERVICE: Final = f"{GROUP}/service"
POOL: Final = f"{GROUP}/pool"

WORKER_OF: Final = f"{GROUP}/worker-of"
"""On the pods of a replica that are not its leader, in place of `SERVICE`: the service. No Service
sends them requests, and no count of replicas has them."""

# What LeaderWorkerSet writes on the pods of a group, and into their containers.
GROUP_SET: Final = "leaderworkerset.sigs.k8s.io/name"
GROUP_REVISION: Final = "leaderworkerset.sigs.k8s.io/template-revision-hash"
ENV_LEADER: Final = "LWS_LEADER_ADDRESS"
"""NAME.SERVICE.NAMESPACE of the group's leader."""
ENV_RANK: Final = "LWS_WORKER_INDEX"
"""0 in the leader."""

# Annotations.
SPEC_HASH: Final = f"{GROUP}/spec-hash"
ONE_BY_ONE: Final = f"{GROUP}/one-by-one"
"""On a Deployment: the spec hash for whose rollout old pods leave before new ones have a node."""
REPLICAS_TO_COME: Final = f"{GROUP}/replicas"
"""On a Deployment that takes over from another pool: its replicas once it has done so."""
RESTARTED_AT: Final = f"{GROUP}/restarted-at"
SECRETS_MISSING: Final = f"{GROUP}/secrets-missing"
"""On a service's policies: since when each Secret of a tenant is gone, as JSON."""
ROTATE_PEER_KEY: Final = f"{GROUP}/rotate-peer-key"
"""On a service: another value makes another key. On its Secret: the value of the newest key."""

# Containers of a replica's pod.
SIDECAR_CONTAINER: Final = "sidecar"
ENGINE_CONTAINER: Final = "engine"
MODEL_CONTAINER: Final = "model"
ADAPTERS_CONTAINER: Final = "adapters"
"""Fetches adapters while the pod runs; there where the engine has room for any."""
MODELS_VOLUME: Final = "models"
"""Holds what is fetched."""

# Ports of the sidecar; the engine opens none.
API_PORT: Final = 8000
ADMIN_PORT: Final = 8001
PEER_PORT: Final = 8002
METRICS_PORT: Final = 8080
"""The operator's own metrics and probes."""

# Paths inside a pod. The two emptyDir volumes are shared by all of its containers.
RUN_DIR: Final = "/run/weir"
MODEL_DIR: Final = "/models"
ENGINE_SOCKET: Final = "engine.sock"
FACTS_FILE: Final = "engine.json"
"""What the engine says of itself at start (`wire.steps.Facts`)."""
STEPS_SOCKET: Final = "steps.sock"
"""Datagrams from the engine, one per step (`wire.steps.Step`); the sidecar binds it."""
MODE_SOCKET: Final = "mode.sock"
"""Datagrams to the engine: `wire.policies.EngineMode` as JSON; the engine binds it."""
ADMIN_SOCKET: Final = "admin.sock"
ADAPTERS_FILE: Final = "adapters.json"
"""What was fetched (`wire.adapters.Fetched`), for the sidecar."""
ALIASES_PATH: Final = "/weir/aliases"
"""Of the engine: its aliases (`wire.adapters.Aliases`) are put there."""

POLICIES_DIR: Final = "/etc/weir/policies"
"""Where a sidecar finds the document of classes and tenants (`wire.policies.PolicyDocument`)."""
POLICIES_FILE: Final = "policies.json"
POLICIES_VOLUME: Final = "policies"

COMPILED_DIR: Final = "/var/cache/weir"
"""Where an engine keeps what it compiles, if that is to outlive its pod."""

# Environment of the sidecar.
ENV_SERVICE: Final = "WEIR_SERVICE"
ENV_NAMESPACE: Final = "WEIR_NAMESPACE"
ENV_POOL: Final = "WEIR_POOL"
ENV_POD_NAME: Final = "WEIR_POD_NAME"
ENV_POD_IP: Final = "WEIR_POD_IP"
"""Where the other sidecars of the service reach this one, with the peer port."""
ENV_MODEL_NAME: Final = "WEIR_MODEL_NAME"
ENV_RUN_DIR: Final = "WEIR_RUN_DIR"
ENV_HOST: Final = "WEIR_HOST"
ENV_ADAPTER_SLOTS: Final = "WEIR_ADAPTER_SLOTS"
"""Adapters that the engine beside it has room for."""
ENV_MAX_BODY_BYTES: Final = "WEIR_MAX_BODY_BYTES"
ENV_MAX_REQUESTS: Final = "WEIR_MAX_REQUESTS"
ENV_GRACE_PERIOD_S: Final = "WEIR_GRACE_PERIOD_S"
ENV_POLICIES_DIR: Final = "WEIR_POLICIES_DIR"
"""POLICIES_DIR when it is not set."""
ENV_LAME_DUCK_S: Final = "WEIR_LAME_DUCK_S"
ENV_CORS: Final = "WEIR_CORS"
"""`wire.cors.Cors` as JSON; vLLM's defaults when it is not set."""

# Environment of the engine and the model container: `wire.engine.EngineConfig` as JSON.
ENV_ENGINE_CONFIG: Final = "WEIR_ENGINE_CONFIG"
ENV_MODEL_DIR: Final = "WEIR_MODEL_DIR"
"""Where this container finds weights; MODEL_DIR when it is not set."""
