"""What runs on the node: the command line and the configuration file of each component.

Pure: `commands` and `files` only say what to run and what to write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.cluster import images
from e2e.cluster.layout import NODE, Layout

# On the node's private /run: short enough for a socket's path, and gone with the node.
CONTAINERD_SOCKET = "/run/containerd.sock"
CNI_PLUGINS = "/usr/lib/cni"

ETCD, API_SERVER, CONTAINERD = "etcd", "kube-apiserver", "containerd"
CONTROLLER_MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
KUBELET, PROXY = "kubelet", "kube-proxy"


def files(layout: Layout) -> dict[str, str]:
    """Return the configuration files by their path below the state folder."""
    return {
        "cni/10-bridge.conflist": json.dumps(_cni(layout)),
        "containerd.toml": _containerd(layout),
        "kubelet.yaml": json.dumps(_kubelet(layout)),
        "proxy.yaml": json.dumps(_proxy(layout)),
        "audit.yaml": json.dumps(AUDIT_POLICY),
        # Pods must not ask the host's name servers.
        "resolv.conf": "",
    }


def commands(layout: Layout, bin_dir: Path) -> dict[str, list[str]]:
    """Return the command line of each component."""
    state, pki = layout.state, layout.state / "pki"
    return {
        ETCD: [
            f"{bin_dir}/etcd", f"--data-dir={state}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        API_SERVER: _api_server(layout, bin_dir),
        CONTAINERD: ["containerd", "--config", f"{state}/containerd.toml"],
        CONTROLLER_MANAGER: [
            f"{bin_dir}/kube-controller-manager", "--leader-elect=false",
            f"--kubeconfig={pki}/controller-manager.kubeconfig",
            "--use-service-account-credentials", f"--root-ca-file={pki}/ca.crt",
            f"--service-account-private-key-file={pki}/sa.key",
            f"--cert-dir={state}/controller-manager",
            f"--flex-volume-plugin-dir={state}/flexvolume",
            "--controllers=*,-nodeipam,-route,-service,-cloud-node-lifecycle",
        ],
        SCHEDULER: [
            f"{bin_dir}/kube-scheduler", "--leader-elect=false",
            f"--kubeconfig={pki}/scheduler.kubeconfig", f"--cert-dir={state}/scheduler",
        ],
        KUBELET: [
            f"{bin_dir}/kubelet", f"--config={state}/kubelet.yaml",
            f"--kubeconfig={pki}/kubelet.kubeconfig", f"--hostname-override={NODE}",
            f"--node-ip={layout.gateway}", f"--root-dir={state}/kubelet",
        ],
        PROXY: [f"{bin_dir}/kube-proxy", f"--config={state}/proxy.yaml"],
    }  # fmt: skip


def _api_server(layout: Layout, bin_dir: Path) -> list[str]:
    state, pki = layout.state, layout.state / "pki"
    return [
        f"{bin_dir}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443", f"--advertise-address={layout.gateway}",
        f"--service-cluster-ip-range={layout.services}", "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        f"--cert-dir={state}/apiserver", f"--client-ca-file={pki}/ca.crt",
        f"--tls-cert-file={pki}/apiserver.crt", f"--tls-private-key-file={pki}/apiserver.key",
        f"--kubelet-client-certificate={pki}/apiserver.crt",
        f"--kubelet-client-key={pki}/apiserver.key",
        f"--kubelet-certificate-authority={pki}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={pki}/sa.pub",
        f"--service-account-signing-key-file={pki}/sa.key",
        f"--audit-policy-file={state}/audit.yaml", f"--audit-log-path={state}/audit.log",
    ]  # fmt: skip


# Who wrote what: enough to see two operators fight, or one write without need.
AUDIT_POLICY: dict[str, Any] = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    "omitStages": ["RequestReceived"],
    "rules": [
        {
            "level": "Metadata",
            "verbs": ["create", "update", "patch", "delete"],
            "userGroups": ["system:serviceaccounts:weir-system"],
        },
        {"level": "None"},
    ],
}


def _containerd(layout: Layout) -> str:
    return f'''version = 2
root = "{layout.state}/containerd"
state = "/run/containerd"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{CONTAINERD_SOCKET}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{layout.state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{layout.state}/cni"
'''


def _cni(layout: Layout) -> dict[str, Any]:
    ranges = [[{"subnet": layout.pods, "rangeStart": layout.first_pod}]]
    bridge = {
        "type": "bridge",
        "bridge": "pods0",
        "isGateway": True,
        "ipMasq": False,
        "hairpinMode": True,
        "ipam": {
            "type": "host-local",
            "ranges": ranges,
            "routes": [{"dst": "0.0.0.0/0"}],
            "dataDir": "/run/cni",
        },
    }
    return {"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]}


def _kubelet(layout: Layout) -> dict[str, Any]:
    pki = layout.state / "pki"
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{pki}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "address": layout.gateway,
        "readOnlyPort": 0,
        "tlsCertFile": f"{pki}/kubelet.crt",
        "tlsPrivateKeyFile": f"{pki}/kubelet.key",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD_SOCKET}",
        "resolvConf": f"{layout.state}/resolv.conf",
        "podLogsDir": f"{layout.state}/logs",
        "volumePluginDir": f"{layout.state}/flexvolume",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.id}",
        "failCgroupV1": False,
        "failSwapOn": False,
        # A laptop's disk may be nearly full; the tests write little.
        "evictionHard": {
            "nodefs.available": "0%",
            "imagefs.available": "0%",
            "memory.available": "50Mi",
        },
        "imageGCHighThresholdPercent": 100,
        "syncFrequency": "5s",
        "nodeStatusUpdateFrequency": "5s",
    }


def _proxy(layout: Layout) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": f"{layout.state}/pki/proxy.kubeconfig"},
        "mode": "iptables",
        "hostnameOverride": NODE,
        "clusterCIDR": layout.pods,
        # The kernel lets only the host's own network namespace change the table's size.
        "conntrack": {"maxPerCore": 0},
    }
