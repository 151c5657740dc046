"""``vmpool``: the one place that wires settings, rim and command line together."""

from typing import Annotated

import typer

from vmpool.cli.main import app


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
) -> None:
    """Run the operator. Every setting can also be given as VMPOOL_<NAME>; options win."""
    from vmpool.rim.process import run_operator
    from vmpool.settings import Settings

    given = {
        "kubeconfig": kubeconfig,
        "context": context,
        "watch_namespace": watch_namespace,
        "namespace": namespace,
        "http_port": http_port,
        "log_format": log_format,
    }
    run_operator(Settings.model_validate({**_environment(), **{k: v for k, v in given.items() if v not in ("", None)}}))


def _environment() -> dict[str, object]:
    from vmpool.settings import Settings

    return Settings().model_dump()


def main() -> None:
    """Entry point of ``vmpool`` and ``kubectl-vmpool``."""
    app()


if __name__ == "__main__":
    main()
