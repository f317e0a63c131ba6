"""Plausible mistakes in what a user writes, and what they are told, offline and on a cluster.

`says` is Weir's own sentence, the same from `weir render`, `weir up` and the operator. Where a rule
can say it, the API server says it too, and refuses what was written. Where it answers in words of
its own, or a rule knows less than Weir, `server` is the part of its answer that helps.
"""

from __future__ import annotations

import copy
import re
from typing import Any, Final, NamedTuple

Manifest = dict[str, Any]

SAME: Final = "the same, without the value, which the API server shows itself"
CONDITION: Final = "nothing: no rule sees it, and the operator says the same in a condition"

GPU: Final = {"name": "gpu", "replicas": 0}
ONE_SERVICE: Final[Manifest] = {
    "apiVersion": "serving.weir.dev/v1alpha1",
    "kind": "InferenceService",
    "metadata": {"name": "wrong"},
    "spec": {
        "model": {"name": "tiny", "source": {"uri": "tiny://"}},
        "replicas": 0,
        "pools": [{"name": "cpu", "accelerator": {"count": 0}}],
    },
}
ONE_CLASS: Final[Manifest] = {
    "apiVersion": "serving.weir.dev/v1alpha1",
    "kind": "InferencePriorityClass",
    "metadata": {"name": "wrong"},
    "spec": {"rank": 5},
}
ONE_TENANT: Final[Manifest] = {
    "apiVersion": "serving.weir.dev/v1alpha1",
    "kind": "InferenceTenant",
    "metadata": {"name": "wrong"},
    "spec": {"apiKeySecretRef": {"name": "keys"}},
}


class Mistake(NamedTuple):
    """One mistake."""

    id: str
    change: Manifest
    """What of the spec is written otherwise; None is left out. `name` is that of the object, and
    `metadata` stands beside it."""
    field: str
    says: str
    server: str = SAME
    """What the API server says."""
    server_field: str = ""
    """The field it names; empty for the same."""
    right: Manifest = ONE_SERVICE
    """The document without the mistake."""

    @property
    def document(self) -> Manifest:
        """The document with the mistake in it."""
        document = copy.deepcopy(self.right)
        changed = {**document["spec"], **self.change}
        document["metadata"]["name"] = changed.pop("name", "wrong")
        document["metadata"] |= changed.pop("metadata", {})
        document["spec"] = {key: value for key, value in changed.items() if value is not None}
        return document

    @property
    def heard(self) -> tuple[str, str]:
        """The field and the words that the API server's answer has."""
        said = re.sub("^'[^']*' ", "", self.says) if self.server == SAME else self.server
        return self.server_field or self.field, said


NODE_PATH: Final = (
    "is not a directory of a node; write an absolute path without . and .., and without a slash at "
    "its end, like /var/lib/weir/models"
)


def _cache(uri: str = "hf://o/m", **cache: Any) -> Manifest:
    return {"model": {"name": "m", "source": {"uri": uri}, "cache": cache}}


def _args(*args: Any) -> Manifest:
    return {"engine": {"args": list(args)}}


def _env(*env: Any) -> Manifest:
    return {"engine": {"env": list(env)}}


def _source(**source: Any) -> Manifest:
    return {"model": {"name": "tiny", "source": source}}


def _gpus(**fields: Any) -> Manifest:
    return {"replicas": None, "pools": [{**GPU, **fields}]}


def _pods(**spec: Any) -> Manifest:
    return {"podTemplate": {"spec": spec}}


MISTAKES: Final = [
    Mistake(
        "a name with dots",
        {"name": "llama-3.1-8b"},
        "metadata.name",
        (
            "'llama-3.1-8b' cannot name a Service in Kubernetes; write llama-3-1-8b (small "
            "letters, digits and dashes, a letter first)"
        ),
    ),
    Mistake(
        "a name that begins with a digit",
        {"name": "8b-chat"},
        "metadata.name",
        (
            "'8b-chat' cannot name a Service in Kubernetes; write m-8b-chat (small letters,"
            " digits and dashes, a letter first)"
        ),
    ),
    Mistake(
        "a name with capitals and an underscore",
        {"name": "My_Chat"},
        "metadata.name",
        (
            "'My_Chat' is not an object's name; write small letters, digits, dashes and dots only, "
            "and begin and end with a letter or a digit"
        ),
        server="cannot name a Service in Kubernetes; write my-chat (small letters",
    ),
    Mistake(
        "a name that is too long",
        {"name": "a" * 46},
        "metadata.name",
        "'aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa' has 46 characters; write at most 45",
        server="metadata.name has too many characters; write at most 45",
    ),
    Mistake(
        "a misspelt field",
        {"engnie": {}},
        "spec.engnie",
        "unknown field; did you mean engine?",
        server='unknown field "spec.engnie"',
    ),
    Mistake(
        "a field in the wrong place",
        {"image": "vllm:1"},
        "spec.image",
        "unknown field; did you mean spec.engine.image or spec.pools[].engine.image?",
        server='unknown field "spec.image"',
    ),
    Mistake(
        "a field in snake case",
        {"pod_template": {}},
        "spec.pod_template",
        "unknown field; did you mean podTemplate?",
        server='unknown field "spec.pod_template"',
    ),
    Mistake(
        "a misspelt field of the metadata",
        {"metadata": {"label": {"team": "search"}}},
        "metadata.label",
        "unknown field; did you mean labels?",
        server='unknown field "metadata.label"',
    ),
    Mistake(
        "no model's name",
        {"model": {"source": {"uri": "tiny://"}}},
        "spec.model.name",
        "is missing; write it (Name clients send as `model`)",
        server="Required value",
    ),
    Mistake(
        "a word for a number",
        {"replicas": "two"},
        "spec.replicas",
        "'two' is not a whole number",
        server="must be of type integer",
    ),
    Mistake(
        "a number in quotes",
        {"replicas": "2"},
        "spec.replicas",
        "'2' is not a whole number; write 2 without quotes",
        server="must be of type integer",
    ),
    Mistake(
        "a negative number",
        {"replicas": -1},
        "spec.replicas",
        "-1 is out of range; write 0 or more",
        server="should be greater than or equal to 0",
    ),
    Mistake(
        "replicas and scaling",
        {"scaling": {"maxReplicas": 2}},
        "spec",
        (
            "replicas and scaling exclude each other; leave one of them out, or write "
            "scaling.mode: Advise if another autoscaler sets replicas"
        ),
    ),
    Mistake(
        "a number of replicas that another autoscaler cannot read",
        {"replicas": None, "scaling": {"maxReplicas": 2, "mode": "Advise"}},
        "spec",
        (
            "scaling.mode: Advise leaves replicas to another autoscaler, which can read the number "
            "only where it is written; write replicas, the number to begin with"
        ),
    ),
    Mistake(
        "more at least than at most",
        {"replicas": None, "scaling": {"minReplicas": 3, "maxReplicas": 2}},
        "spec.scaling.minReplicas",
        "3 must not exceed maxReplicas; write that number or less",
        server="must not exceed maxReplicas; write that number or less",
    ),
    Mistake(
        "an idle timeout without zero",
        {"replicas": None, "scaling": {"maxReplicas": 2, "idleTimeout": "5m"}},
        "spec.scaling.idleTimeout",
        (
            "5m has no effect, because replicas go to zero with minReplicas: 0 alone; write that,"
            " or leave idleTimeout out"
        ),
        server="has no effect, because replicas go to zero with minReplicas: 0 alone; write that",
    ),
    Mistake(
        "nodes of gateways without zero",
        {"replicas": None, "scaling": {"maxReplicas": 2, "gateways": {}}},
        "spec.scaling.gateways",
        (
            "have no effect, because only a service with minReplicas: 0 has gateways; write that,"
            " or leave gateways out"
        ),
    ),
    Mistake(
        "a load above the one that counts more",
        {
            "replicas": None,
            "scaling": {"targetLoad": 0.9, "batchTargetLoad": 0.8, "maxReplicas": 2},
        },
        "spec.scaling",
        (
            "targetLoad exceeds batchTargetLoad, which counts the work of all classes; write it"
            " lower, or batchTargetLoad higher"
        ),
    ),
    Mistake(
        "a load in percent",
        {"replicas": None, "scaling": {"targetLoad": 78, "maxReplicas": 2}},
        "spec.scaling.targetLoad",
        "78 is out of range; write 1 or less",
        server="should be less than or equal to 1",
    ),
    Mistake(
        "a rate of no kind",
        {
            "replicas": None,
            "scaling": {
                "maxReplicas": 2,
                "behavior": {"scaleUp": {"policies": [{"type": "Pod", "value": 1}]}},
            },
        },
        "spec.scaling.behavior.scaleUp.policies[0].type",
        "'Pod' is not known here; write Pods or Percent",
        server='Unsupported value: "Pod"',
    ),
    Mistake(
        "two pools of one name",
        {"replicas": None, "pools": [GPU, GPU]},
        "spec.pools[1].name",
        "'gpu' is the name of item 0, too; leave one of them out",
        server="Duplicate value",  # Kubernetes 1.29 prints the value otherwise than 1.35
        server_field="spec.pools[1]",
    ),
    Mistake(
        "a pool's name with an underscore",
        _gpus(name="A100_spot"),
        "spec.pools[0].name",
        (
            "'A100_spot' is not a name here; write small letters, digits and dashes, like "
            "h100-spot, and begin and end with a letter or a digit"
        ),
    ),
    Mistake(
        "two pools without replicas",
        {"replicas": None, "pools": [{"name": "a"}, {"name": "b"}]},
        "spec.pools",
        (
            "at most one pool may leave replicas out, unless spec.scaling sets the number; write "
            "replicas in all others"
        ),
    ),
    Mistake(
        "half of a resource's name",
        _gpus(accelerator={"resource": "gpu"}),
        "spec.pools[0].accelerator.resource",
        "'gpu' is not an extended resource; write its whole name, like nvidia.com/gpu",
    ),
    Mistake(
        "GPUs as limits",
        _gpus(resources={"limits": {"nvidia.com/gpu": 4}}),
        "spec.pools[0].resources.limits[nvidia.com/gpu]",
        (
            "4 of nvidia.com/gpu contradicts accelerator, which is 1 of nvidia.com/gpu; "
            "write accelerator: {resource: nvidia.com/gpu, count: 4} and leave "
            "nvidia.com/gpu out here"
        ),
        server="write the number as accelerator.count",
        server_field="spec.pools[0].resources.limits",
    ),
    Mistake(
        "another vendor's GPUs as limits",
        _gpus(resources={"limits": {"amd.com/gpu": "1"}}),
        "spec.pools[0].resources.limits[amd.com/gpu]",
        (
            "1 of amd.com/gpu contradicts accelerator, which is 1 of nvidia.com/gpu; write "
            "accelerator: {resource: amd.com/gpu, count: 1} and leave amd.com/gpu out here"
        ),
        server="write them as accelerator: {resource: NAME, count: N}",
        server_field="spec.pools[0].resources.limits",
    ),
    Mistake(
        "a unit that Kubernetes does not know",
        _gpus(resources={"requests": {"memory": "16GB"}}),
        "spec.pools[0].resources.requests.memory",
        (
            "'16GB' is not a quantity; write a number with one of Kubernetes' units, like "
            "4, 500m or 16Gi"
        ),
        server="should match '^([0-9]+",
    ),
    Mistake(
        "fewer GPUs than the engine uses",
        {"engine": {"parallelism": {"tensor": 4}}, **_gpus()},
        "spec.pools[0].accelerator.count",
        (
            "1 accelerators a replica and an engine of tensor x pipeline x data = 4 do not "
            "fit; write accelerator: {count: 4}"
        ),
        server="must be tensor x pipeline x data of engine.parallelism",
        server_field="spec.pools",
    ),
    Mistake(
        "more GPUs than the engine uses",
        _gpus(accelerator={"count": 4}),
        "spec.pools[0].accelerator.count",
        (
            "4 accelerators a replica and an engine of tensor x pipeline x data = 1 leave 3"
            " idle; write engine.parallelism.tensor: 4, or accelerator: {count: 1}"
        ),
        server="must be tensor x pipeline x data of engine.parallelism",
        server_field="spec.pools",
    ),
    Mistake(
        "fewer GPUs on each node than the engine uses",
        {"engine": {"parallelism": {"tensor": 8, "pipeline": 2, "nodes": 2}}, **_gpus()},
        "spec.pools[0].accelerator.count",
        (
            "1 accelerators on each of 2 nodes and an engine of tensor x pipeline = 16 do not "
            "fit; write accelerator: {count: 8}"
        ),
        server="divided by its nodes, or 0 for the CPU",
        server_field="spec.pools",
    ),
    Mistake(
        "nodes that hold unequal parts of an engine",
        {"engine": {"parallelism": {"tensor": 4, "nodes": 3}}},
        "spec.pools[0].accelerator.count",
        (
            "each of the nodes holds the same part of an engine, and tensor x pipeline = 4 is no "
            "multiple of 3 nodes; write another tensor or other nodes"
        ),
        server="each of the nodes holds the same part of an engine",
        server_field="spec.pools",
    ),
    Mistake(
        "data parallel ranks over nodes",
        {"engine": {"parallelism": {"tensor": 2, "data": 2, "nodes": 2}}},
        "spec.pools[0].accelerator.count",
        (
            "an engine that spreads over nodes has one data parallel rank; leave data out, and "
            "write more replicas"
        ),
        server_field="spec.pools",
    ),
    Mistake(
        "adapters over nodes",
        {
            "engine": {"parallelism": {"tensor": 2, "nodes": 2}},
            "model": {
                "name": "tiny",
                "source": {"uri": "tiny://"},
                "adapters": [{"name": "sql", "source": {"uri": "hf://org/sql"}}],
            },
        },
        "spec.model.adapters",
        (
            "an engine that spreads over nodes takes no adapters, because they are fetched on one "
            "of its nodes only; merge the adapter into the model, or write nodes: 1"
        ),
        server=CONDITION,
    ),
    Mistake(
        "a rollout that replaces nothing",
        {"rollout": {"maxSurge": 0}},
        "spec.rollout",
        (
            "maxSurge and maxUnavailable are both 0, so that no pod could ever be replaced;"
            " write maxUnavailable: 1 where there is no spare accelerator, or leave "
            "maxSurge out"
        ),
    ),
    Mistake(
        "half a pod",
        {"rollout": {"maxSurge": "0.5"}},
        "spec.rollout.maxSurge",
        "'0.5' is neither a count nor a percentage; write it like 1 or 25%",
        server="should match '^[0-9]+%$'",
    ),
    Mistake(
        "a flag Weir needs itself",
        _args("--port=9000"),
        "spec.engine.args[0]",
        "--port is reserved for Weir: the engine listens only on its sidecar's socket",
    ),
    Mistake(
        "a reserved flag and its value in one",
        _args("--port 9000"),
        "spec.engine.args[0]",
        "--port is reserved for Weir: the engine listens only on its sidecar's socket",
    ),
    Mistake(
        "a flag and its value in one",
        _args("--max-model-len 4096"),
        "spec.engine.args[0]",
        (
            "'--max-model-len 4096' is one word to vLLM: write each word as an item of its own, or "
            "--max-model-len=4096"
        ),
        server="is one word to vLLM: write each word as an item of its own, or FLAG=VALUE",
    ),
    Mistake(
        "a bare dash",
        _args("--enforce-eager", "-"),
        "spec.engine.args[1]",
        "'-' is no flag: leave it out",
    ),
    Mistake(
        "a command for arguments",
        _args("serve", "org/model"),
        "spec.engine.args[0]",
        "'serve' is no flag: begin with one, like --max-model-len=8192",
        server="the first item is no flag: begin with one",
        server_field="spec.engine.args",
    ),
    Mistake(
        "a flag's twin",
        _env({"name": "VLLM_API_KEY", "value": "k"}),
        "spec.engine.env[0].name",
        (
            "VLLM_API_KEY is reserved for Weir; leave it out: the sidecar authenticates; "
            "only it reaches the engine"
        ),
    ),
    Mistake(
        "plugins without Weir's",
        _env({"name": "VLLM_PLUGINS", "value": "x"}),
        "spec.engine.env[0].value",
        (
            "VLLM_PLUGINS leaves out 'weir', without which the engine is not fit for a pod:"
            " write it, too, like weir,lora_filesystem_resolver"
        ),
    ),
    Mistake(
        "two variables of one name",
        _env({"name": "A", "value": "1"}, {"name": "A"}),
        "spec.engine.env[1].name",
        "'A' is the name of item 0, too; leave one of them out",
        server="Duplicate value",
        server_field="spec.engine.env[1]",
    ),
    Mistake(
        "a variable's value that is a number",
        _env({"name": "OMP_NUM_THREADS", "value": 4}),
        "spec.engine.env[0].value",
        '4 is not a text; put it in quotes: "4"',
        server="must be of type string",
    ),
    Mistake(
        "variables as a mapping",
        {"engine": {"env": {"A": "1"}}},
        "spec.engine.env",
        '{"A": "1"} is not a list; begin each item with `- name:`',
        server='unknown field "spec.engine.env.A"',
    ),
    Mistake(
        "a mode that is none",
        {"engine": {"scheduling": {"mode": "fast"}}},
        "spec.engine.scheduling.mode",
        "'fast' is not known here; write latency, throughput or custom",
        server='supported values: "latency", "throughput", "custom"',
    ),
    Mistake(
        "shares for no class",
        {"engine": {"scheduling": {"mode": "custom"}}},
        "spec.engine.scheduling",
        (
            "mode custom divides each step by classShares, and there are none; write them, "
            "like classShares: {interactive: 0.7, batch: 0.3}, or another mode"
        ),
    ),
    Mistake(
        "shares that nothing heeds",
        {"engine": {"scheduling": {"classShares": {"batch": 0.5}}}},
        "spec.engine.scheduling.classShares",
        "only mode custom heeds classShares; write mode: custom, or leave them out",
    ),
    Mistake(
        "a source that nothing can read",
        _source(uri="https://huggingface.co/o/m"),
        "spec.model.source.uri",
        (
            "'https://huggingface.co/o/m' is not a source; write "
            "hf://ORG/MODEL[/FOLDER][@REVISION], s3://BUCKET/PATH, gs://BUCKET/PATH, "
            "az://CONTAINER/PATH, pvc://CLAIM/PATH, oci://IMAGE, file:///PATH or tiny://"
        ),
    ),
    Mistake(
        "a source without a scheme",
        _source(uri="Qwen/Qwen3-8B"),
        "spec.model.source.uri",
        (
            "'Qwen/Qwen3-8B' is not a source; write hf://ORG/MODEL[/FOLDER][@REVISION], "
            "s3://BUCKET/PATH, gs://BUCKET/PATH, az://CONTAINER/PATH, pvc://CLAIM/PATH, "
            "oci://IMAGE, file:///PATH or tiny://"
        ),
    ),
    Mistake(
        "a Secret for a claim",
        _source(uri="pvc://claim/m", secretRef={"name": "s"}),
        "spec.model.source.secretRef",
        (
            "only sources with hf://, s3://, gs://, az:// are downloaded with a Secret; "
            "leave secretRef out"
        ),
    ),
    Mistake(
        "a cache in two places",
        _cache(claimName="models", hostPath="/var/lib/models"),
        "spec.model.cache",
        "is in one place; write claimName or hostPath, and not both",
    ),
    Mistake(
        "a cache in no place",
        _cache(prefetch=True),
        "spec.model.cache",
        "is in one place; write claimName or hostPath, and not both",
    ),
    Mistake(
        "a cache for weights that are a volume already",
        _cache("pvc://claim/m", claimName="models"),
        "spec.model.cache",
        "holds what is downloaded, and this source is a volume already; leave cache out",
    ),
    Mistake(
        "a cache on a path that is not absolute",
        _cache(hostPath="models"),
        "spec.model.cache.hostPath",
        f"'models' {NODE_PATH}",
    ),
    Mistake(
        "a cache on a path that goes up",
        _cache(hostPath="/var/../etc"),
        "spec.model.cache.hostPath",
        f"'/var/../etc' {NODE_PATH}",
    ),
    Mistake(
        "a cache on the whole disk of the node",
        _cache(hostPath="/"),
        "spec.model.cache.hostPath",
        f"'/' {NODE_PATH}",
    ),
    Mistake(
        "a cache on a claim's path",
        _cache(claimName="models/llama"),
        "spec.model.cache.claimName",
        (
            "'models/llama' is not the name of a claim; write small letters, digits, dashes and "
            "dots only, like models"
        ),
    ),
    Mistake(
        "a prefetch into a directory of the node",
        _cache(hostPath="/var/lib/models", prefetch=True),
        "spec.model.cache.prefetch",
        (
            "fills a claim; a directory of a node is filled by the first replica there, so leave "
            "prefetch out"
        ),
    ),
    Mistake(
        "a Secret's bare name",
        _source(uri="hf://o/m", secretRef="hf"),
        "spec.model.source.secretRef",
        "'hf' is not an object; write {name: hf}",
        server="must be of type object",
    ),
    Mistake(
        "an adapter with the model's name",
        {
            "model": {
                "name": "m",
                "source": {"uri": "hf://o/m"},
                "adapters": [{"name": "m", "source": {"uri": "hf://o/a"}}],
            }
        },
        "spec.model.adapters[0].name",
        "'m': the model has this name itself; give the adapter another one",
        server="the model has this name itself; give the adapter another one",
        server_field="spec.model.adapters",
    ),
    Mistake(
        "a generated model as an adapter",
        {
            "model": {
                "name": "m",
                "source": {"uri": "hf://o/m"},
                "adapters": [{"name": "a", "source": {"uri": "tiny://"}}],
            }
        },
        "spec.model.adapters[0].source.uri",
        "tiny:// is a whole model, and no adapter; write where the adapter is",
    ),
    Mistake(
        "fewer slots than adapters",
        {
            "model": {
                "name": "m",
                "source": {"uri": "hf://o/m"},
                "adapters": [{"name": "a", "source": {"uri": "hf://o/a"}}],
                "adapterSlots": 0,
            }
        },
        "spec.model.adapterSlots",
        "0 is less than the number of adapters that are listed; write that number or more, or "
        "leave it out",
        server="is less than the number of adapters that are listed; write that number or more, or "
        "leave it out",
    ),
    Mistake(
        "a rank that vLLM does not have",
        {"model": {"name": "m", "source": {"uri": "hf://o/m"}, "adapterRank": 24}},
        "spec.model.adapterRank",
        "24 is not known here; write 1, 8, 16, 32, 64, 128, 256, 320 or 512",
        server="supported values",
    ),
    Mistake(
        "a duration without a unit",
        {"admission": {"keepAlive": 10}},
        "spec.admission.keepAlive",
        "10 is not a duration; write it like 30s, 5m or 250ms",
        server="must be of type string",
    ),
    Mistake(
        "a negative duration",
        {"admission": {"keepAlive": "-5s"}},
        "spec.admission.keepAlive",
        "'-5s' is not a duration; write it like 30s, 5m or 250ms",
    ),
    Mistake(
        "a collector without a scheme",
        {"tracing": {"endpoint": "otel:4318"}},
        "spec.tracing.endpoint",
        "'otel:4318' is not the address of a collector; write it like http://collector:4318",
    ),
    Mistake(
        "a container without an image",
        _pods(containers=[{"name": "vllm", "args": ["x"]}]),
        "spec.podTemplate.spec.containers[0].image",
        (
            "'vllm' adds a container without one; write its image, or the name of the "
            "container to change (engine)"
        ),
        server=CONDITION,
    ),
    Mistake(
        "the sidecar among the containers",
        _pods(containers=[{"name": "sidecar"}]),
        "spec.podTemplate.spec.containers[0].image",
        (
            "'sidecar' adds a container without one; write it under initContainers, where "
            "that container is"
        ),
        server=CONDITION,
    ),
    Mistake(
        "a flag's twin in the pods",
        _pods(containers=[{"name": "engine", "env": [{"name": "VLLM_PORT", "value": "1"}]}]),
        "spec.podTemplate.spec.containers[0].env[0].name",
        (
            "VLLM_PORT is reserved for Weir; leave it out: the engine listens only on its "
            "sidecar's socket"
        ),
        server=CONDITION,
    ),
    Mistake(
        "GPUs in the pods",
        {**_pods(containers=[{"name": "engine", "resources": {"limits": {"nvidia.com/gpu": 4}}}])},
        "spec.podTemplate.spec.containers[0].resources.limits[nvidia.com/gpu]",
        (
            "pool cpu: 4 of nvidia.com/gpu contradicts accelerator, which is 0 of "
            "nvidia.com/gpu; write accelerator: {resource: nvidia.com/gpu, count: 4} and "
            "leave nvidia.com/gpu out here"
        ),
        server=CONDITION,
    ),
    Mistake(
        "callers that are none",
        {"network": {"allowFrom": []}},
        "spec.network.allowFrom",
        (
            "is empty, which some would read as any source and some as none; write at least one, "
            "or leave it out"
        ),
    ),
    Mistake(
        "a caller's labels outside of a selector",
        {"network": {"allowFrom": [{"podSelector": {"app": "chat"}}]}},
        "spec.network.allowFrom[0].podSelector.app",
        "unknown field; leave it out",
        server="unknown field",
    ),
    Mistake(
        "a caller that nothing selects",
        {"network": {"allowFrom": [{}]}},
        "spec.network.allowFrom[0]",
        "selects nothing; write a namespaceSelector, a podSelector or an ipBlock",
    ),
    Mistake(
        "a scraper by labels and by address",
        {"network": {"scrapeFrom": [{"podSelector": {}, "ipBlock": {"cidr": "10.0.0.0/8"}}]}},
        "spec.network.scrapeFrom[0]",
        "ipBlock stands alone; put the selectors into an item of their own",
    ),
    Mistake(
        "an address without the size of its block",
        {"network": {"allowFrom": [{"ipBlock": {"cidr": "10.0.0.1"}}]}},
        "spec.network.allowFrom[0].ipBlock.cidr",
        "'10.0.0.1' is not a block of addresses; write it like 10.0.0.0/8 or fd00::/8",
    ),
    Mistake(
        "a block outside of the one it is taken from",
        {
            "network": {
                "allowFrom": [{"ipBlock": {"cidr": "10.0.0.0/8", "except": ["11.0.0.0/16"]}}]
            }
        },
        "spec.network.allowFrom[0].ipBlock.except[0]",
        "'11.0.0.0/16' is no part of 10.0.0.0/8; write a smaller block inside it",
        server=CONDITION,
    ),
    Mistake(
        "an expression without values",
        {
            "network": {
                "scrapeFrom": [
                    {"podSelector": {"matchExpressions": [{"key": "app", "operator": "In"}]}}
                ]
            }
        },
        "spec.network.scrapeFrom[0].podSelector.matchExpressions[0]",
        (
            "operators In and NotIn need values, Exists and DoesNotExist have none; write values "
            "to match"
        ),
    ),
    Mistake(
        "a class's wait without a unit",
        {"maxQueueWait": 60},
        "spec.maxQueueWait",
        "60 is not a duration; write it like 30s, 5m or 250ms",
        server="must be of type string",
        right=ONE_CLASS,
    ),
    Mistake(
        "a share in percent",
        {"minShare": 10},
        "spec.minShare",
        "10 is out of range; write 1 or less",
        server="should be less than or equal to 1",
        right=ONE_CLASS,
    ),
    Mistake(
        "a tenant's Secret by its bare name",
        {"apiKeySecretRef": "keys"},
        "spec.apiKeySecretRef",
        "'keys' is not an object; write {name: keys}",
        server="must be of type object",
        right=ONE_TENANT,
    ),
]
