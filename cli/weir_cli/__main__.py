"""`weir`: the command line. Each command reads its arguments here and does its work elsewhere."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Annotated

import typer
import yaml
from rich.console import Console

from weir_cli import checking, documents, policies, show, simulate, starting
from weir_cli import top as topping
from weir_cli import up as upping
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
        typer.Option(metavar="SECONDS", min=1.0, max=10.0, help="Read each replica this often."),
    ] = 1.0,
) -> None:
    """Watch what `weir up` serves on this machine as a web page: pool, batch, replicas, timelines.

    The page changes nothing. It is shown to this machine only, until Ctrl-C.
    """
    options = consoling.ConsoleOptions(service, host, port, interval)
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
