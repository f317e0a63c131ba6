"""Kubernetes, etcd and Helm as binaries, built once from their Go modules.

The modules are pinned by the `go.mod` and verified by the `go.sum` in each folder of `build/`.
The binaries land in a folder named after the hash of those files and of the recipe, so a change to
either builds anew and nothing else does. A build that is killed leaves only a `.partial` folder
that the next one removes.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from e2e.cluster.errors import ClusterError
from e2e.cluster.report import say

MODULES = Path(__file__).parent / "build"
TOOLS = Path(__file__).parents[1] / "tools"
"""Small programs of ours around a Go library that tests run; each is built by itself. And pins
 of programs of others, which are built where they are, by the `go.mod` of their own."""
OTHERS = Path(__file__).parent / "versions"
"""A module for each other Kubernetes that the tests can run on.

They are outside `build/`, so that a change of one builds nothing else anew.
"""
CONTAINERD = ("containerd", "containerd-shim-runc-v2")
"""Programs of the containerd of `TOOLS`. Distributions lag behind: Debian 12 has 1.6, which mounts
 no images as volumes."""
OWN_CONTAINERD = frozenset({"1.36.3"})
"""Versions of Kubernetes that run on that one, and not on the machine's."""
KUBERNETES = "1.35.4"
ASKED_FOR = "WEIR_E2E_KUBERNETES"
"""Environment variable: the version to run on, `KUBERNETES` or one of `OTHERS`."""
PROGRESS_EVERY_S = 20.0
LOCK_WITHIN_S = 1800.0
LOCK_EVERY_S = 5.0


@dataclass(frozen=True)
class Program:
    """One Go module of `build/` and the commands to build from it.

    Args:
        module: Folder below `build/`.
        commands: Name of the binary to the package it is built from.
        stamps: Go variables set at link time, which `version` prints.
    """

    module: str
    commands: tuple[tuple[str, str], ...]
    stamps: tuple[tuple[str, str], ...] = ()

    @property
    def linker_flags(self) -> str:
        """The value of `-ldflags`."""
        return " ".join(["-s", "-w", *(f"-X {name}={value}" for name, value in self.stamps)])


def _kubernetes(version: str, module: str) -> Program:
    major, minor, _ = version.split(".")
    names = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy")
    stamps = tuple(
        (f"k8s.io/{package}/version.{variable}", value)
        for package in ("component-base", "client-go/pkg")
        for variable, value in (
            ("gitVersion", f"v{version}"),
            ("gitMajor", major),
            ("gitMinor", minor),
            ("gitTreeState", "clean"),
        )
    )
    commands = tuple((name, f"k8s.io/kubernetes/cmd/{name}") for name in (*names, "kubelet"))
    return Program(module, (*commands, ("kubectl", "k8s.io/kubernetes/cmd/kubectl")), stamps)


HELM_STAMPS = tuple(
    (f"helm.sh/helm/v4/{variable}{part}", value)
    for variable in ("pkg/chart/common.k8sVersion", "internal/version.kubeClientVersion")
    for part, value in zip(("Major", "Minor"), KUBERNETES.split("."), strict=False)
)

PROGRAMS = (
    Program("pause", (("pause", "."),)),
    Program("etcd", (("etcd", "go.etcd.io/etcd/server/v3"),)),
    _kubernetes(KUBERNETES, "kubernetes"),
    Program("helm", (("helm", "helm.sh/helm/v4/cmd/helm"),), HELM_STAMPS),
)


def cache_dir() -> Path:
    """Return where Weir keeps what it may remove at any time."""
    return Path(os.environ.get("WEIR_CACHE") or Path.home() / ".cache/weir")


def recipe_hash() -> str:
    """Return the hash of everything that decides what the binaries are."""
    digest = hashlib.sha256(repr(PROGRAMS).encode())
    for path in sorted(MODULES.rglob("*")):
        if path.is_file():
            digest.update(f"{path.relative_to(MODULES)}\0".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def binaries() -> Path:
    """Return the folder of the binaries, building them first where they are missing."""
    version = os.environ.get(ASKED_FOR) or KUBERNETES
    if version == KUBERNETES:
        return _ours()
    known = sorted(path.name for path in OTHERS.iterdir())
    if version not in known:
        raise ClusterError(f"{ASKED_FOR}={version}: write one of {', '.join([*known, KUBERNETES])}")
    return _other(version)


def _ours() -> Path:
    target = cache_dir() / "cluster" / recipe_hash() / "bin"
    if target.is_dir():
        return target
    with locked("another process builds the cluster"):
        if not target.is_dir():
            _build_into(target.parent)
    return target


def _other(version: str) -> Path:
    """Return a folder of another Kubernetes, our etcd, Helm and pause, and perhaps containerd."""
    ours, program = _ours(), _kubernetes(version, version)
    beside = dict.fromkeys(("pause", "etcd", "helm"), ours)
    if version in OWN_CONTAINERD:
        beside |= dict.fromkeys(CONTAINERD, _containerd())
    digest = hashlib.sha256(repr(program).encode())
    for name in ("go.mod", "go.sum"):
        digest.update((OTHERS / version / name).read_bytes())
    target = cache_dir() / "kubernetes" / f"{version}-{digest.hexdigest()[:16]}"
    with locked("another process builds the cluster"):
        if not target.is_dir():
            say(f"building Kubernetes {version}, once (about ten minutes on two cores)")
            partial = target.with_name(f"{target.name}.partial")
            _build(_go(), OTHERS / version, program, partial)
            shutil.rmtree(_go_dir())
            partial.rename(target)
        for name, folder in beside.items():  # whose own recipe may have changed since
            (target / name).unlink(missing_ok=True)
            (target / name).symlink_to(folder / name)
    return target


def tool(name: str) -> Path:
    """Return the program of a folder of `tools`, building it first where it is missing."""
    program = Program(name, ((name, "."),))
    return _kept(name, lambda out: _build(_go(), TOOLS / name, program, out)) / name


def _containerd() -> Path:
    """Return the folder of containerd's programs, building them the first time."""
    module = "github.com/containerd/containerd/v2"
    program = Program("containerd", tuple((name, f"{module}/cmd/{name}") for name in CONTAINERD))
    return _kept("containerd", lambda out: _build(_go(), TOOLS / "containerd", program, out))


def keda() -> Path:
    """Return KEDA's programs, `operator` and `adapter`, and its manifests, `config`.

    They are built the first time, which downloads half a gigabyte.
    """
    program = Program("keda", tuple((name, f"./cmd/{name}") for name in ("operator", "adapter")))

    def make(out: Path) -> None:
        module = _downloaded(TOOLS / "keda", "github.com/kedacore/keda/v2")
        _build(_go(), module, program, out)
        shutil.copytree(module / "config", out / "config")

    return _kept("keda", make)


def lws() -> Path:
    """Return LeaderWorkerSet's program, `manager`, and its `chart`, building it the first time."""
    program = Program("lws", (("manager", "./cmd"),))

    def make(out: Path) -> None:
        module = _downloaded(TOOLS / "lws", "sigs.k8s.io/lws")
        _build(_go(), module, program, out)
        shutil.copytree(module / "charts/lws", out / "chart")

    return _kept("lws", make)


def _kept(name: str, make: Callable[[Path], None]) -> Path:
    """Return the folder that `make` fills for a folder of `tools`, as long as that is the same."""
    digest = hashlib.sha256()
    for path in sorted((TOOLS / name).iterdir()):
        digest.update(f"{path.name}\0".encode() + path.read_bytes())
    folder = cache_dir() / "tools" / f"{name}-{digest.hexdigest()[:16]}"
    if not folder.is_dir():
        with locked("another process builds the cluster"):
            if not folder.is_dir():
                say(f"building {name}, once (some minutes)")
                partial = folder.with_suffix(".partial")
                shutil.rmtree(partial, ignore_errors=True)
                make(partial)
                shutil.rmtree(_go_dir())
                partial.rename(folder)
    return folder


def _downloaded(pin: Path, module: str) -> Path:
    """Return the folder of a module at the version and with the content that `pin` says."""
    done = subprocess.run(
        [_go(), "mod", "download", "-json", module],
        cwd=pin, env=_go_environment(), capture_output=True, text=True, check=False, timeout=600,
    )  # fmt: skip
    if done.returncode:
        raise ClusterError(f"downloading {module} failed:\n{done.stdout}{done.stderr}")
    return Path(json.loads(done.stdout)["Dir"])


def _go() -> str:
    go = shutil.which("go")
    if go is None:
        raise ClusterError("Go 1.26 or newer is needed to build it: see https://go.dev/dl")
    return go


def _build_into(target: Path) -> None:
    """Build every program, then put the finished folder in place in one step."""
    go = _go()
    say(f"building Kubernetes {KUBERNETES}, etcd and Helm, once (about ten minutes on two cores)")
    started = time.monotonic()
    for stale in target.parent.iterdir():
        if stale.is_dir():
            shutil.rmtree(stale)
    partial = target.with_suffix(".partial")
    for program in PROGRAMS:
        _build(go, MODULES / program.module, program, partial / "bin")
    shutil.rmtree(_go_dir())
    partial.rename(target)
    say(f"built in {time.monotonic() - started:.0f} s")


def _build(go: str, module: Path, program: Program, out: Path) -> None:
    for name, package in program.commands:
        command = [go, "build", "-v", "-trimpath", "-ldflags", program.linker_flags]
        _run_with_progress([*command, "-o", str(out / name), package], module)


def _run_with_progress(command: list[str], directory: Path) -> None:
    """Run a build and say from time to time how far it is; its output is shown if it fails."""
    name, lines, spoke = Path(command[-2]).name, list[str](), time.monotonic()
    with subprocess.Popen(
        command, cwd=directory, env=_go_environment(), stderr=subprocess.PIPE, text=True
    ) as build:
        assert build.stderr is not None
        for line in build.stderr:
            lines.append(line)
            if time.monotonic() - spoke >= PROGRESS_EVERY_S:
                spoke = time.monotonic()
                say(f"{name}: {_progress(lines)}")
    if build.returncode:
        raise ClusterError(f"building {name} failed:\n{''.join(lines[-20:])}")
    say(f"{name}: built ({_progress(lines)})")


def _progress(lines: list[str]) -> str:
    downloads = sum(line.startswith("go: downloading") for line in lines)
    return f"{downloads} modules downloaded, {len(lines) - downloads} packages compiled"


def _go_dir() -> Path:
    """Module and build cache; in Weir's own folder so that nothing else grows by 7 GB."""
    return cache_dir() / "go"


def _go_environment() -> dict[str, str]:
    go = _go_dir()
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -modcacherw -buildvcs=false",
        "GOPATH": str(go),
        "GOMODCACHE": str(go / "mod"),
        "GOCACHE": str(go / "build"),
        "GOWORK": "off",
    }


@contextmanager
def locked(why: str) -> Iterator[None]:
    """Let one process at a time build or start; the others say why they wait."""
    path = cache_dir() / "cluster" / "lock"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as lock:
        deadline = time.monotonic() + LOCK_WITHIN_S
        while not _try_lock(lock.fileno()):
            if time.monotonic() > deadline:
                raise ClusterError(f"another process has held {path} for half an hour")
            say(f"{why}; waiting for it")
            time.sleep(LOCK_EVERY_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
