"""Keys and certificates: one identity per component, as RBAC expects them.

Two authorities: one for them all, and one for the name under which the API server passes requests
on to the servers of aggregated APIs, which must take nothing else for it.
"""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.layout import FIRST, SECOND, Layout, Worker

VALID_DAYS = 30
_NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")


@dataclass(frozen=True)
class Identity:
    """A certificate to issue: who it speaks for, and the addresses it may serve.

    Args:
        authority: File of the authority that issues it.
    """

    file: str
    user: str
    group: str = ""
    addresses: tuple[str, ...] = ()
    authority: str = "ca"

    @property
    def subject(self) -> str:
        """The name in the certificate."""
        return f"{f'/O={self.group}' if self.group else ''}/CN={self.user}"


ADMIN = Identity("admin", "admin", "system:masters")
CONTROLLER_MANAGER = Identity("controller-manager", "system:kube-controller-manager")
SCHEDULER = Identity("scheduler", "system:kube-scheduler")
PROXY = Identity("proxy", "system:kube-proxy")
FRONT_PROXY = Identity("front-proxy", "front-proxy-client", authority="front-proxy-ca")
CLIENTS = (ADMIN, CONTROLLER_MANAGER, SCHEDULER, PROXY)


def kubelet(layout: Layout, worker: Worker) -> Identity:
    """Return a worker's identity; it serves logs and exec with it, too."""
    addresses = (f"IP:{layout.address(worker)}", f"DNS:{worker.name}")
    return Identity(worker.name, f"system:node:{worker.name}", "system:nodes", addresses)


def api_server(layout: Layout) -> Identity:
    """Return the API server's identity; it calls the kubelet with it, too."""
    addresses = (
        f"IP:{layout.gateway}",
        f"IP:{layout.api_service}",
        "IP:127.0.0.1",
        "DNS:kubernetes.default.svc",
    )
    return Identity("apiserver", "kube-apiserver-kubelet-client", "system:masters", addresses)


def issue_all(layout: Layout) -> None:
    """Write the authorities, every certificate, the service-account key and the kubeconfigs."""
    pki = layout.state / "pki"
    pki.mkdir(mode=0o700)
    for authority in ("ca", FRONT_PROXY.authority):
        issue = ("-x509", *_NEW_KEY, "-days", str(VALID_DAYS), "-subj", f"/CN=weir-e2e-{authority}")
        files = ("-out", pki / f"{authority}.crt", "-keyout", pki / f"{authority}.key")
        _openssl("req", *issue, *files)
    _openssl("genrsa", "-out", pki / "sa.key", "2048")
    _openssl("rsa", "-in", pki / "sa.key", "-pubout", "-out", pki / "sa.pub")
    kubelets = [kubelet(layout, worker) for worker in (FIRST, SECOND)]
    for identity in (api_server(layout), FRONT_PROXY, *kubelets, *CLIENTS):
        _issue(pki, identity)
    for identity in (*kubelets, *CLIENTS):
        _write_kubeconfig(layout, identity)
    layout.kubeconfig.write_bytes((pki / "admin.kubeconfig").read_bytes())
    layout.kubeconfig.chmod(0o600)


def _issue(pki: Path, identity: Identity) -> None:
    names = [f"subjectAltName={','.join(identity.addresses)}"] if identity.addresses else []
    _openssl(
        "req", "-x509", *_NEW_KEY, "-days", str(VALID_DAYS), "-subj", identity.subject,
        "-CA", pki / f"{identity.authority}.crt", "-CAkey", pki / f"{identity.authority}.key",
        "-addext", "basicConstraints=critical,CA:FALSE",
        *(word for name in names for word in ("-addext", name)),
        "-out", pki / f"{identity.file}.crt", "-keyout", pki / f"{identity.file}.key",
    )  # fmt: skip


def _write_kubeconfig(layout: Layout, identity: Identity) -> None:
    pki = layout.state / "pki"
    cluster = {
        "server": f"https://{layout.gateway}:6443",
        "certificate-authority": str(pki / "ca.crt"),
    }
    user = {
        "client-certificate": str(pki / f"{identity.file}.crt"),
        "client-key": str(pki / f"{identity.file}.key"),
    }
    name = layout.id
    config = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": name, "cluster": cluster}],
        "users": [{"name": identity.user, "user": user}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": identity.user}}],
        "current-context": name,
    }
    (pki / f"{identity.file}.kubeconfig").write_text(json.dumps(config, indent=1))


def _openssl(*arguments: str | Path) -> None:
    done = subprocess.run(
        ["openssl", *map(str, arguments)], capture_output=True, text=True, check=False, timeout=60
    )
    if done.returncode:
        raise ClusterError(f"openssl {arguments[0]} failed: {done.stderr.strip()}")
