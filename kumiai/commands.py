"""The composition root's own commands: the demo, the processes, and whether this machine is ready."""

import os
import signal
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, cast

import typer

from kumiai import provider_keys
from tenants.settings import Settings, load_settings

Port = Annotated[int, typer.Option(min=0, max=65_535, help="Port on 127.0.0.1; 0: any that is free.")]
Descriptor = Annotated[int, typer.Option(help="An inherited listening socket, instead of host and port.")]
SettingsPipe = Annotated[
    int, typer.Option(help="An inherited pipe: load the code, then take settings (variables as JSON) from it.")
]
Parent = Annotated[int, typer.Option(help="End when the process of this id is no longer the parent; 0: never.")]


def register(app: typer.Typer) -> None:
    """Adds demo, demo-stop, demo-reset, demo-cluster, gateway, portal, worker, doctor and the group provider-key."""
    app.command("demo")(demo)
    app.command("demo-stop")(demo_stop)
    app.command("demo-reset")(demo_reset)
    app.command("demo-cluster")(demo_cluster)
    app.command("gateway")(gateway)
    app.command("portal")(portal)
    app.command("worker")(worker)
    app.command("doctor")(doctor)
    app.command("isolation-report")(isolation_report)
    group = typer.Typer(no_args_is_help=True, help="Towns' own keys for model providers.")
    for command, function in provider_keys.COMMANDS.items():
        group.command(command)(cast(Callable[..., None], function))
    app.add_typer(group, name="provider-key")


def demo(port: Port = 8000) -> None:
    """Start everything on one address with embedded defaults, until Ctrl-C."""
    from kumiai.demo import run_demo

    raise typer.Exit(run_demo(Settings(), port=port, environment=os.environ))  # noqa: TID251 - the children inherit it


def demo_stop() -> None:
    """End the demos that run in KUMIAI_HOME, plain or on servers."""
    from kumiai.demo import stop_demos

    raise typer.Exit(stop_demos(Settings()))


def demo_reset(port: Port = 8000) -> None:
    """Delete the demo's data and start over."""
    from kumiai.demo import reset_demo, run_demo

    code = reset_demo(Settings())
    if code == 0:
        code = run_demo(Settings(), port=port, environment=os.environ)  # noqa: TID251 - as above
    raise typer.Exit(code)


def demo_cluster(
    port: Port = 8000, reset: Annotated[bool, typer.Option("--reset", help="Delete its data first.")] = False
) -> None:
    """The demo on PostgreSQL, PgBouncer, Valkey and Keycloak, all started here on loopback."""
    from kumiai.cluster import reset_cluster, run_cluster

    if reset and (code := reset_cluster(Settings())):
        raise typer.Exit(code)
    raise typer.Exit(run_cluster(Settings(), port=port, environment=os.environ))  # noqa: TID251 - as above


def _socket(host: str, port: int, fd: int) -> socket.socket:
    from kumiai.processes import listen

    if fd >= 0:
        return socket.socket(fileno=fd)
    try:
        return listen(host, port)
    except OSError as error:
        raise typer.BadParameter(f"{host}:{port} is taken ({error.strerror})") from error


def gateway(
    host: str = "127.0.0.1", port: Port = 8001, fd: Descriptor = -1, parent: Parent = 0, settings_fd: SettingsPipe = -1
) -> None:
    """Serve /v1, /health and /metrics."""
    from kumiai.processes import await_settings, end_with_parent, run_gateway

    if parent:
        end_with_parent(parent)
    if settings_fd >= 0:
        await_settings(settings_fd, load="gateway.server.main")
    run_gateway(Settings(), _socket(host, port, fd))


def portal(
    host: str = "127.0.0.1", port: Port = 8002, fd: Descriptor = -1, parent: Parent = 0, settings_fd: SettingsPipe = -1
) -> None:
    """Serve the pages."""
    from kumiai.processes import await_settings, end_with_parent, run_portal

    if parent:
        end_with_parent(parent)
    if settings_fd >= 0:
        await_settings(settings_fd, load="apps.host.main")
    run_portal(Settings(), _socket(host, port, fd))


def worker() -> None:
    """Run what outlives a request: sweeper, retention, partitions."""
    from kumiai.processes import run_worker

    run_worker(Settings())


def doctor(home: Annotated[Path | None, typer.Option(help="Another home folder.")] = None) -> None:
    """Check settings, database, keys, issuer and gateway, and say what to do about what is wrong."""
    from kumiai.doctor import examine

    raise typer.Exit(examine(load_settings(home)))


def isolation_report(
    to: Annotated[Path, typer.Option(help="Folder for the report: HTML, PDF and JSON.")] = Path(),
    mutations: Annotated[int, typer.Option(min=1000, help="How many forged credentials are tried at least.")] = 100_000,
) -> None:
    """Start an installation of its own, try to get across between its towns, and write what became of it."""
    from apps.sdk.testing import DemoDidNotStart
    from kumiai.isolation.rows import NoSample
    from kumiai.isolation.run import NothingGotThrough, say, try_isolation
    from kumiai.isolation.stage import StageFailed
    from kumiai.isolation.tokens import ControlRefused

    # However it is told to stop, the servers it has started end with it.
    for told in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(told, signal.default_int_handler)
    try:
        report = try_isolation(mutations=mutations)
    except KeyboardInterrupt:
        say("\n試験をやめました。報告はありません。")
        raise typer.Exit(130) from None
    except (DemoDidNotStart, StageFailed, ControlRefused, NoSample, NothingGotThrough) as error:
        print(f"kumiai isolation-report: {error}", file=sys.stderr)
        raise typer.Exit(1) from error
    for file in report.write(to):
        say(f"書きました　{file}")
    say(
        "1度もほかの町に届きませんでした。"
        if report.is_good
        else "ほかの町に届いたもの、または試せなかったものがあります。報告を見てください。"
    )
    raise typer.Exit(0 if report.is_good else 1)
