"""What watches the gateway reads: is it there, may it be sent requests, what does it count."""

from datetime import timedelta

from prometheus_client.exposition import generate_latest

from vmpool.gateway.answers import Answer, Refusal, not_found
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.routes import OK, REFUSED, Route, Schema

PLAIN: Schema = {"type": "string"}
DASHBOARD = "/dashboard/"


def loading(gateway: Gateway) -> str:
    """Return what is still missing before any request can be answered; empty once all first lists are complete."""
    for mirror in (gateway.pools, gateway.vms, gateway.claims):
        if not mirror.synced.is_set():
            return f"the first list of {mirror.selection} is not complete"
    return ""


def trouble(gateway: Gateway) -> str:
    """Return why no requests should be sent here now; empty when all is well."""
    if missing := loading(gateway):
        return missing
    for mirror in (gateway.pools, gateway.vms, gateway.claims):
        age = mirror.age()
        if age > mirror.settings.silence.total_seconds():
            return f"{mirror.selection} was last heard of {age:.0f} s ago"
        if mirror.regressed:
            return f"{mirror.selection}: the API server went back in time"
    skew = gateway.client.clock_skew or timedelta(0)
    if abs(skew.total_seconds()) > gateway.settings.max_clock_skew_seconds:
        return f"the clock differs from the API server's by {skew.total_seconds():.1f} s"
    return gateway.gatekeeper.healthy()


async def ping(_: Call) -> Answer:
    """Say that somebody is there."""
    return Answer({"ok": True, "message": "pong"})


async def healthcheck(_: Call) -> Answer:
    """Say what VMPooler says there, whose monitors ask for it."""
    return Answer({"ok": True})


async def alive(_: Call) -> Answer:
    """Say that the loop turns. Not ready is no reason to be restarted; doubt ends the process by itself."""
    return Answer(None, text="ok\n")


async def ready(call: Call) -> Answer:
    """Say whether requests should be sent here, and if not, why."""
    why_not = trouble(call.gateway)
    return Answer(None, status=503 if why_not else 200, text=f"{why_not or 'ok'}\n")


async def metrics(call: Call) -> Answer:
    """Show what is counted, with levels of this moment."""
    measure(call.gateway)
    return Answer(None, text=generate_latest(call.gateway.metrics.registry).decode())


def measure(gateway: Gateway) -> None:
    """Set the levels to those of this moment."""
    levels = gateway.metrics
    for mirror in (gateway.pools, gateway.vms, gateway.claims):
        if mirror.synced.is_set():
            levels.watch_age.labels(mirror.selection.resource.plural).set(mirror.age())
    levels.ready.clear()
    for entry in gateway.pools:
        levels.ready.labels(*entry.key).set(gateway.ready.count(entry.uid))
    if gateway.client.clock_skew is not None:
        # Ours minus the server's, as the operator shows it.
        levels.clock_skew.set(-gateway.client.clock_skew.total_seconds())


async def root(_: Call) -> Answer:
    """Send browsers where VMPooler sends them."""
    return Answer({"ok": True}, status=302, headers={"Location": DASHBOARD})


async def dashboard(_: Call) -> Answer:
    """Say that there is none."""
    raise not_found("this server has no dashboard; /api/v3/status and /metrics have its numbers")


async def unknown(_: Call) -> Answer:
    """Answer for paths and methods that nobody serves, as VMPooler does."""
    raise Refusal(404)


ROUTES: tuple[Route, ...] = (
    Route("GET", "/ping", ping, "Is somebody there?", {200: OK}),
    Route("GET", "/healthcheck", healthcheck, "The same, where VMPooler has it.", {200: OK}),
    Route("GET", "/healthz", alive, "Does the process turn?", {200: PLAIN}, plain=frozenset({200})),
    Route(
        "GET",
        "/readyz",
        ready,
        "May requests be sent here? If not, why?",
        {200: PLAIN, 503: PLAIN},
        plain=frozenset({200, 503}),
    ),
    Route("GET", "/metrics", metrics, "Prometheus metrics.", {200: PLAIN}, plain=frozenset({200})),
    Route("GET", "/prometheus", metrics, "The same, where VMPooler has them.", {200: PLAIN}, plain=frozenset({200})),
    Route("GET", "/", root, "Redirects to the dashboard.", {302: OK}),
    Route("GET", "/dashboard", dashboard, "There is no dashboard.", {404: REFUSED}),
    Route("GET", "/dashboard/{part:.+}", dashboard, "There is no dashboard.", {404: REFUSED}),
)
"""Answered from the first moment on, and not limited: those who watch must not be shut out."""
UNKNOWN_ROUTE = Route("GET", "unmatched", unknown, "Nobody serves this.", {404: REFUSED})
