"""One line in the log for each thing that somebody got, changed or gave back: who, what, when, from where."""

import logging
from typing import Any

from vmpool.gateway.context import Call
from vmpool.plan.snapshot import VM, PoolFacts
from vmpool.telemetry import logs

LOGGER = "vmpool.audit"

log = logs.get(LOGGER)


def listen() -> None:
    """Let audit lines through whatever the log level is; that they are made is a setting of its own."""
    logging.getLogger(LOGGER).setLevel(logging.INFO)


def record(call: Call, action: str, vm: VM | None = None, pool: PoolFacts | None = None, **more: Any) -> None:
    """Log one act of whom ``call`` has found to ask, after it has happened.

    ``more`` must hold no secret; the id of a token is none. ``claim_id`` there stands for that of ``vm``'s claim.
    """
    if not call.gateway.own.audit:
        return
    known = call.known
    line: dict[str, Any] = {
        "action": action,
        "user": known.user if known else "",
        "login": known.identity.login if known else "",
        "token_id": known.token_id if known else "",
        "address": call.address,
        "request_id": call.request_id,
    }
    if vm is not None:
        line |= {"vm": vm.name, "namespace": vm.namespace, "pool": vm.pool}
        line["claim_id"] = vm.claim.id if vm.claim is not None else ""
    if pool is not None:
        line |= {"namespace": pool.namespace, "pool": pool.name}
    log.info("audit", **(line | more))
