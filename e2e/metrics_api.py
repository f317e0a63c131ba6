"""Metrics of pods for HorizontalPodAutoscalers: a small server of custom.metrics.k8s.io, OURS.

Where users run prometheus-adapter or KEDA, this stands: it answers with what the sidecars' own
`/metrics` say at that moment, and nothing else. It is a program of the tests, run in a pod; the API
server passes the autoscaler's questions on to it, as to any server of an aggregated API, and shows
that it is the API server by its certificate.

    python3 -m e2e.metrics_api FOLDER

FOLDER holds `tls.crt` and `tls.key`, and the authority of those who may ask, `front-proxy-ca.crt`.
Each question about pods is a line of the log: the metric, and the value of each pod.
"""

from __future__ import annotations

import json
import os
import ssl
import sys
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families

from weir_core.api.labels import ADMIN_PORT

GROUP_VERSION = "custom.metrics.k8s.io/v1beta2"
PORT = 6443
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PATIENCE_S = 5.0


class Server(ThreadingHTTPServer):
    """Answers the API server, and asks it for the pods."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("", PORT), Handler)
        context = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=folder / "front-proxy-ca.crt"
        )
        context.verify_mode = ssl.CERT_REQUIRED
        context.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        self.socket = context.wrap_socket(
            self.socket, server_side=True, do_handshake_on_connect=False
        )
        self.api = httpx.Client(
            base_url=f"https://{os.environ['KUBERNETES_SERVICE_HOST']}",
            verify=ssl.create_default_context(cafile=ACCOUNT / "ca.crt"),
            headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
            timeout=_PATIENCE_S,
        )

    def values(self, namespace: str, selector: str, metric: str) -> dict[str, float]:
        """Return a metric of each pod of a selector that has an address and answers."""
        listed = self.api.get(
            f"/api/v1/namespaces/{namespace}/pods", params={"labelSelector": selector}
        )
        listed.raise_for_status()
        found = {}
        for pod in listed.json()["items"]:
            address = pod["status"].get("podIP")
            value = None if address is None else _scrape(address, metric)
            if value is not None:
                found[pod["metadata"]["name"]] = value
        return found


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say what there is, or tell a metric of pods."""
        url = urlsplit(self.path)
        match url.path.strip("/").removeprefix(f"apis/{GROUP_VERSION}").strip("/").split("/"):
            case [""]:
                self._answer({"kind": "APIResourceList", "apiVersion": "v1", **_RESOURCES})
            case ["namespaces", namespace, "pods", "*", metric]:
                selector = parse_qs(url.query).get("labelSelector", [""])[0]
                values = self.server.values(namespace, selector, metric)
                self.log_message("%s %s", metric, json.dumps(values))
                self._answer(_list(namespace, metric, values))
            case _:
                self.send_error(404)

    def log_request(self, *_: object) -> None:
        """Leave the rest out of the log: the API server asks all the time what there is."""

    def _answer(self, content: dict[str, Any]) -> None:
        body = json.dumps(content).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_RESOURCES = {
    "groupVersion": GROUP_VERSION,
    "resources": [
        {
            "name": "pods/weir_requests_running",
            "singularName": "",
            "namespaced": True,
            "kind": "MetricValueList",
            "verbs": ["get"],
        }
    ],
}


def _list(namespace: str, metric: str, values: dict[str, float]) -> dict[str, Any]:
    now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return {
        "kind": "MetricValueList",
        "apiVersion": GROUP_VERSION,
        "metadata": {},
        "items": [
            {
                "describedObject": {
                    "kind": "Pod",
                    "namespace": namespace,
                    "name": name,
                    "apiVersion": "/v1",
                },
                "metric": {"name": metric, "selector": None},
                "timestamp": now,
                "value": f"{round(1000 * value)}m",
            }
            for name, value in values.items()
        ],
    }


def _scrape(address: str, metric: str) -> float | None:
    """Return the sum of a metric's samples at one sidecar; None where it does not answer."""
    try:
        page = httpx.get(f"http://{address}:{ADMIN_PORT}/metrics", timeout=_PATIENCE_S).text
    except httpx.HTTPError:  # it starts, or has gone
        return None
    samples = [
        sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
        if sample.name == metric
    ]
    return sum(samples) if samples else None


if __name__ == "__main__":
    Server(Path(sys.argv[1])).serve_forever()
