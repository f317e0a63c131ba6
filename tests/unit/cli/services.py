"""A service of the tests in parts: one tenant, its keys, one class; planned on a machine."""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from pathlib import Path
from secrets import token_hex
from typing import Final

from weir_cli.documents import Documents
from weir_cli.plan import Ground, ServicePlan, plan_services

HASH: Final = hashlib.sha256(b"k").hexdigest()
SERVICE: Final = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {name: chat}
spec:
  model: {name: tiny, source: {uri: "tiny://"}}
  pools: [{name: cpu, accelerator: {count: 0}}]
"""
TENANT: Final = """\
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceTenant
metadata: {name: app}
spec: {apiKeySecretRef: {name: app-keys}}
"""
KEYS: Final = f"""\
---
apiVersion: v1
kind: Secret
metadata: {{name: app-keys}}
stringData: {{a: {HASH}}}
"""
GOLD: Final = """\
---
apiVersion: serving.weir.dev/v1alpha1
kind: InferencePriorityClass
metadata: {name: standard}
spec: {rank: 9}
"""
ANONYMOUS: Final = SERVICE + "  admission: {anonymousClass: standard}\n"


def written(folder: Path, *parts: str) -> Path:
    path = folder / "weir.yaml"
    path.write_text("".join(parts))
    return path


def planned(found: Documents, host: str = "127.0.0.1") -> ServicePlan:
    ground = Ground(host, 8080, Path("/scratch"), Path("/cache"), ())
    with ExitStack() as claims:
        (plan,) = plan_services(found, ground, claims, lambda: token_hex(32))
    return plan
