"""How to reach the API server, as plain values for a library with a session of its own."""

from dataclasses import dataclass

from vmpool.kube.client import Client


@dataclass(frozen=True, slots=True)
class Connection:
    """Address and credentials as they are now; a rotated token needs a new one. Paths are of files that stay."""

    server: str
    ca_path: str | None
    insecure: bool
    scheme: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None

    def __repr__(self) -> str:
        """Without the token."""
        return f"Connection({self.server})"


async def connection(client: Client) -> Connection:
    """Return the client's own connection values, its token freshly renewed where it expires."""
    configuration = client.api.configuration
    settings = await configuration.auth_settings()
    header = (settings.get("BearerToken") or {}).get("value") or ""
    scheme, _, token = header.rpartition(" ")
    return Connection(
        server=configuration.host,
        ca_path=configuration.ssl_ca_cert,
        insecure=not configuration.verify_ssl,
        scheme=scheme or None,
        token=token or None,
        certificate_path=configuration.cert_file,
        private_key_path=configuration.key_file,
    )
