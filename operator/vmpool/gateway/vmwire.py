"""One VM as ``GET /vm/<hostname>`` shows it. Pure; times in hours, as VMPooler's clients expect them."""

import re
from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Final

from vmpool.gateway.answers import Json, bad_request
from vmpool.gateway.requested import shown
from vmpool.plan.lifecycle import Phase
from vmpool.plan.snapshot import VM, PoolFacts

MAX_HOSTNAME: Final = 253
HOSTNAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?(\.[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)*", re.IGNORECASE)
HOUR: Final = timedelta(hours=1)

PENDING, READY, RUNNING, DESTROYED = "pending", "ready", "running", "destroyed"
_STATES: Mapping[str, str] = {Phase.PENDING: PENDING, Phase.READY: READY, Phase.CLAIMED: RUNNING}


def check_hostname(hostname: str) -> str:
    """Return a host name as it is looked for: in lower case. Raises ``Refusal`` 400 in VMPooler's words."""
    if not hostname:
        raise bad_request("Hostname is required")
    if len(hostname) > MAX_HOSTNAME:
        raise bad_request(f"Hostname too long: {shown(hostname)} has more than {MAX_HOSTNAME} characters")
    if not HOSTNAME.fullmatch(hostname):
        raise bad_request(f"Invalid hostname format: {shown(hostname)}")
    return hostname.lower()


def short(hostname: str) -> str:
    """Return a host name without its domain."""
    return hostname.split(".", 1)[0]


def state(vm: VM) -> str:
    """Return the word of VMPooler's that fits: a VM that was given up for any reason is destroyed."""
    if vm.claim is not None:
        return RUNNING if vm.claimed and vm.phase != Phase.COMPLETED else DESTROYED
    return DESTROYED if vm.deleting else _STATES.get(vm.phase, DESTROYED)


def described(vm: VM, template: str, pool: PoolFacts | None, now: datetime) -> Json:
    """Return what is told about a VM; ``template`` is the name of its pool.

    While nobody has it, its lifetime is what a claim would get.
    """
    claim, where = vm.claim, state(vm)
    body: Json = {"template": template}
    if claim is not None and claim.bound_at is not None:
        body["lifetime"] = hours(claim.expires_at - claim.bound_at)
        ended = claim.released_at or now
        body["running"] = _rounded(max(ended - claim.bound_at, timedelta()))
        if where == RUNNING:
            body["remaining"] = _rounded(max(claim.expires_at - now, timedelta()))
            body["start_time"] = rfc3339(claim.bound_at)
            body["end_time"] = rfc3339(claim.expires_at)
    elif pool is not None:
        body["lifetime"] = hours(pool.spec.claims.lifetime)
    body["state"] = where
    if claim is not None and claim.tags:
        body["tags"] = dict(claim.tags)
    body["ip"] = vm.addresses[0] if vm.addresses else ""
    body["fqdn"] = vm.host_name or vm.name
    body["host"] = vm.provider
    return body


def hours(span: timedelta) -> int | float:
    """Return a time in hours: a whole number where it is one, else to a hundredth."""
    whole, rest = divmod(span, HOUR)
    return whole if not rest else round(span / HOUR, 2)


def rfc3339(moment: datetime) -> str:
    """Return a time as VMPooler writes it: to the second."""
    return moment.isoformat(timespec="seconds")


def _rounded(span: timedelta) -> float:
    return round(span / HOUR, 2)
