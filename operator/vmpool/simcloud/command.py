"""The command line of the simulated cloud, shared by ``vmpool simcloud`` and ``python -m vmpool.simcloud``."""

import asyncio
import os
import signal
from pathlib import Path
from typing import Annotated, Any

import typer

DEFAULT_HOST = "127.0.0.1"
DEFAULT_TENANT = "demo"
DEFAULT_TENANT_KEY = "demo-key"
SHUTDOWN_SECONDS = 1.0
"""How long requests in flight may go on after SIGTERM."""


def command(  # noqa: PLR0913, PLR0917 - one parameter an option is how typer reads them
    ledger: Annotated[Path, typer.Option(help="File of the durable ledger; made when missing.")] = Path(
        "simcloud.sqlite"
    ),
    host: Annotated[str, typer.Option(help="Address to listen on.")] = DEFAULT_HOST,
    port: Annotated[int, typer.Option(help="Port to listen on; 0 takes a free one.", min=0, max=65535)] = 0,
    port_file: Annotated[Path | None, typer.Option(help="Write the port here once the cloud serves.")] = None,
    tenant: Annotated[
        list[str] | None,
        typer.Option(help=f"A tenant, as name=key; repeatable. An empty ledger gets {DEFAULT_TENANT}."),
    ] = None,
    admin_key: Annotated[
        str | None, typer.Option(help="Opens the admin API (faults, settings, ledger).", envvar="SIMCLOUD_ADMIN_KEY")
    ] = None,
    ledger_id: Annotated[
        str, typer.Option(help="Who a new ledger is; a lost one of the same id is a cloud whose machines are gone.")
    ] = "",
    image: Annotated[list[str] | None, typer.Option(help="A known image; repeatable.")] = None,
    disk_seconds: Annotated[float | None, typer.Option(help="How long making a disk takes.", min=0)] = None,
    nic_seconds: Annotated[float | None, typer.Option(help="How long making a nic takes.", min=0)] = None,
    boot_seconds: Annotated[float | None, typer.Option(help="How long a boot takes.", min=0)] = None,
    delete_seconds: Annotated[float | None, typer.Option(help="How long a deletion takes.", min=0)] = None,
    build_slots: Annotated[int | None, typer.Option(help="Machines in the making at once.", min=1)] = None,
) -> None:
    """Run a simulated cloud: a small server of its own, with a durable ledger.

    Options that are given are kept in the ledger; those that are not stay as they were.
    """
    steps = {"disk": disk_seconds, "nic": nic_seconds, "boot": boot_seconds}
    settings = {
        "createSeconds": _given(steps),
        **_given({"deleteSeconds": delete_seconds, "buildSlots": build_slots, "images": image}),
    }
    tenants = [_name_and_key(text) for text in tenant or []]
    asyncio.run(_run((ledger, ledger_id), settings, tenants, admin_key, (host, port, port_file)))


def _given(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _name_and_key(text: str) -> tuple[str, str]:
    name, _, key = text.partition("=")
    if not (name and key):
        # The text is not repeated: it may be a key.
        raise typer.BadParameter("a tenant is given as name=key", param_hint="--tenant")
    return name, key


async def _run(
    book: tuple[Path, str],
    settings: dict[str, Any],
    tenants: list[tuple[str, str]],
    admin_key: str | None,
    place: tuple[str, int, Path | None],
) -> None:
    """Serve until SIGTERM or SIGINT."""
    from aiohttp import web

    from vmpool.simcloud.admin import Admin
    from vmpool.simcloud.answers import parse
    from vmpool.simcloud.ledger import Ledger
    from vmpool.simcloud.model import Refused
    from vmpool.simcloud.server import Cloud, Machines, make_app

    host, port, port_file = place
    path, ledger_id = book
    ledger = Ledger(path, ledger_id)
    try:
        try:
            ledger.put_settings(parse(ledger.settings.changed, settings))
        except Refused as error:
            raise typer.BadParameter(error.message) from error
        if not (tenants or ledger.tenants()):
            tenants = [(DEFAULT_TENANT, DEFAULT_TENANT_KEY)]
        for name, key in tenants:
            ledger.put_tenant(name, key)
        cloud = Cloud(ledger)
        admin = Admin(cloud, admin_key).routes() if admin_key else []
        runner = web.AppRunner(
            make_app([*Machines(cloud).routes(), *admin]), access_log=None, shutdown_timeout=SHUTDOWN_SECONDS
        )
        await runner.setup()
        try:
            await web.TCPSite(runner, host, port).start()
            bound = int(runner.addresses[0][1])
            if port_file is not None:
                _write(port_file, f"{bound}\n")
            typer.echo(f"simcloud {ledger.id} serves http://{host}:{bound}, ledger {path}")
            await _stop_signal()
        finally:
            await runner.cleanup()
    finally:
        ledger.close()


def _write(path: Path, text: str) -> None:
    """Write the file in one step: a reader sees all of it or none."""
    draft = path.with_name(f"{path.name}.{os.getpid()}")
    draft.write_text(text)
    draft.replace(path)


async def _stop_signal() -> None:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)
    await stop.wait()
