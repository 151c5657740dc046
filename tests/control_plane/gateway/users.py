"""Users of gateways under test, and gateways that serve a whole module."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.control_plane.gateway.table import OPEN, PASSWORDS, STATIC
from tests.gateways import Gateway
from vmpool.dev.plane import ControlPlane
from vmpool.gateway.auth.passwords import hash_password

NO_REVIEWS = {"VMPOOL_GATEWAY_AUTHORIZATION": "open"}
"""Every user may claim: RBAC has tests of its own."""


def users_file(folder: Path) -> Path:
    """A users file with everybody who has a password, and carol who never made a token."""
    file = folder / "users"
    people = {**PASSWORDS, "carol": PASSWORDS.get("carol", "wrong password")}
    file.write_text("".join(f"{user}:{hash_password(password)}\n" for user, password in people.items()))
    return file


def static_settings(folder: Path) -> dict[str, str]:
    """Settings of a gateway with these users."""
    return {**NO_REVIEWS, "VMPOOL_GATEWAY_AUTH": "static", "VMPOOL_GATEWAY_USERS_FILE": str(users_file(folder))}


@contextmanager
def two_gateways(plane: ControlPlane, namespace: str, folder: Path) -> Iterator[dict[str, Gateway]]:
    """A gateway without users and one with users and configuration endpoints, both on one namespace; started."""
    own = {"VMPOOL_WATCH_NAMESPACE": namespace, "VMPOOL_NAMESPACE": namespace}
    made = {
        OPEN: Gateway(plane.kubeconfig, folder, **own, **NO_REVIEWS),
        STATIC: Gateway(
            plane.kubeconfig, folder, **own, **static_settings(folder), VMPOOL_GATEWAY_CONFIG_ENDPOINTS="true"
        ),
    }
    try:
        for gateway in made.values():
            gateway.start()
        yield made
    finally:
        for gateway in made.values():
            gateway.kill()
