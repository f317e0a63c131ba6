"""LeaderWorkerSet on the cluster under test: its real controller, by its own chart.

What differs here: the program is on the node, in no image.
"""

from __future__ import annotations

from typing import Any, Final

import yaml

from e2e.cluster import build, images
from e2e.eventually import eventually
from e2e.target import Target
from weir_operator.render.patch import patched

NAMESPACE: Final = "lws-system"
DEPLOYMENT: Final = "lws-controller-manager"
READY_WITHIN_S: Final = 120.0


def install(target: Target) -> None:
    """Install LeaderWorkerSet and wait until it takes objects."""
    folder = build.lws()
    target.kubectl.apply({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": NAMESPACE}})
    rendered = target.helm(
        "template", "lws", str(folder / "chart"), f"--namespace={NAMESPACE}", "--include-crds"
    )
    for manifest in filter(None, yaml.safe_load_all(rendered)):
        if manifest["kind"] == "Deployment":
            container: dict[str, Any] = {
                "name": "manager",
                "image": images.HOST,
                "imagePullPolicy": "Never",
                "command": [str(folder / "manager")],
                "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
                "volumeMounts": [
                    {"name": "program", "mountPath": str(folder), "readOnly": True},
                ],
            }
            pod = {
                "securityContext": {"runAsUser": 65532},
                "volumes": [{"name": "program", "hostPath": {"path": str(folder)}}],
                "containers": [container],
            }
            template = patched(manifest["spec"]["template"], {"spec": pod})
            manifest["spec"] = {**manifest["spec"], "replicas": 1, "template": template}
        target.kubectl.apply(manifest)

    def takes_objects() -> None:
        probe = {
            "apiVersion": "leaderworkerset.x-k8s.io/v1",
            "kind": "LeaderWorkerSet",
            "metadata": {"name": "probe", "namespace": NAMESPACE},
            "spec": {
                "replicas": 0,
                "leaderWorkerTemplate": {
                    "size": 1,
                    "workerTemplate": {"spec": {"containers": [{"name": "c", "image": "i"}]}},
                },
            },
        }
        done = target.kubectl.attempt(
            "create", "--dry-run=server", "--filename=-", stdin=yaml.safe_dump(probe)
        )
        assert done.code == 0, done

    eventually(takes_objects, within_s=READY_WITHIN_S)
