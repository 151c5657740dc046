"""What `helm test` runs: each argument is an address, and may name a metric and the value that one pod there must show.

Tries again for a minute: a leader may be changing, a pod starting.
"""

import socket
import ssl
import sys
import time
import urllib.request
from urllib.parse import urlsplit

DEADLINE_SECONDS = 60.0
PAUSE_SECONDS = 2.0
REQUEST_SECONDS = 5.0


def answers(url: str) -> list[str]:
    """Return what every pod behind the name says. Raises OSError unless each says it with a 2xx."""
    parts = urlsplit(url)
    # Who the certificate is for is not asked here: it names the address that clients use.
    trust = ssl._create_unverified_context()  # noqa: S323
    found = socket.getaddrinfo(parts.hostname, parts.port, type=socket.SOCK_STREAM)
    hosts = {f"[{to[0]}]" if family == socket.AF_INET6 else to[0] for family, *_, to in found}
    said = []
    for host in sorted(hosts):
        there = f"{parts.scheme}://{host}:{parts.port}{parts.path}"
        with urllib.request.urlopen(there, timeout=REQUEST_SECONDS, context=trust) as answer:  # noqa: S310 - from the chart
            said.append(answer.read().decode())
    return said


def problem(wanted: str) -> str:
    """Return why an argument does not hold now; empty when it does."""
    url, *metric = wanted.split()
    try:
        said = answers(url)
    except OSError as error:
        return str(error)
    if metric and not any(f"{metric[0]} {float(metric[1])}" in text.splitlines() for text in said):
        return f"none of {len(said)} pods says {' '.join(metric)}"
    return ""


def main() -> int:
    """Return 0 when all hold within the minute."""
    end = time.monotonic() + DEADLINE_SECONDS
    for wanted in sys.argv[1:]:
        while why := problem(wanted):
            if time.monotonic() > end:
                sys.stdout.write(f"failed: {wanted}: {why}\n")
                return 1
            time.sleep(PAUSE_SECONDS)
        sys.stdout.write(f"well: {wanted}\n")
    return 0


sys.exit(main())
