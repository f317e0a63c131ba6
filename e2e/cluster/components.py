"""What runs on the node: the command line and the configuration file of each component.

Pure: `commands` and `files` only say what to run and what to write.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from e2e.cluster import images, pki
from e2e.cluster.layout import FIRST, Layout, Worker

CNI_PLUGINS = "/usr/lib/cni"

ETCD, API_SERVER, CONTAINERD = "etcd", "kube-apiserver", "containerd"
CONTROLLER_MANAGER, SCHEDULER = "kube-controller-manager", "kube-scheduler"
KUBELET, PROXY, DNS = "kubelet", "kube-proxy", "coredns"

DOMAIN = "cluster.local"

REGISTRY = "127.0.0.1:5000"
"""Where the containerds ask without TLS, should a scenario have a registry there."""


def files(layout: Layout) -> dict[str, str]:
    """Return the configuration files by their path below the state folder."""
    return {
        "cni/10-bridge.conflist": json.dumps(_cni(layout)),
        **worker_files(layout, FIRST),
        "proxy.yaml": json.dumps(_proxy(layout)),
        "audit.yaml": json.dumps(AUDIT_POLICY),
        f"registries/{REGISTRY}/hosts.toml": f'server = "http://{REGISTRY}"\n',
        # Pods must not ask the host's name servers.
        "resolv.conf": "",
        **({"Corefile": _corefile(layout)} if layout.dns else {}),
    }


def worker_files(layout: Layout, worker: Worker) -> dict[str, str]:
    """Return the configuration files of a worker by their path below the state folder."""
    return {
        f"{worker.name}/containerd.toml": _containerd(layout, worker),
        f"{worker.name}/kubelet.yaml": json.dumps(_kubelet(layout, worker)),
    }


def containerd_socket(worker: Worker) -> str:
    """Return where a worker's containerd listens.

    On the node's private /run: short enough for a socket's path, and gone with the node.
    """
    return f"/run/containerd-{worker.number}.sock"


def commands(layout: Layout, bin_dir: Path) -> dict[str, list[str]]:
    """Return the command line of each component of the control plane."""
    state, keys = layout.state, layout.state / "pki"
    return {
        ETCD: [
            f"{bin_dir}/etcd", f"--data-dir={state}/etcd", "--unsafe-no-fsync",
            "--listen-client-urls=http://127.0.0.1:2379",
            "--advertise-client-urls=http://127.0.0.1:2379",
            "--listen-peer-urls=http://127.0.0.1:2380",
        ],
        API_SERVER: _api_server(layout, bin_dir),
        CONTROLLER_MANAGER: [
            f"{bin_dir}/kube-controller-manager", "--leader-elect=false",
            f"--kubeconfig={keys}/controller-manager.kubeconfig",
            "--use-service-account-credentials", f"--root-ca-file={keys}/ca.crt",
            f"--service-account-private-key-file={keys}/sa.key",
            f"--cert-dir={state}/controller-manager",
            f"--flex-volume-plugin-dir={state}/flexvolume",
            "--controllers=*,-nodeipam,-route,-service,-cloud-node-lifecycle",
            # An HPA decides once in so long; scenarios wait for several decisions.
            "--horizontal-pod-autoscaler-sync-period=1s",
        ],
        SCHEDULER: [
            f"{bin_dir}/kube-scheduler", "--leader-elect=false",
            f"--kubeconfig={keys}/scheduler.kubeconfig", f"--cert-dir={state}/scheduler",
        ],
        PROXY: [f"{bin_dir}/kube-proxy", f"--config={state}/proxy.yaml"],
    }  # fmt: skip


def dns_command(layout: Layout, program: Path) -> list[str]:
    """Return the command line of the name server, where the cluster has one."""
    return [str(program), "-conf", f"{layout.state}/Corefile"]


def worker_commands(layout: Layout, worker: Worker, bin_dir: Path) -> dict[str, list[str]]:
    """Return the command line of each component of a worker."""
    state = layout.state / worker.name
    return {
        CONTAINERD: ["containerd", "--config", f"{state}/containerd.toml"],
        KUBELET: [
            f"{bin_dir}/kubelet", f"--config={state}/kubelet.yaml",
            f"--kubeconfig={layout.state}/pki/{worker.name}.kubeconfig",
            f"--hostname-override={worker.name}", f"--node-ip={layout.address(worker)}",
            f"--root-dir={state}/kubelet",
        ],
    }  # fmt: skip


def _api_server(layout: Layout, bin_dir: Path) -> list[str]:
    state, keys = layout.state, layout.state / "pki"
    return [
        f"{bin_dir}/kube-apiserver", "--etcd-servers=http://127.0.0.1:2379",
        "--secure-port=6443", f"--advertise-address={layout.gateway}",
        f"--service-cluster-ip-range={layout.services}", "--authorization-mode=Node,RBAC",
        "--enable-admission-plugins=NodeRestriction", "--allow-privileged=true",
        f"--cert-dir={state}/apiserver", f"--client-ca-file={keys}/ca.crt",
        f"--tls-cert-file={keys}/apiserver.crt", f"--tls-private-key-file={keys}/apiserver.key",
        f"--kubelet-client-certificate={keys}/apiserver.crt",
        f"--kubelet-client-key={keys}/apiserver.key",
        f"--kubelet-certificate-authority={keys}/ca.crt",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={keys}/sa.pub",
        f"--service-account-signing-key-file={keys}/sa.key",
        *_aggregation(keys),
        f"--audit-policy-file={state}/audit.yaml", f"--audit-log-path={state}/audit.log",
    ]  # fmt: skip


def _aggregation(keys: Path) -> list[str]:
    """Return the flags with which other servers' APIs, such as metrics, are part of this one."""
    client = keys / pki.FRONT_PROXY.file
    return [
        f"--requestheader-client-ca-file={keys}/{pki.FRONT_PROXY.authority}.crt",
        f"--requestheader-allowed-names={pki.FRONT_PROXY.user}",
        "--requestheader-username-headers=X-Remote-User",
        "--requestheader-group-headers=X-Remote-Group",
        "--requestheader-extra-headers-prefix=X-Remote-Extra-",
        f"--proxy-client-cert-file={client}.crt", f"--proxy-client-key-file={client}.key",
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


def _containerd(layout: Layout, worker: Worker) -> str:
    state = layout.state / worker.name
    return f'''version = 2
root = "{state}/containerd"
state = "/run/containerd-{worker.number}"
disabled_plugins = [
  "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs",
]
[grpc]
  address = "{containerd_socket(worker)}"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/opt"
[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = "{images.PAUSE}"
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "{CNI_PLUGINS}"
    conf_dir = "{layout.state}/cni"
  [plugins."io.containerd.grpc.v1.cri".registry]
    config_path = "{layout.state}/registries"
'''


def _corefile(layout: Layout) -> str:
    return f"""{DOMAIN}:53 {{
  errors
  kubernetes {DOMAIN} {{
    kubeconfig {layout.kubeconfig}
  }}
}}
"""


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


def _kubelet(layout: Layout, worker: Worker) -> dict[str, Any]:
    keys, state = layout.state / "pki", layout.state / worker.name
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {
            "anonymous": {"enabled": False},
            "webhook": {"enabled": True},
            "x509": {"clientCAFile": f"{keys}/ca.crt"},
        },
        "authorization": {"mode": "Webhook"},
        "address": layout.address(worker),
        "readOnlyPort": 0,
        "healthzPort": 0,
        "tlsCertFile": f"{keys}/{worker.name}.crt",
        "tlsPrivateKeyFile": f"{keys}/{worker.name}.key",
        "containerRuntimeEndpoint": f"unix://{containerd_socket(worker)}",
        "resolvConf": f"{layout.state}/resolv.conf",
        **({"clusterDNS": [layout.gateway], "clusterDomain": DOMAIN} if layout.dns else {}),
        "podLogsDir": f"{state}/logs",
        "volumePluginDir": f"{state}/flexvolume",
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{layout.cgroup(worker)}",
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
        "hostnameOverride": FIRST.name,
        "clusterCIDR": layout.pods,
        # The kernel lets only the host's own network namespace change the table's size.
        "conntrack": {"maxPerCore": 0},
    }
