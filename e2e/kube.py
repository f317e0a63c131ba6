"""kubectl and helm, as a person would use them, with typed edges."""

from __future__ import annotations

import json
import os
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Manifest = dict[str, Any]


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    out: str
    err: str


class CommandFailed(Exception):
    """A command that must succeed did not."""


@dataclass(frozen=True)
class Command:
    """A program of the cluster's, pointed at one kubeconfig."""

    program: Path
    kubeconfig: Path

    def attempt(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> Done:
        """Run it and return how it ended."""
        done = subprocess.run(
            [str(self.program), *arguments],
            input=stdin,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
            env={**os.environ, "KUBECONFIG": str(self.kubeconfig)},
        )
        return Done(done.returncode, done.stdout, done.stderr)

    def __call__(self, *arguments: str, stdin: str | None = None, timeout_s: float = 60) -> str:
        """Run it and return its output; fail if it fails."""
        done = self.attempt(*arguments, stdin=stdin, timeout_s=timeout_s)
        if done.code:
            raise CommandFailed(f"{self.program.name} {' '.join(arguments)}: {done.err.strip()}")
        return done.out


class Kubectl(Command):
    """kubectl, and the few things every scenario does with it."""

    def apply(self, manifest: Manifest) -> None:
        """Apply `manifest` server-side; what someone else set and it names is taken over."""
        self(
            "apply", "--server-side", "--force-conflicts", "--field-manager=e2e",
            "--validate=strict", "--filename=-", stdin=json.dumps(manifest),
        )  # fmt: skip

    def find(self, kind: str, name: str, namespace: str) -> Manifest | None:
        """Return an object, or None when there is none of that name."""
        out = self(
            "get", kind, name, f"--namespace={namespace}", "--ignore-not-found", "--output=json"
        )
        found: Manifest | None = json.loads(out) if out else None
        return found

    def get(self, kind: str, name: str, namespace: str) -> Manifest:
        """Return an object that must exist."""
        found = self.find(kind, name, namespace)
        assert found is not None, f"{kind} {namespace}/{name} does not exist"
        return found

    def list(self, kinds: str, namespace: str, selector: str = "") -> list[Manifest]:
        """Return the objects of the given kinds."""
        out = self(
            "get", kinds, f"--namespace={namespace}", f"--selector={selector}", "--output=json"
        )
        items: list[Manifest] = json.loads(out)["items"]
        return items

    def patch(self, kind: str, name: str, namespace: str, patch: Manifest) -> None:
        """Merge `patch` into an object, as `kubectl edit` would."""
        target = (kind, name, f"--namespace={namespace}")
        self("patch", *target, "--type=merge", f"--patch={json.dumps(patch)}")


class Helm(Command):
    """helm."""


def kind_and_name(manifest: Manifest) -> str:
    """Return `Kind/name`."""
    return f"{manifest['kind']}/{manifest['metadata']['name']}"


def conditions(manifest: Manifest) -> dict[str, Manifest]:
    """Return the status conditions by type."""
    listed = manifest.get("status", {}).get("conditions", [])
    return {condition["type"]: condition for condition in listed}
