"""What `weir simulate` reads from its options: systems, engines, mixes, traces."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer

from weir_sim.experiments import ablations
from weir_sim.fleet import ROUTINGS
from weir_sim.profiles import PROFILES, EngineProfile
from weir_sim.run import SYSTEMS, System
from weir_sim.traces import BadTrace, columns_from, known_columns, read
from weir_sim.workload import (
    ADVERSARIAL_MIX,
    STANDARD_MIX,
    SimRequest,
    Stream,
    WorkloadSpec,
    replay,
)

DEFAULT_MIX = "interactive=20,standard=50,batch=30"
_CLASSES = {stream.class_name for stream in STANDARD_MIX}

SystemName = Annotated[
    str, typer.Option("--system", metavar="NAME", help=f"One of {', '.join(SYSTEMS)}.")
]
SystemNames = Annotated[
    str,
    typer.Option(
        "--systems", metavar="NAMES", help=f"Several of {', '.join(SYSTEMS)}, separated by commas."
    ),
]
ProfileName = Annotated[
    str,
    typer.Option(
        "--profile",
        metavar="NAME",
        help=f"Engine to simulate: {', '.join(PROFILES)}, or a file `calibrate` wrote. Those of "
        "GPUs are models; none was calibrated on one.",
    ),
]
Load = Annotated[
    float,
    typer.Option(
        metavar="X", help="Offered rate over what saturated plain engines complete.", min=0.01
    ),
]
Loads = Annotated[
    str, typer.Option("--loads", metavar="X,X,...", help="Several loads, separated by commas.")
]
Replicas = Annotated[int, typer.Option(metavar="N", help="Engines.", min=1, max=1024)]
Duration = Annotated[
    float, typer.Option("--duration", metavar="X", help="Simulated seconds of arrivals.", min=1.0)
]
Seeds = Annotated[
    int, typer.Option(metavar="N", help="Repeat with seeds 0, 1, ... so many times.", min=1)
]
Seed = Annotated[
    int, typer.Option(metavar="N", help="The same seed gives the same result, byte for byte.")
]
Mix = Annotated[
    str,
    typer.Option(
        metavar="PARTS",
        help="Parts of the classes, such as interactive=20,standard=50,batch=30; or "
        "`adversarial`: these, with a greedy tenant and book-length batch prompts; for a trace "
        "also `trace`, its own classes and tenants.",
    ),
]
Turns = Annotated[
    int, typer.Option(metavar="N", help="Turns per conversation, with a shared prefix.", min=1)
]
Burstiness = Annotated[
    float,
    typer.Option(
        metavar="X", help="Variation of the time between arrivals; 1 is Poisson.", min=0.1, max=20.0
    ),
]
Retries = Annotated[
    int,
    typer.Option(
        metavar="N", help="How often clients come back, each time after their Retry-After.", min=0
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON lines instead of a table.")]
ReportDir = Annotated[
    Path | None,
    typer.Option(
        "--report", metavar="FOLDER", help="Write figures and one HTML file here.", file_okay=False
    ),
]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers", metavar="N", help="Processes; one for each core if not given.", min=1
    ),
]
TraceFile = Annotated[
    Path,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Trace to replay: CSV with TIMESTAMP, ContextTokens, GeneratedTokens, or JSON lines "
        "with timestamp, input_length, output_length, also gzipped; see --columns for others.",
    ),
]
ColumnNames = Annotated[
    str | None,
    typer.Option(
        "--columns",
        metavar="NAMES",
        help="What the trace calls things: arrival=NAME,prompt=NAME,output=NAME, and optionally "
        "unit=s|ms|us|ns, class=NAME, tenant=NAME, hash_ids=NAME, block=TOKENS of a hash id. "
        "Unit and block are recognised where they are not said.",
    ),
]
RoutingNames = Annotated[
    str,
    typer.Option(
        "--routings", metavar="NAMES", help=f"Several of {', '.join(ROUTINGS)}, by commas."
    ),
]
Speeds = Annotated[
    str,
    typer.Option(
        "--speeds",
        metavar="X,X,...",
        help="Speed of the first replica, the second ...; repeated where there are more replicas.",
    ),
]
Heartbeat = Annotated[
    float | None,
    typer.Option(
        "--heartbeat",
        metavar="X",
        help="Seconds between a replica's load reports; by default what sidecars do: 0.2 up to "
        "51 replicas, 1 from 256 on.",
        min=0.01,
    ),
]
Attainment = Annotated[
    float,
    typer.Option(metavar="X", help="Part of the requests that must meet their targets.", max=1.0),
]
FleetTrace = Annotated[
    Path | None,
    typer.Option(
        "--trace",
        metavar="FILE",
        help="Requests of a trace, as for `trace`, at the pace that is the load, with the classes "
        "of --mix; its hash_ids say which prefixes are equal.",
    ),
]
FleetSystems = Annotated[
    str,
    typer.Option(
        "--systems", metavar="NAMES", help="Whole systems beside the routings, as for compare."
    ),
]
Slow = Annotated[
    float | None,
    typer.Option(
        metavar="X",
        help="In the middle third of the run the first replica has X times its speed.",
        min=0.001,
    ),
]
AgeOfLoads = Annotated[
    float,
    typer.Option("--age", metavar="X", help="Age of a load report when it is sent, s.", min=0.0),
]
Loss = Annotated[
    float, typer.Option(metavar="X", help="Part of the load reports that get lost.", max=1.0)
]
Ingress = Annotated[
    Literal["random", "one"], typer.Option(help="Where requests arrive: anywhere, or all at one.")
]
Speed = Annotated[float, typer.Option(metavar="X", help="Replay so many times as fast.", min=0.01)]


def system_named(name: str) -> System:
    """Return a system or an ablation of Weir.

    Raises:
        BadParameter: There is none of that name.
    """
    found = SYSTEMS.get(name.strip()) or ablations().get(name.strip())
    if found is None:
        raise typer.BadParameter(f"{name!r} is none of {', '.join(SYSTEMS)}")
    return found


def systems_named(names: str) -> list[System]:
    """Return systems by names that commas separate."""
    return [system_named(name) for name in names.split(",")]


def profile_named(name: str) -> EngineProfile:
    """Return a profile by its name, or from its file.

    Raises:
        BadParameter: It is neither, or the file holds something else.
    """
    found = PROFILES.get(name)
    if found is not None:
        return found
    path = Path(name)
    if not path.is_file():
        raise typer.BadParameter(f"{name!r} is none of {', '.join(PROFILES)}, and no file")
    from weir_sim.calibrate import read_profile

    try:
        return read_profile(path)
    except ValueError as error:
        raise typer.BadParameter(f"{name} is not a profile: {error}") from error


def routings_named(names: str) -> list[str]:
    """Return ways to route by names that commas separate.

    Raises:
        BadParameter: There is none of a name.
    """
    routings = [name.strip() for name in names.split(",")]
    for name in routings:
        if name not in ROUTINGS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(ROUTINGS)}")
    return routings


def speeds_of(text: str, replicas: int) -> list[float]:
    """Return the speed of each replica, from a pattern that is repeated.

    Raises:
        BadParameter: One is not a number above 0.
    """
    pattern = numbers_in(text, "--speeds")
    return [pattern[index % len(pattern)] for index in range(replicas)]


def loads_in(text: str) -> list[float]:
    """Return loads that commas separate.

    Raises:
        BadParameter: One is not a number above 0.
    """
    return numbers_in(text, "--loads")


def numbers_in(text: str, option: str) -> list[float]:
    """Return numbers that commas separate.

    Raises:
        BadParameter: One is not a number above 0.
    """
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        numbers = []
    if not numbers or min(numbers) <= 0:
        raise typer.BadParameter(f"{text!r}: write numbers such as 0.5,1,2", param_hint=option)
    return numbers


def workload(mix: str, turns: int = 1, burstiness: float = 1.0) -> WorkloadSpec:
    """Return a workload whose rate and duration the scenario sets."""
    return WorkloadSpec(
        rate=1.0, duration_s=1.0, streams=_streams(mix), turns=turns, burstiness=burstiness
    )


def trace_in(path: Path | None, columns: str | None = None) -> list[SimRequest]:
    """Return the requests of a trace file, or none without one; say what was taken for granted.

    Raises:
        BadParameter: The trace or its columns cannot be read.
    """
    if path is None:
        return []
    try:
        named = columns_from(columns, known_columns(path)) if columns else None
        trace = read(path, named)
    except (BadTrace, OSError) as error:
        raise typer.BadParameter(str(error), param_hint="--trace") from error
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--columns") from error
    typer.echo(f"{path.name}: {trace.words()}", err=True)
    return trace.requests


def replayed(trace: Path, columns: str | None, mix: str, speed: float) -> list[SimRequest]:
    """Return a trace's requests with classes and tenants of `mix`.

    `trace` as a mix keeps the trace's own classes and tenants.

    Raises:
        BadParameter: The trace or its columns cannot be read.
    """
    requests = trace_in(trace, columns)
    if mix != "trace":
        return replay(requests, _streams(mix), seed=0, speed=speed)
    unknown = {request.class_name for request in requests} - _CLASSES
    if unknown:
        raise typer.BadParameter(
            f"the trace has classes that are none of {', '.join(sorted(_CLASSES))}: "
            f"{', '.join(sorted(unknown))}",
            param_hint="--mix",
        )
    return replay(requests, (), seed=0, speed=speed)


def _streams(mix: str) -> tuple[Stream, ...]:
    if mix == "adversarial":
        return ADVERSARIAL_MIX
    streams: list[Stream] = []
    for part in mix.split(","):
        name, equals, share = part.partition("=")
        if name not in _CLASSES or not equals or not share.replace(".", "", 1).isdigit():
            raise typer.BadParameter(
                f"{part!r}: write CLASS=PART with a class of {', '.join(sorted(_CLASSES))}",
                param_hint="--mix",
            )
        streams.append(Stream(name, f"tenant-{name}", float(share)))
    return tuple(streams)
