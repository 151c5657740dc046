"""Every endpoint of the API, in the order in which the OpenAPI document shows them."""

from vmpool.gateway import checkout, config, ondemand, status, summary, tokens, vms
from vmpool.gateway.routes import Route


def tables() -> tuple[tuple[Route, ...], ...]:
    """Return the tables of all modules that have endpoints."""
    return (
        vms.ROUTES,
        checkout.ROUTES,
        tokens.ROUTES,
        ondemand.ROUTES,
        status.ROUTES,
        summary.ROUTES,
        config.ROUTES,
    )
