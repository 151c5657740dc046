"""``vmpool``: the one place that wires settings, rim and command line together."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated

import typer

from vmpool.cli.main import app

if TYPE_CHECKING:
    from vmpool.settings import GatewaySettings, Settings

gateway_app = typer.Typer()
app.add_typer(gateway_app, name="gateway")


@app.command()
def operator(
    kubeconfig: Annotated[
        str, typer.Option(help="Path of a kubeconfig; default $KUBECONFIG or the pod's account.")
    ] = "",
    context: Annotated[str, typer.Option(help="Context in the kubeconfig.")] = "",
    watch_namespace: Annotated[str, typer.Option(help="Serve only this namespace.")] = "",
    namespace: Annotated[str, typer.Option(help="Where the lease and the install id are.")] = "",
    http_port: Annotated[
        int | None, typer.Option(help="Port of /metrics, /healthz, /readyz; 0 takes a free one.")
    ] = None,
    log_format: Annotated[str, typer.Option(help="json or console.")] = "",
    gateway: Annotated[
        bool | None, typer.Option("--gateway", help="Serve the REST API too; settings as for vmpool gateway.")
    ] = None,
) -> None:
    """Run the operator. Every setting can also be given as VMPOOL_<NAME>; options win."""
    from vmpool.rim.process import Companion, run_operator

    given = {
        "kubeconfig": kubeconfig,
        "context": context,
        "watch_namespace": watch_namespace,
        "namespace": namespace,
        "http_port": http_port,
        "log_format": log_format,
        "gateway": gateway,
    }
    settings = _settings(given)
    companions: list[Companion] = []
    if settings.gateway:
        from vmpool.gateway.process import companion

        companions.append(companion(settings, _gateway_settings({})))
    run_operator(settings, companions)


@gateway_app.callback(invoke_without_command=True)
def gateway(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    chosen: typer.Context,
    kubeconfig: Annotated[
        str, typer.Option(help="Path of a kubeconfig; default $KUBECONFIG or the pod's account.")
    ] = "",
    context: Annotated[str, typer.Option(help="Context in the kubeconfig.")] = "",
    watch_namespace: Annotated[str, typer.Option(help="Serve only pools of this namespace.")] = "",
    namespace: Annotated[str, typer.Option(help="Where tokens and on-demand claims are.")] = "",
    host: Annotated[str, typer.Option(help="Address of the REST API.")] = "",
    port: Annotated[int | None, typer.Option(help="Port of the REST API; 0 takes a free one.")] = None,
    auth: Annotated[str, typer.Option(help="none, static, kubernetes or ldap.")] = "",
    log_format: Annotated[str, typer.Option(help="json or console.")] = "",
) -> None:
    """Run the REST API. Every setting can also be given as VMPOOL_GATEWAY_<NAME> or VMPOOL_<NAME>; options win."""
    if chosen.invoked_subcommand is not None:
        return
    from vmpool.gateway.process import run_gateway

    reach = {"kubeconfig": kubeconfig, "context": context, "watch_namespace": watch_namespace, "namespace": namespace}
    own = {"host": host, "port": port, "auth": auth}
    run_gateway(_settings({**reach, "log_format": log_format}), _gateway_settings(own))


@gateway_app.command(name="hash-password")
def hash_password() -> None:
    """Ask for a password and print its hash for the users file; from a pipe, the first line is the password."""
    from vmpool.gateway.auth.static import hash_password as hashed

    if sys.stdin.isatty():
        password = typer.prompt("Password", hide_input=True, confirmation_prompt=True)
    else:
        password = sys.stdin.readline().rstrip("\r\n")
    if not password:
        raise typer.BadParameter("the password is empty")
    typer.echo(hashed(password))


def _settings(given: Mapping[str, object]) -> "Settings":
    from vmpool.settings import Settings

    try:
        return Settings.model_validate({**Settings().model_dump(), **_told(given)})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _gateway_settings(given: Mapping[str, object]) -> "GatewaySettings":
    from vmpool.settings import GatewaySettings

    try:
        return GatewaySettings.model_validate({**GatewaySettings().model_dump(), **_told(given)})
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def _told(given: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in given.items() if value not in ("", None)}


def main() -> None:
    """Entry point of ``vmpool`` and ``kubectl-vmpool``."""
    app()


if __name__ == "__main__":
    main()
