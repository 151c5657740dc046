"""Runs in a pod: checks VMs out over REST and gives them back until told to end, and prints what came of each.

Arguments: address of the REST API, pool, how many clients. Each round is a line of JSON: when, how long, what was said.
"""

import json
import signal
import sys
import threading
import time
import urllib.error
import urllib.request
from typing import Any

PAUSE_SECONDS = 1.0
REQUEST_SECONDS = 30.0
ENDING = threading.Event()
"""Set by SIGTERM: rounds that have begun are finished, so that no VM stays with us."""


def call(method: str, url: str) -> tuple[int, Any]:
    """Return status and JSON body; status 0 and the reason where nothing was answered."""
    try:
        request = urllib.request.Request(url, method=method)
        with urllib.request.urlopen(request, timeout=REQUEST_SECONDS) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        return error.code, error.read().decode(errors="replace")
    except (OSError, ValueError) as error:
        return 0, repr(error)


def turn(api: str, pool: str) -> dict[str, Any]:
    """Check one VM out and give it back; return what is told of it."""
    begin = time.time()
    status, body = call("POST", f"{api}/api/v3/vm/{pool}")
    told: dict[str, Any] = {"at": begin, "seconds": round(time.time() - begin, 3), "status": status}
    if status != 200:
        return {**told, "said": body}
    name = body[pool]["hostname"]
    status, body = call("DELETE", f"{api}/api/v3/vm/{name}")
    return {**told, "name": name, "returned": status, **({} if status == 200 else {"said": body})}


def client(api: str, pool: str) -> None:
    """Go on until the process is told to end."""
    while not ENDING.is_set():
        sys.stdout.write(json.dumps(turn(api, pool)) + "\n")
        sys.stdout.flush()
        ENDING.wait(PAUSE_SECONDS)


def main() -> None:
    """Start the clients and wait with them."""
    api, pool, count = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: ENDING.set())
    threads = [threading.Thread(target=client, args=(api, pool)) for _ in range(int(count))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


main()
