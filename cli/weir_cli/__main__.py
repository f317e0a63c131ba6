"""`weir`: the command line. Each command reads its arguments here and does its work elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from weir_cli import checking, documents, explain_cluster, policies, show, simulate, starting
from weir_cli import explain as explaining
from weir_cli import top as topping
from weir_cli import up as upping
from weir_cli import usage as using
from weir_cli.console import command as consoling
from weir_cli.display import Display
from weir_cli.machine import cache_dir
from weir_cli.plan import read
from weir_cli.records import Instance
from weir_core.api.inferenceservice import InferenceService
from weir_core.errors import InvalidSpec, WeirError
from weir_operator.render import Manifest, desired_state, policies_secret

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130

app = typer.Typer(
    help="Serve LLMs with priorities that hold. Start with: weir up examples/quickstart.yaml",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)

app.add_typer(simulate.app)

Files = Annotated[
    list[Path],
    typer.Argument(
        metavar="FILE",
        help="YAML files, as for kubectl apply: InferenceService and what goes with it.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"weir {version('weir-serving')}")
        raise typer.Exit


@app.callback()
def _options(
    _version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version and exit."
        ),
    ] = False,
) -> None:
    pass


@app.command()
def up(
    files: Files,
    port: Annotated[
        int,
        typer.Option(
            metavar="PORT",
            min=1,
            max=65535,
            help="Public port of the first service; each further one gets 10 more.",
        ),
    ] = 8000,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS", help="Public address to listen on; 0.0.0.0 for every network."
        ),
    ] = "127.0.0.1",
    replicas: Annotated[
        int | None,
        typer.Option(
            metavar="N", min=1, max=100, help="Run this many replicas, whatever the files say."
        ),
    ] = None,
    logs: Annotated[
        bool, typer.Option("--logs", help="Show the log of every process, each line prefixed.")
    ] = False,
    detach: Annotated[
        bool,
        typer.Option("--detach", "-d", help="Return once everything is ready; weir down stops it."),
    ] = False,
) -> None:
    """Serve the files' InferenceServices on this machine.

    The pods a cluster would run become local processes: engines, sidecars, and one public address
    per service. Edits of classes, tenants, keys and engine modes in the files take effect while it
    runs. Ctrl-C drains and stops; a second one kills. Exit codes: 0 stopped as asked, 1 failed, 2
    the files or options are wrong, 130 killed by a second Ctrl-C.
    """
    found = read(files, replicas)
    cache = cache_dir(os.environ)
    if detach:
        raise typer.Exit(_detach(cache, port))
    options = upping.UpOptions(host, port, logs, tuple(files), replicas)
    raise typer.Exit(upping.run(found, options, cache, Display(Console())))


def _detach(cache: Path, port: int) -> int:
    """Run the same command in the background, and wait until it is ready."""
    instance = Instance(cache, port)
    with instance.held():  # or say at once who holds it, and leave that one's output alone
        pass
    output = instance.directory / "up.log"
    arguments = [word for word in sys.argv[1:] if word not in {"-d", "--detach"}]
    with output.open("wb") as log:
        background = subprocess.Popen(
            [sys.executable, "-m", "weir_cli", *arguments],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    try:
        ready = show.wait_ready(instance, background.pid, output, Console())
    except KeyboardInterrupt:
        typer.echo("it goes on in the background; see weir status, stop it with: weir down")
        return EXIT_INTERRUPTED
    if ready:
        typer.echo(f"running in the background; output: {output}; stop it with: weir down")
        return 0
    return background.wait() or EXIT_FAILED


@app.command()
def status() -> None:
    """Show what `weir up` serves on this machine. Exit code 3 when nothing runs."""
    raise typer.Exit(show.status(cache_dir(os.environ), Console(width=show.WIDEST)))


@app.command()
def top(
    once: Annotated[
        bool, typer.Option("--once", help="Print one frame and end; so it does without a terminal.")
    ] = False,
    interval: Annotated[
        float,
        typer.Option(metavar="SECONDS", min=1.0, max=10.0, help="Read each replica this often."),
    ] = 1.0,
) -> None:
    """Watch what `weir up` serves on this machine: who waits, tokens, targets, rejections.

    Keys: o orders the replicas, s and c show one service or class only, q quits. Exit code 3 when
    nothing runs.
    """
    cache, console = cache_dir(os.environ), Console()
    if once or not console.is_terminal:
        raise typer.Exit(topping.once(cache, Console(width=show.WIDEST), interval))
    raise typer.Exit(topping.live(cache, console, interval))


@app.command()
def explain(
    name: Annotated[str, typer.Argument(metavar="NAME", help="The InferenceService.")],
    namespace: Annotated[
        str,
        typer.Option("--namespace", "-n", metavar="NAMESPACE", help="Of a service on a cluster."),
    ] = "",
    request: Annotated[
        str,
        typer.Option(
            metavar="ID", help="Tell where this request is: the x-request-id of its answer."
        ),
    ] = "",
    context: Annotated[
        str, typer.Option(metavar="CONTEXT", help="Of your kubeconfig. Default: the current one.")
    ] = "",
    operator_namespace: Annotated[
        str, typer.Option(metavar="NAMESPACE", help="Where Weir's operator runs.")
    ] = explaining.OPERATOR_NAMESPACE,
    as_json: Annotated[bool, typer.Option("--json", help="Print it for programs.")] = False,
) -> None:
    """Say what is wrong with a service, from what that follows, and what to do.

    Without -n and --context it is a service of a `weir up` on this machine, if one has that name;
    else one on the cluster of your kubeconfig, which is read by kubectl, with your rights. Exit
    codes: 0 healthy, or the request was found; 1 something is wrong; 2 nothing can be said.
    """
    where = explaining.Where(namespace, context, operator_namespace)
    cache, ask = cache_dir(os.environ), explain_cluster.kubectl(context)
    if request:
        found = explaining.of_request(request, name, where, cache, ask)
    else:
        found = explaining.of_service(name, where, cache, ask)
    lines = [explaining.as_json(found)] if as_json else explaining.lines_of(found)
    for line in lines:
        typer.echo(line)
    raise typer.Exit(found.health.exit_code)


@app.command()
def usage(
    logs: Annotated[
        list[Path] | None,
        typer.Argument(
            metavar="[FILE]...",
            help="Logs of sidecars; - is standard input. Default: those of what `weir up` serves.",
        ),
    ] = None,
    since: Annotated[
        str,
        typer.Option(metavar="DURATION", help="Only requests that ended since then: 30m, 24h."),
    ] = "",
    by: Annotated[
        str,
        typer.Option(
            metavar="COLUMNS",
            help="Some of tenant, class, model, adapter, service, pool and replica.",
        ),
    ] = using.DEFAULT_BY,
    spec: Annotated[
        list[Path] | None,
        typer.Option(metavar="FILE", help="YAML with InferenceServices, for pools[].cost."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Sum the access logs: requests, tokens, engine seconds and cost by tenant, class and model.

    The access log is off unless the sidecar has WEIR_ACCESS_LOG=1. Read the logs of all sidecars of
    a service: one that forwards a request counts it, and the one that executes it its tokens.
    """
    columns = using.columns_of(by)
    costs = using.costs_of(documents.load(spec).services) if spec else {}
    sums = using.Sums(columns, using.since_of(since, datetime.now(UTC)), costs)
    for line in using.lines_of(logs or [], cache_dir(os.environ)):
        sums.add(line)
    if as_json:
        typer.echo(using.as_json(sums, columns).decode())
    else:
        using.show(sums, columns, Console(width=show.WIDEST))


@app.command()
def console(
    service: Annotated[
        str, typer.Argument(metavar="[SERVICE]", help="Show this one only.", show_default=False)
    ] = "",
    port: Annotated[
        int, typer.Option(metavar="PORT", min=1, max=65535, help="Port of the page.")
    ] = 8765,
    host: Annotated[
        str,
        typer.Option(
            metavar="ADDRESS",
            help="Listen on this address instead; the URL then has a token without which nothing "
            "is shown.",
        ),
    ] = "",
    interval: Annotated[
        float,
        typer.Option(
            metavar="SECONDS",
            min=1.0,
            max=10.0,
            help="Read each replica of this machine this often; of a cluster, it is every 5 s.",
        ),
    ] = 1.0,
    namespace: Annotated[
        str,
        typer.Option("--namespace", "-n", metavar="NAMESPACE", help="Show that of a cluster."),
    ] = "",
    context: Annotated[
        str, typer.Option(metavar="CONTEXT", help="Of your kubeconfig. Default: the current one.")
    ] = "",
) -> None:
    """Watch services as a web page: pool, batch, replicas, timelines.

    Without -n and --context they are those that `weir up` serves on this machine; else those of a
    namespace on the cluster of your kubeconfig, which is read through `kubectl proxy`, with your
    rights. The page changes nothing. It is shown to this machine only, until Ctrl-C.
    """
    options = consoling.ConsoleOptions(service, host, port, interval, namespace, context)
    raise typer.Exit(consoling.run(cache_dir(os.environ), options))


@app.command()
def down(
    port: Annotated[
        int | None,
        typer.Option(metavar="PORT", help="Stop only the `weir up` of this port. Default: all."),
    ] = None,
) -> None:
    """Drain and stop what `weir up` serves; wait until it has ended."""
    raise typer.Exit(show.down(cache_dir(os.environ), Console(), port))


@app.command()
def render(files: Files) -> None:
    """Print what the operator would make of the files, as YAML."""
    found = documents.load(files)
    manifests = [
        item
        for service in found.services
        for item in (_policies(found, service), *desired_state(service))
    ]
    typer.echo(yaml.dump_all(manifests, Dumper=_PlainDumper, sort_keys=False), nl=False)


@app.command()
def check(files: Files) -> None:
    """Check the files without a cluster, for CI. Exit codes: 0 fine, 2 faults.

    Prints a line for each resource that was found, and all faults at once: field, and what to
    write. What depends on objects that are not in the files is a warning.
    """
    found = documents.load(files)
    for line in checking.resources(found):
        typer.echo(line)
    for warning in checking.warnings(found):
        typer.echo(f"weir: by these files alone: {warning}", err=True)


@app.command()
def init(
    model: Annotated[
        str,
        typer.Argument(
            metavar="MODEL", help="ORG/MODEL of the Hugging Face hub, or a source's uri."
        ),
    ],
    weights: Annotated[
        str,
        typer.Option(metavar="SIZE", help="Size of the weights, like 16GiB. Default: ask the hub."),
    ] = "",
    gpu_memory: Annotated[
        str, typer.Option(metavar="SIZE", help="Memory of one GPU.")
    ] = starting.Wishes.gpu_memory,
    cpu: Annotated[bool, typer.Option("--cpu", help="Serve it without a GPU.")] = False,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", metavar="FILE", help="Write it there, not to stdout."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Replace FILE if it exists.")] = False,
) -> None:
    """Print a first spec for a model: GPUs, memory and disk that fit it, each with its reason."""
    text = starting.spec_for(model, starting.Wishes(weights, gpu_memory, cpu), os.environ)
    if output is None:
        typer.echo(text, nl=False)
    else:
        starting.write(text, output, force=force)


def _policies(found: documents.Documents, service: InferenceService) -> Manifest:
    """Return the Secret for the sidecars; the files may leave out what the cluster has."""
    document, problems = policies.compiled(found, service)
    for problem in problems:
        typer.echo(f"weir: by these files alone: {problem}", err=True)
    return policies_secret(service, document)


class _PlainDumper(yaml.SafeDumper):
    """Writes equal parts out each time; `&id001` is not for people."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command; what Weir refuses is one line a fault, not a traceback."""
    try:
        app(arguments)
    except InvalidSpec as error:
        for fault in error.faults:
            typer.echo(f"weir: {fault}", err=True)
        sys.exit(EXIT_USAGE)
    except WeirError as error:
        typer.echo(f"weir: {error}", err=True)
        sys.exit(EXIT_FAILED)
    except OSError as error:  # the cache or the scratch folder: no room, no right
        typer.echo(f"weir: {error}", err=True)
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
