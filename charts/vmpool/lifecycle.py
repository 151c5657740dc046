"""What `helm test` runs on the simulated cloud: a pool fills, a claim gets its machine, and everything goes again.

Arguments: the name for the objects, the cloud's address, the Secret with its key. It is its account to the API server.
"""

import json
import os
import ssl
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

ACCOUNT = Path(os.environ.get("ACCOUNT", "/var/run/secrets/kubernetes.io/serviceaccount"))
SERVER = os.environ.get("API_SERVER", "https://kubernetes.default.svc")
DEADLINE_SECONDS = 120.0
PAUSE_SECONDS = 1.0
REQUEST_SECONDS = 10.0
NOT_FOUND = 404


class Failed(Exception):
    """Something did not come in time, or was refused; the message says what."""


def call(method: str, plural: str, name: str = "", body: Any = None) -> Any:
    """Return what the API server says, None of what is not there. Raises Failed for a refusal."""
    path = f"/apis/vmpool.dev/v1alpha1/namespaces/{(ACCOUNT / 'namespace').read_text()}/{plural}"
    path += f"/{name}" if name else ""
    headers = {"Authorization": f"Bearer {(ACCOUNT / 'token').read_text()}", "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(f"{SERVER}{path}", data, headers, method=method)  # noqa: S310 - from the chart
    trust = ssl.create_default_context(cafile=str(ACCOUNT / "ca.crt"))
    try:
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS, context=trust) as answer:  # noqa: S310
            return json.load(answer)
    except urllib.error.HTTPError as error:
        if error.code == NOT_FOUND and name:
            return None
        raise Failed(f"{method} {plural} {name}: {error.code} {error.read().decode()}") from error


def make(kind: str, plural: str, name: str, spec: Any) -> None:
    """Make an object."""
    meta = {"name": name}
    call("POST", plural, body={"apiVersion": "vmpool.dev/v1alpha1", "kind": kind, "metadata": meta, "spec": spec})


def wait(what: str, condition: Callable[[], Any]) -> Any:
    """Return the first truthy value. Raises Failed after the deadline."""
    end = time.monotonic() + DEADLINE_SECONDS
    while not (value := condition()):
        if time.monotonic() > end:
            raise Failed(f"{what}: not within {DEADLINE_SECONDS:g} s")
        time.sleep(PAUSE_SECONDS)
    sys.stdout.write(f"well: {what}\n")
    sys.stdout.flush()
    return value


def status(plural: str, name: str, field: str) -> Any:
    """Return a field of an object's status; None when there is none."""
    return ((call("GET", plural, name) or {}).get("status") or {}).get(field)


def remove(plural: str, name: str) -> None:
    """Delete an object and wait until it is gone."""
    call("DELETE", plural, name)
    wait(f"{plural}/{name} is gone", lambda: call("GET", plural, name) is None)


def live(name: str, endpoint: str, secret: str) -> None:
    """Go through the life of a machine. Raises Failed."""
    namespace = (ACCOUNT / "namespace").read_text()
    user = f"system:serviceaccount:{namespace}:{os.environ['ACCOUNT_NAME']}"
    groups = ["system:serviceaccounts", f"system:serviceaccounts:{namespace}", "system:authenticated"]
    provider = {"type": "simulated", "config": {"endpoint": endpoint}, "secretRef": {"name": secret}}
    make("VMProvider", "vmproviders", name, provider)
    pool = {"replicas": 1, "maxVMs": 2, "template": {"image": "debian-12"}, "providers": [{"name": name}]}
    make("VMPool", "vmpools", name, pool)
    wait("the pool is full", lambda: status("vmpools", name, "readyReplicas") == 1)
    claim = {"requests": [{"pool": name, "count": 1}], "requester": user, "requesterGroups": groups}
    make("VMClaim", "vmclaims", name, claim)
    wait("the claim has its machine", lambda: status("vmclaims", name, "phase") == "Bound")
    remove("vmclaims", name)


def main() -> int:
    """Return 0 when all went well; what was made is removed in any case."""
    name, endpoint, secret = sys.argv[1:]
    failed = []
    try:
        live(name, endpoint, secret)
    except Failed as error:
        failed.append(str(error))
    for plural in ("vmclaims", "vmpools", "vmproviders"):
        try:
            remove(plural, name)
        except Failed as error:
            failed.append(str(error))
    for each in failed:
        sys.stdout.write(f"failed: {each}\n")
    return 1 if failed else 0


sys.exit(main())
