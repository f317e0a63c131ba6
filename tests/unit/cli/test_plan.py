"""From files to replicas: addresses, ports, GPUs and numbers of replicas on one machine."""

from __future__ import annotations

import io
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from secrets import token_hex
from typing import Final

import pytest
from rich.console import Console

from weir_cli import gateway
from weir_cli.display import Display
from weir_cli.documents import Documents, load
from weir_cli.plan import Ground, ServicePlan, plan_services, with_replicas
from weir_cli.up import curl, tell_of_cache
from weir_core.errors import InvalidSpec, MachineUnfit
from weir_core.wire.policies import PolicyDocument

SERVICE: Final = """\
apiVersion: serving.weir.dev/v1alpha1
kind: InferenceService
metadata: {{name: {name}}}
spec:
  model: {{name: {name}-model, source: {{uri: "tiny://"}}}}
  pools: {pools}
"""
CPU: Final = "[{name: cpu, accelerator: {count: 0}}]"


def documents(folder: Path, *services: tuple[str, str]) -> Documents:
    text = "---\n".join(SERVICE.format(name=name, pools=pools) for name, pools in services)
    path = folder / "weir.yaml"
    path.write_text(text)
    return load([path])


def planned(found: Documents, *gpus: str) -> list[ServicePlan]:
    ground = Ground("127.0.0.1", 8000, Path("/scratch"), Path("/cache"), gpus)
    with ExitStack() as claims:
        return plan_services(found, ground, claims, lambda: token_hex(32))


def test_each_service_gets_a_port_and_each_replica_an_address(tmp_path: Path) -> None:
    pools = "[{name: a, replicas: 1, accelerator: {count: 0}}, {name: b, accelerator: {count: 0}}]"
    found = with_replicas(documents(tmp_path, ("one", pools), ("two", CPU)), 2)
    plans = planned(found)
    assert [plan.url for plan in plans] == ["http://127.0.0.1:8000", "http://127.0.0.1:8010"]
    names = [[replica.name for replica in plan.replicas] for plan in plans]
    assert names == [["one-a-1", "one-b-1", "one-b-2"], ["two-cpu-1", "two-cpu-2"]]
    addresses = [replica.address for plan in plans for replica in plan.replicas]
    addresses += [plan.gateway.address for plan in plans]
    assert len(set(addresses)) == 7
    assert all(address.startswith("127.0.1.") for address in addresses)
    scratch = {
        d.parent for p in plans for r in p.replicas for d in r.directories if d.name == "run"
    }
    assert len(scratch) == 5


def test_the_sidecars_of_a_service_and_its_front_know_each_other(tmp_path: Path) -> None:
    plans = planned(with_replicas(documents(tmp_path, ("one", CPU), ("two", CPU)), 2))
    for plan in plans:
        sidecars = [replica.processes[0].env for replica in plan.replicas]
        members = [*sidecars, gateway.process(plan, 60.0).env]
        found = {each["WEIR_POD_NAME"]: f"{each['WEIR_POD_IP']}:8002" for each in members}
        assert {peer.name: peer.address for peer in plan.policies.peers} == found
        assert [one.name for one in plan.policies.peers if not one.serves] == [plan.gateway.name]
        assert sorted(found) == [f"{plan.name}-cpu-1", f"{plan.name}-cpu-2", f"{plan.name}-gateway"]
        assert [each["WEIR_HOST"] for each in members] == [each["WEIR_POD_IP"] for each in members]
        folders = [Path(each["WEIR_POLICIES_DIR"]) for each in members]
        read = {plan.gateway.policies_file, *(each.policies_file for each in plan.replicas)}
        assert {folder / "policies.json" for folder in folders} == read
        assert len(plan.policies.peer_keys) == 1
        assert list(plan.policies.faults()) == []
    assert plans[0].policies.peer_keys != plans[1].policies.peer_keys


def test_the_front_reads_what_the_sidecars_are_told_and_others_cannot(tmp_path: Path) -> None:
    (plan,) = planned(documents(tmp_path, ("one", CPU)))
    path = tmp_path / "gateway-1" / "policies.json"
    gateway.tell(replace(plan, gateway=replace(plan.gateway, policies_file=path)))
    assert PolicyDocument.decode(path.read_bytes()) == plan.policies
    assert path.stat().st_mode & 0o077 == 0
    assert path.parent.stat().st_mode & 0o077 == 0


def test_the_pods_are_the_operators_own(tmp_path: Path) -> None:
    ((replica,),) = [plan.replicas for plan in planned(documents(tmp_path, ("one", CPU)))]
    assert [process.name for process in replica.processes] == ["sidecar", "model", "engine"]
    engine = replica.processes[-1]
    assert engine.env["WEIR_RUN_DIR"] == "/scratch/1/run"
    assert engine.env["WEIR_MODEL_DIR"] == "/cache/models"
    assert engine.env["HOME"] == "/scratch/1/tmp"
    assert engine.pre_stop is not None
    assert engine.startup is not None


@pytest.mark.parametrize(
    "cache",
    [
        pytest.param("{claimName: models, prefetch: true}", id="a claim"),
        pytest.param("{hostPath: /var/lib/models, compiled: true}", id="a directory of the node"),
    ],
)
def test_a_cache_of_a_cluster_is_this_machines_own(tmp_path: Path, cache: str) -> None:
    found = documents(tmp_path, ("one", CPU))
    (plain,) = planned(found)
    path = tmp_path / "weir.yaml"
    text = path.read_text().replace('uri: "tiny://"}', f'uri: "tiny://"}}, cache: {cache}')
    assert cache in text
    path.write_text(text)
    (plan,) = planned(load([path]))
    assert plan.models == Path("/cache/models")
    out = io.StringIO()
    tell_of_cache(plan, Display(Console(file=out, width=200)))
    assert "is for clusters; here all models are kept in /cache/models" in out.getvalue()
    assert [each.env for each in plan.replicas[0].processes[1:]] == [
        each.env for each in plain.replicas[0].processes[1:]
    ]


def test_gpus_are_given_out_over_all_services(tmp_path: Path) -> None:
    found = documents(
        tmp_path,
        ("one", "[{name: a, replicas: 2, accelerator: {count: 1}}]"),
        ("two", "[{name: b, accelerator: {count: 2}}]\n  engine: {parallelism: {tensor: 2}}"),
    )
    plans = planned(found, "0", "1", "4", "5")
    replicas = [replica for plan in plans for replica in plan.replicas]
    given = [replica.processes[-1].env["CUDA_VISIBLE_DEVICES"] for replica in replicas]
    assert given == ["0", "1", "4,5"]
    with pytest.raises(MachineUnfit, match=r"ask for 4 GPU\(s\) together and this machine has 1"):
        planned(found, "0")


def test_refuses_accelerators_it_cannot_give_out(tmp_path: Path) -> None:
    found = documents(tmp_path, ("one", "[{name: a, accelerator: {resource: amd.com/gpu}}]"))
    with pytest.raises(MachineUnfit, match=r"pool 'a' asks for amd.com/gpu"):
        planned(found, "0")


def test_refuses_replicas_that_spread_over_nodes(tmp_path: Path) -> None:
    parts = "engine: {parallelism: {tensor: 2, nodes: 2}}"
    found = documents(tmp_path, ("one", f"[{{name: a, accelerator: {{count: 0}}, {parts}}}]"))
    said = r"spec.pools\[0\].engine.parallelism.nodes: pool 'a' spreads .* `weir up` has one"
    with pytest.raises(InvalidSpec, match=said):
        planned(found)


def test_replicas_cannot_be_set_where_every_pool_sets_its_own(tmp_path: Path) -> None:
    found = documents(tmp_path, ("one", "[{name: a, replicas: 1}]"))
    with pytest.raises(InvalidSpec, match="--replicas: every pool of one sets its own number"):
        with_replicas(found, 2)


def test_the_gateway_listens_where_the_curl_asks_for_the_model(
    tmp_path: Path,
) -> None:
    (plan,) = planned(with_replicas(documents(tmp_path, ("one", CPU)), 2))
    front = gateway.process(plan, 60.0)
    assert front.argv[3:] == ("gateway", "--listen", "127.0.0.1:8000")
    assert front.env["WEIR_GRACE_PERIOD_S"] == "60"
    assert '"model": "one-model"' in curl(plan)


def test_the_gateway_traces_to_where_its_replicas_do_as_itself(tmp_path: Path) -> None:
    traced = "  tracing: {endpoint: 'http://127.0.0.1:4318', samplingRatio: 0.1}\n"
    path = tmp_path / "weir.yaml"
    path.write_text(SERVICE.format(name="one", pools=CPU) + traced)
    (plan,) = planned(load([path]))
    env = gateway.process(plan, 60.0).env
    sidecar = plan.replicas[0].processes[0].env
    said = {"ENDPOINT", "PROTOCOL", "NAME", "SAMPLER", "ARG"}
    ours = {name: value for name, value in env.items() if name.startswith("OTEL_")}
    assert {name.rpartition("_")[2] for name in ours} == said
    assert ours.items() <= sidecar.items()
    assert not [name for name in ours if plan.replicas[0].name in ours[name]]


def test_a_gateway_that_hangs_is_noticed_as_soon_as_a_sidecar_that_does(tmp_path: Path) -> None:
    (plan,) = planned(documents(tmp_path, ("one", CPU)))
    sidecar, liveness = plan.replicas[0].processes[0], gateway.process(plan, 60.0).liveness
    assert liveness is not None
    assert sidecar.liveness is not None
    assert liveness == replace(sidecar.liveness, port=plan.port)
