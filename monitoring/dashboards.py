"""The dashboards: the fleet, one service, its tenants, its engines.

Every series that a page shows carries `namespace`, `service`, `pool` and `pod`, as the chart's
PodMonitor and ServiceMonitor label them. `tests/integration/sidecar/test_dashboards.py` has a
Prometheus run each query on the metrics of real sidecars and a real engine.
"""

from __future__ import annotations

from typing import Final

from monitoring.panels import Page, Panel, Query, Section

_OF = 'namespace=~"$namespace",service=~"$service"'
_POD = f'{_OF},pod=~"$pod"'
_NAMESPACE = ("namespace", "label_values(weir_build_info, namespace)")
_SERVICE = ("service", 'label_values(weir_build_info{namespace=~"$namespace"}, service)')
_BY_SERVICE = "namespace, service"
_SERVICE_LEGEND = "{{namespace}}/{{service}}"


def _rate(metric: str, of: str = _OF) -> str:
    return f"rate({metric}{{{of}}}[$__rate_interval])"


def _rate_by(labels: str, metric: str, of: str = _OF) -> str:
    return f"sum by ({labels}) ({_rate(metric, of)})"


def _quantile(share: float, metric: str, by: str, of: str = _OF) -> str:
    return f"histogram_quantile({share}, {_rate_by(f'le, {by}', f'{metric}_bucket', of)})"


def _share(by: str, part: str, whole: str) -> str:
    return f"sum by ({by}) ({part}) / sum by ({by}) ({whole})"


def _attainment(by: str) -> str:
    metric = "weir_attainment_requests_total"
    return _share(by, _rate(metric, f'{_OF},result="met"'), _rate(metric))


def _rejected(by: str) -> str:
    metric = "weir_requests_total"
    return _share(by, _rate(metric, f'{_OF},outcome=~"rejected_.*"'), _rate(metric))


_FLEET = Page(
    "fleet",
    "Weir / Fleet",
    (_NAMESPACE, _SERVICE),
    (
        Section(
            "Services",
            (
                Panel(
                    "Services by Ready",
                    "short",
                    (
                        Query(
                            f'count by (status) (weir_service_condition{{{_OF},type="Ready"}})',
                            "Ready is {{status}}",
                        ),
                    ),
                    "InferenceServices by the status of their Ready condition.",
                    kind="figures",
                ),
                Panel(
                    "Conditions that are False",
                    "short",
                    (Query(f'weir_service_condition{{{_OF},status="False"}}', ""),),
                    "What is missing, and why: `kubectl describe infs NAME` has the message.",
                    kind="table",
                    width=16,
                ),
                Panel(
                    "Replicas",
                    "short",
                    tuple(
                        Query(
                            f"sum by ({_BY_SERVICE}) "
                            f'(weir_service_replicas{{{_OF},state="{state}"}})',
                            f"{_SERVICE_LEGEND} {state}",
                        )
                        for state in ("wanted", "ready")
                    ),
                    "Replicas that the spec or an autoscaler asks for, and those that serve.",
                ),
                Panel(
                    "Requests",
                    "reqps",
                    (Query(_rate_by(_BY_SERVICE, "weir_requests_total"), _SERVICE_LEGEND),),
                    "Requests that ended, however they did.",
                ),
                Panel(
                    "Output tokens",
                    "short",
                    (
                        Query(
                            _rate_by(_BY_SERVICE, "vllm:generation_tokens_total"), _SERVICE_LEGEND
                        ),
                    ),
                    "Tokens per second, counted by the engines.",
                ),
                Panel(
                    "Attainment",
                    "percentunit",
                    (Query(_attainment(f"{_BY_SERVICE}, class"), _SERVICE_LEGEND + " {{class}}"),),
                    "Share of the requests of each class with a target that got their first token "
                    "in time.",
                ),
                Panel(
                    "Rejected",
                    "percentunit",
                    (Query(_rejected(_BY_SERVICE), _SERVICE_LEGEND),),
                    "Share of requests that were answered with 429 or 503.",
                ),
                Panel(
                    "Waiting",
                    "short",
                    (
                        Query(
                            f"sum by ({_BY_SERVICE}) (weir_queue_requests{{{_OF}}})",
                            _SERVICE_LEGEND,
                        ),
                    ),
                    "Requests that wait for an engine; no line where none does.",
                ),
                Panel(
                    "Fullest KV cache",
                    "percentunit",
                    (
                        Query(
                            f"max by ({_BY_SERVICE}) (vllm:kv_cache_usage_perc{{{_OF}}})",
                            _SERVICE_LEGEND,
                        ),
                    ),
                    "Of the replicas of a service, the one whose cache is fullest.",
                ),
                Panel(
                    "Inversions in an hour",
                    "short",
                    (
                        Query(
                            f"sum by ({_BY_SERVICE}) "
                            f"(increase(weir_inversions_total{{{_OF}}}[1h]))",
                            _SERVICE_LEGEND,
                        ),
                    ),
                    "Requests dispatched while a higher class waited; anything but 0 is a bug.",
                ),
                Panel(
                    "Versions of sidecars",
                    "short",
                    (
                        Query(
                            f"count by ({_BY_SERVICE}, version) (weir_build_info{{{_OF}}})",
                            _SERVICE_LEGEND + " {{version}}",
                        ),
                    ),
                    "Two versions of one service are a rollout on its way.",
                ),
            ),
        ),
        Section(
            "Operator",
            (
                Panel(
                    "Leaders",
                    "short",
                    (Query("sum by (namespace) (weir_operator_leading)", "{{namespace}}"),),
                    "Operators that hold their Lease; 1 for each release.",
                    kind="figures",
                ),
                Panel(
                    "Passes",
                    "ops",
                    (
                        Query(
                            "sum by (outcome) (rate(weir_operator_passes_total[$__rate_interval]))",
                            "{{outcome}}",
                        ),
                    ),
                    "Passes over InferenceServices, by how they ended.",
                ),
                Panel(
                    "Waiting for a pass",
                    "short",
                    (Query("sum by (pod) (weir_operator_queue_depth)", "{{pod}}"),),
                    "InferenceServices that wait for a pass.",
                ),
            ),
        ),
    ),
)

_SERVING = Page(
    "service",
    "Weir / Service",
    (_NAMESPACE, _SERVICE),
    (
        Section(
            "Targets",
            (
                Panel(
                    "Attainment by class",
                    "percentunit",
                    (Query(_attainment("class"), "{{class}}"),),
                    "Share of the requests of a class with a target that got their first token in "
                    "time.",
                ),
                Panel(
                    "Time to first token, p50 and p99",
                    "s",
                    tuple(
                        Query(
                            _quantile(share, "weir_time_to_first_token_seconds", "class"),
                            f"{{{{class}}}} p{share * 100:.0f}",
                        )
                        for share in (0.5, 0.99)
                    ),
                    "From arrival at the sidecar.",
                ),
                Panel(
                    "Duration, p99",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "weir_request_duration_seconds", "class"), "{{class}}"
                        ),
                    ),
                    "From arrival at the sidecar to the request's end.",
                ),
            ),
        ),
        Section(
            "Requests",
            (
                Panel(
                    "Outcomes",
                    "reqps",
                    (Query(_rate_by("outcome", "weir_requests_total") + " > 0", "{{outcome}}"),),
                    "Requests by how they ended.",
                ),
                Panel(
                    "Classes",
                    "reqps",
                    (Query(_rate_by("class", "weir_requests_total"), "{{class}}"),),
                    "Requests by class.",
                ),
                Panel(
                    "Rejections",
                    "reqps",
                    (
                        Query(
                            _rate_by("class, reason", "weir_rejections_total"),
                            "{{class}} {{reason}}",
                        ),
                    ),
                    "Requests that the scheduler rejected, by why.",
                ),
                Panel(
                    "Tokens of answers that reported usage",
                    "short",
                    (
                        Query(_rate_by("service", "weir_prompt_tokens_total"), "prompt"),
                        Query(_rate_by("service", "weir_output_tokens_total"), "output"),
                    ),
                    "Tokens per second.",
                ),
                Panel(
                    "In the sidecars",
                    "short",
                    (Query(f"sum by (pod) (weir_requests_running{{{_OF}}})", "{{pod}}"),),
                    "Requests that each sidecar holds, waiting ones included.",
                ),
                Panel(
                    "Engines up",
                    "short",
                    (Query(f"sum by (pool) (weir_engine_up{{{_OF}}})", "{{pool}}"),),
                    "Replicas whose engine is loaded and makes progress.",
                ),
            ),
        ),
        Section(
            "Scheduling",
            (
                Panel(
                    "Waiting by class",
                    "short",
                    (Query(f"sum by (class) (weir_queue_requests{{{_OF}}})", "{{class}}"),),
                    "Requests that wait for an engine; no line where none does.",
                ),
                Panel(
                    "Wait, p99",
                    "s",
                    (Query(_quantile(0.99, "weir_queue_wait_seconds", "class"), "{{class}}"),),
                    "Arrival in the pool to dispatch.",
                ),
                Panel(
                    "Preempted, and ahead by minimum share",
                    "reqps",
                    (
                        Query(_rate_by("class", "weir_preemptions_total"), "{{class}} preempted"),
                        Query(
                            _rate_by("class", "weir_min_share_dispatches_total"),
                            "{{class}} by minimum share",
                        ),
                    ),
                    "Requests requeued for a higher rank, and those that went before a higher one.",
                ),
                Panel(
                    "Estimate over truth, p50",
                    "short",
                    (Query(_quantile(0.5, "weir_estimate_ratio", "of"), "{{of}}"),),
                    "1 is perfect; below it the scheduler is too hopeful.",
                ),
                Panel(
                    "Engine idle while requests wait",
                    "percentunit",
                    (Query(_rate_by("pod", "weir_bubble_seconds_total"), "{{pod}}"),),
                    "Share of time.",
                ),
                Panel(
                    "Inversions",
                    "short",
                    (
                        Query(
                            f"sum by (pod) (increase(weir_inversions_total{{{_OF}}}[1h]))",
                            "{{pod}}",
                        ),
                    ),
                    "In an hour; anything but 0 is a bug.",
                ),
            ),
        ),
        Section(
            "Routing",
            (
                Panel(
                    "Forwards",
                    "reqps",
                    (Query(_rate_by("result", "weir_forwards_total"), "{{result}}"),),
                    "Requests sent to another replica, by what came of it.",
                ),
                Panel(
                    "Peers by state",
                    "short",
                    (Query(f"sum by (state) (weir_peers{{{_OF}}})", "{{state}}"),),
                    "Over all sidecars; of N replicas each knows N - 1.",
                ),
                Panel(
                    "Prompt tokens found in prefix caches",
                    "percentunit",
                    (
                        Query(
                            _share(
                                "service",
                                _rate("weir_prefix_predicted_tokens_total"),
                                _rate("weir_prefix_prompt_tokens_total"),
                            ),
                            "predicted",
                        ),
                        Query(
                            _share(
                                "service",
                                _rate("weir_prefix_cached_tokens_total"),
                                _rate("weir_prefix_prompt_tokens_total"),
                            ),
                            "found",
                        ),
                    ),
                    "Lines far apart send requests to replicas that compute their prompts anew.",
                ),
            ),
        ),
    ),
)

_TENANT_OF = f'{_OF},tenant=~"$tenant"'

_TENANTS = Page(
    "tenant",
    "Weir / Tenants",
    (
        _NAMESPACE,
        _SERVICE,
        (
            "tenant",
            f"label_values(weir_usage_requests_total{{{_OF}}}, tenant)",
        ),
    ),
    (
        Section(
            "Usage",
            (
                Panel(
                    "Tokens",
                    "short",
                    (
                        Query(
                            _rate_by("tenant, kind", "weir_usage_tokens_total", _TENANT_OF),
                            "{{tenant}} {{kind}}",
                        ),
                    ),
                    "Tokens per second of requests that ended; `cached` is a part of `prompt`.",
                    width=12,
                ),
                Panel(
                    "Engine time",
                    "percentunit",
                    (
                        Query(
                            _rate_by("tenant", "weir_usage_engine_seconds_total", _TENANT_OF),
                            "{{tenant}}",
                        ),
                    ),
                    "1 is one engine that computes for this tenant alone, all the time.",
                    width=12,
                ),
                Panel(
                    "In 24 hours",
                    "short",
                    tuple(
                        Query(
                            "sum by (tenant, class, model) "
                            f"(increase({metric}{{{_TENANT_OF}{of}}}[24h]))",
                            name,
                        )
                        for metric, of, name in (
                            ("weir_usage_requests_total", "", "requests"),
                            ("weir_usage_tokens_total", ',kind="prompt"', "prompt tokens"),
                            ("weir_usage_tokens_total", ',kind="output"', "output tokens"),
                            ("weir_usage_engine_seconds_total", "", "engine seconds"),
                        )
                    ),
                    "What each tenant used; Prometheus estimates it from samples. Bill by the "
                    "access log.",
                    kind="table",
                    width=24,
                ),
            ),
        ),
        Section(
            "Waiting",
            (
                Panel(
                    "Requests",
                    "short",
                    (
                        Query(
                            f"sum by (tenant) (weir_queue_requests{{{_TENANT_OF}}})", "{{tenant}}"
                        ),
                    ),
                    "Requests that wait for an engine; no line where none does.",
                    width=12,
                ),
                Panel(
                    "Longest wait",
                    "s",
                    (
                        Query(
                            f"max by (tenant, class) (weir_queue_oldest_seconds{{{_TENANT_OF}}})",
                            "{{tenant}} {{class}}",
                        ),
                    ),
                    "Of the requests that wait, the oldest one.",
                    width=12,
                ),
            ),
        ),
        Section(
            "Limits",
            (
                Panel(
                    "Refused for a tenant's limit",
                    "reqps",
                    (
                        Query(
                            _rate_by(
                                "class",
                                "weir_requests_total",
                                f'{_OF},outcome="rejected_tenant_limit"',
                            ),
                            "{{class}}",
                        ),
                    ),
                    "Requests of tenants that had as much in flight, or used as many tokens, as "
                    "they may.",
                    width=12,
                ),
                Panel(
                    "Verdicts of the tenants' homes",
                    "reqps",
                    (Query(_rate_by("verdict", "weir_tenant_places_total"), "{{verdict}}"),),
                    "`alone`: decided by the ingress, because the home did not answer.",
                    width=12,
                ),
            ),
        ),
    ),
)


_ENGINES = Page(
    "engine",
    "Weir / Engines",
    (
        _NAMESPACE,
        _SERVICE,
        ("pod", f"label_values(weir_engine_up{{{_OF}}}, pod)"),
    ),
    (
        Section(
            "State",
            (
                Panel(
                    "Up",
                    "short",
                    (Query(f"max by (pod) (weir_engine_up{{{_POD}}})", "{{pod}}"),),
                    "1 while the engine is loaded and makes progress.",
                ),
                Panel(
                    "Scheduler",
                    "short",
                    (Query(f"weir_engine_scheduler_info{{{_POD}}}", ""),),
                    "`fallback` is 1 where Weir's scheduler could not be used.",
                    kind="table",
                    width=16,
                ),
            ),
        ),
        Section(
            "Steps",
            (
                Panel(
                    "Duration, p50 and p99",
                    "s",
                    tuple(
                        Query(
                            _quantile(share, "weir_engine_step_seconds", "pod", _POD),
                            f"{{{{pod}}}} p{share * 100:.0f}",
                        )
                        for share in (0.5, 0.99)
                    ),
                    "From the engine's step log.",
                ),
                Panel(
                    "Scheduling, p99",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "weir_engine_schedule_seconds", "pod", _POD), "{{pod}}"
                        ),
                    ),
                    "The part of each step in which the GPU waits for the scheduler.",
                ),
                Panel(
                    "Steps",
                    "ops",
                    (
                        Query(_rate_by("pod", "weir_engine_step_seconds_count", _POD), "{{pod}}"),
                        Query(
                            _rate_by("pod", "weir_engine_steps_lost_total", _POD), "{{pod}} lost"
                        ),
                    ),
                    "Steps per second, and records of steps that never arrived.",
                ),
            ),
        ),
        Section(
            "vLLM",
            (
                Panel(
                    "Running and waiting",
                    "short",
                    tuple(
                        Query(
                            f"sum by (pod) (vllm:num_requests_{state}{{{_POD}}})",
                            f"{{{{pod}}}} {state}",
                        )
                        for state in ("running", "waiting")
                    ),
                    "Few should wait here: the sidecar's pool is where requests are ordered.",
                ),
                Panel(
                    "KV cache",
                    "percentunit",
                    (Query(f"max by (pod) (vllm:kv_cache_usage_perc{{{_POD}}})", "{{pod}}"),),
                    "Share of the blocks in use.",
                ),
                Panel(
                    "Prefix cache",
                    "percentunit",
                    (
                        Query(
                            _share(
                                "pod",
                                _rate("vllm:prefix_cache_hits_total", _POD),
                                _rate("vllm:prefix_cache_queries_total", _POD),
                            ),
                            "{{pod}}",
                        ),
                    ),
                    "Share of prompt tokens that were found.",
                ),
                Panel(
                    "Tokens",
                    "short",
                    (
                        Query(_rate_by("pod", "vllm:prompt_tokens_total", _POD), "{{pod}} prompt"),
                        Query(
                            _rate_by("pod", "vllm:generation_tokens_total", _POD), "{{pod}} output"
                        ),
                    ),
                    "Tokens per second.",
                ),
                Panel(
                    "Inter-token latency, p99",
                    "s",
                    (
                        Query(
                            _quantile(0.99, "vllm:inter_token_latency_seconds", "pod", _POD),
                            "{{pod}}",
                        ),
                    ),
                    "Between two tokens of an answer.",
                ),
                Panel(
                    "Preemptions",
                    "ops",
                    (Query(_rate_by("pod", "vllm:num_preemptions_total", _POD), "{{pod}}"),),
                    "Requests that gave their KV blocks up and are computed anew.",
                ),
            ),
        ),
    ),
)

PAGES: Final = (_FLEET, _SERVING, _TENANTS, _ENGINES)
