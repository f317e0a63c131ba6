"""A metric of a service for HorizontalPodAutoscalers: a server of external.metrics.k8s.io, OURS.

Where users run KEDA or prometheus-adapter, this stands. It is a program of the tests, run in a pod.
The API server passes the autoscaler's questions on to it, as to any server of an aggregated API,
and shows by its certificate that it is the API server. It knows any metric of the sidecars' own
pages: the answer is its sum over the pods that the question selects, over their number. Or, with
PAGE, any metric of that page: the sum over the series of the namespace with the labels asked for.

    python3 -m e2e.metrics_api FOLDER [PAGE]

FOLDER holds `tls.crt` and `tls.key`, and the authority of those who may ask, `front-proxy-ca.crt`.
Each answer is a line of the log.
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
from urllib.parse import parse_qs, unquote, urlsplit

import httpx
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from weir_core.api.labels import ADMIN_PORT

GROUP_VERSION = "external.metrics.k8s.io/v1beta1"
PORT = 6443
ACCOUNT = Path("/var/run/secrets/kubernetes.io/serviceaccount")
_PATIENCE_S = 5.0


class Server(ThreadingHTTPServer):
    """Answers the API server, and asks it for the pods."""

    def __init__(self, folder: Path, page: str = "") -> None:
        super().__init__(("", PORT), Handler)
        self.page = page
        asks = ssl.create_default_context(
            ssl.Purpose.CLIENT_AUTH, cafile=folder / "front-proxy-ca.crt"
        )
        asks.verify_mode = ssl.CERT_REQUIRED
        asks.load_cert_chain(folder / "tls.crt", folder / "tls.key")
        # The handshake is the connection's own thread's: a client that is slow holds up no other.
        self.socket = asks.wrap_socket(self.socket, server_side=True, do_handshake_on_connect=False)
        self.api = httpx.Client(
            base_url=f"https://{os.environ['KUBERNETES_SERVICE_HOST']}",
            verify=ssl.create_default_context(cafile=ACCOUNT / "ca.crt"),
            headers={"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}"},
            timeout=_PATIENCE_S,
        )

    def value(self, namespace: str, selector: str, metric: str) -> float:
        """Return a metric, from where it is looked for."""
        if not self.page:
            return self.mean(namespace, selector, metric)
        wanted = {"namespace": namespace, **dict(each.split("=") for each in selector.split(","))}
        text = httpx.get(self.page, timeout=_PATIENCE_S).raise_for_status().text
        found = [each for each in _samples(text, metric) if wanted.items() <= each.labels.items()]
        return float(sum(each.value for each in found))

    def mean(self, namespace: str, selector: str, metric: str) -> float:
        """Return the sum of a metric over pods, over their number.

        Pods that start are counted and pods that end are not, as soon as they do: an autoscaler
        may have seen less change than this, and never more.
        """
        path, query = f"/api/v1/namespaces/{namespace}/pods", {"labelSelector": selector}
        listed = self.api.get(path, params=query).raise_for_status().json()["items"]
        pods = [pod for pod in listed if "deletionTimestamp" not in pod["metadata"]]
        return sum(_value(pod, metric) for pod in pods) / max(1, len(pods))


class Handler(BaseHTTPRequestHandler):
    """Answers one connection."""

    protocol_version = "HTTP/1.1"
    server: Server

    def do_GET(self) -> None:
        """Say which API this is, or tell a metric."""
        url = urlsplit(self.path)
        path = unquote(url.path).removeprefix(f"/apis/{GROUP_VERSION}")
        match path.strip("/").split("/"):
            case [""]:
                self._answer("APIResourceList", apiVersion="v1", **_RESOURCES)
            case ["namespaces", namespace, metric]:
                selector = parse_qs(url.query).get("labelSelector", [""])[0]
                value = self.server.value(namespace, selector, metric)
                self.log_message("%s %s %.3f", metric, selector, value)
                now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
                item = {"metricName": metric, "metricLabels": {}, "timestamp": now}
                items = [{**item, "value": f"{round(1000 * value)}m"}]
                self._answer("ExternalMetricValueList", apiVersion=GROUP_VERSION, items=items)
            case _:
                self.send_error(404)

    def log_request(self, *_: object) -> None:
        """Leave the rest out of the log: the API server asks all the time what there is."""

    def _answer(self, kind: str, **content: Any) -> None:
        body = json.dumps({"kind": kind, "metadata": {}, **content}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


_RESOURCES = {
    "groupVersion": GROUP_VERSION,
    "resources": [
        {
            "name": "externalmetrics",
            "singularName": "",
            "namespaced": True,
            "kind": "ExternalMetricValueList",
            "verbs": ["get"],
        }
    ],
}


def _value(pod: dict[str, Any], metric: str) -> float:
    """Return the sum of a metric's samples at a pod; nothing where its sidecar does not answer."""
    address = pod["status"].get("podIP")
    try:
        page = httpx.get(f"http://{address}:{ADMIN_PORT}/metrics", timeout=_PATIENCE_S).text
    except httpx.HTTPError:  # it starts, or has gone
        return 0.0
    return sum(sample.value for sample in _samples(page, metric))


def _samples(page: str, metric: str) -> list[Sample]:
    families = text_string_to_metric_families(page)
    return [each for family in families for each in family.samples if each.name == metric]


if __name__ == "__main__":
    Server(Path(sys.argv[1]), *sys.argv[2:]).serve_forever()
