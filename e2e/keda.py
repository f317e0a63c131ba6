"""KEDA on the cluster under test: the real operator and its metrics adapter.

Its own manifests, with what differs here: the programs are on the node, in no image, there is no
admission webhook, and names are in /etc/hosts, because there is no cluster DNS.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Final

import yaml

from e2e.cluster import build, images
from e2e.kube import Kubectl, Manifest
from weir_operator.render.patch import patched

NAMESPACE: Final = "keda"
_PROGRAMS: Final = {"keda-operator": "operator", "keda-metrics-apiserver": "adapter"}
"""By Deployment; a Service of each has the same name."""
_DEFINITION: Final = "CustomResourceDefinition"
_LEFT_OUT: Final = {_DEFINITION, "ValidatingWebhookConfiguration"}


def install(kubectl: Kubectl, hosts: dict[str, str]) -> list[Manifest]:
    """Install KEDA and wait until HPAs can ask it; return what to delete afterwards.

    Args:
        kubectl: Of the cluster.
        hosts: Names of scalers and their addresses.
    """
    folder = build.keda()
    everything = list(yaml.safe_load_all(kubectl("kustomize", str(folder / "config/default"))))
    definitions = [each for each in everything if each["kind"] == _DEFINITION]
    others = [each for each in everything if each["kind"] not in _LEFT_OUT]
    others = [each for each in others if "admission" not in each["metadata"]["name"]]
    for manifest in definitions:
        kubectl.apply(manifest)
    for manifest in others:
        if manifest["kind"] not in ("Deployment", "APIService"):
            kubectl.apply(manifest)
    known = {
        f"{name}.{NAMESPACE}.svc.cluster.local": address_of(kubectl, name, NAMESPACE)
        for name in _PROGRAMS
    }
    for manifest in others:
        if manifest["kind"] == "Deployment":
            kubectl.apply(_here(manifest, folder, {**hosts, **known}))
    for manifest in others:
        if manifest["kind"] == "APIService":
            kubectl.apply(manifest)
            name = f"apiservice/{manifest['metadata']['name']}"
            kubectl("wait", "--for=condition=Available", name, "--timeout=120s", timeout_s=150)
    return [*definitions, *others]


def uninstall(kubectl: Kubectl, everything: list[Manifest]) -> None:
    """Delete it; an aggregated API that is gone would disturb all discovery, so that goes first."""
    everything = sorted(everything, key=lambda each: each["kind"] != "APIService")
    kubectl(
        "delete", "--ignore-not-found", "--wait=false", "--filename=-",
        stdin=yaml.safe_dump_all(everything),
    )  # fmt: skip


def address_of(kubectl: Kubectl, service: str, namespace: str) -> str:
    """Return the address of a Service."""
    return str(kubectl.get("service", service, namespace)["spec"]["clusterIP"])


def _here(deployment: Manifest, folder: Path, hosts: dict[str, str]) -> Manifest:
    """Return a Deployment of KEDA's own as it runs on this cluster."""
    name = deployment["metadata"]["name"]
    container: dict[str, Any] = {
        "name": name,
        "image": images.HOST,
        "imagePullPolicy": "Never",
        "command": [str(folder / _PROGRAMS[name])],
        "resources": {"requests": {"cpu": "10m", "memory": "64Mi"}},
        "readinessProbe": {"initialDelaySeconds": 1, "periodSeconds": 1},
        "volumeMounts": [{"name": "programs", "mountPath": str(folder), "readOnly": True}],
    }
    pod = {
        "securityContext": {"runAsUser": 65532},
        "hostAliases": [{"ip": ip, "hostnames": [host]} for host, ip in hosts.items()],
        "volumes": [{"name": "programs", "hostPath": {"path": str(folder)}}],
        "containers": [container],
    }
    template = patched(deployment["spec"]["template"], {"spec": pod})
    return {**deployment, "spec": {**deployment["spec"], "template": template}}
