"""Contract rows: status, counts, summaries, and what is outside of /api/v3."""

from tests.control_plane.gateway.scene import Stock
from tests.control_plane.gateway.shapes import ANYTHING, NO_BODY, NUMBER, Each, Match, Maybe, Text
from tests.control_plane.gateway.table import BOTH, CAUSE, DONE, REFUSED, STATIC, TWO, WEB, Held, Row

S = "/api/v3"
TASK = {"duration": {"average": NUMBER, "min": NUMBER, "max": NUMBER, "total": NUMBER}, "count": {"total": int}}
CAPACITY = {"current": int, "total": int, "percent": NUMBER}
QUEUE = dict.fromkeys(("requested", "pending", "cloning", "booting", "ready", "running", "completed", "total"), int)
POOL = {"ready": int, "running": int, "pending": int, "max": int, "lastBoot": str, Maybe("alias"): [str]}
HEALTH = {
    "ok": bool,
    "message": Match(r"Battle station fully armed and operational\.|Found \d+ empty pools\."),
    Maybe("empty"): [str],
    "uptime": NUMBER,
}
ARMED = {"ok": True, "message": "Battle station fully armed and operational.", "uptime": NUMBER}
POOLS = {"<web>": {"ready": 2, "running": 1, "pending": 1, "max": 3, "lastBoot": str}, Each(".+"): POOL}
STATUS = {
    "capacity": CAPACITY,
    "clone": TASK,
    "boot": TASK,
    "pools": {Each(".+"): POOL},
    "queue": QUEUE,
    "status": HEALTH,
}
MIXED = {"web": Stock(ready=3, pending=1)}
WITH_ALIAS = {"web": Stock(ready=1, spec={"aliases": ["<any>"]})}
DAY = Match(r"\d{4}-\d\d-\d\d")
BY_POOL = {
    "duration": {Each("average|min|max|total"): NUMBER, Maybe("pool"): {Each(".+"): dict}},
    "count": {Each("average|min|max|total"): NUMBER, Maybe("pool"): {Each(".+"): dict}},
}
TAGS = {Each(".+"): {Each(".+"): int}}
SUMMARY = {
    "boot": BY_POOL,
    "clone": BY_POOL,
    "tag": TAGS,
    "daily": [{"date": DAY, "boot": BY_POOL, "clone": BY_POOL, "tag": TAGS}],
}
FORMAT = "Invalid date format '{}', must match YYYY-MM-DD."
BACKWARDS = "Date range is invalid, 'to' cannot come before 'from'."
FUTURE = "Date range is invalid, 'from' must be in the past."

STATUS_ROWS = (
    Row("status", "GET", f"{S}/status", 200, STATUS, pools=TWO, on=BOTH),
    Row("status-slash", "GET", f"{S}/status/", 200, STATUS),
    Row("status-needs-no-token", "GET", f"{S}/status", 200, STATUS, on=(STATIC,), who=""),
    Row(
        "status-pools",
        "GET",
        f"{S}/status?view=pools",
        200,
        {"pools": POOLS, "status": HEALTH},
        pools=MIXED,
        vms={"mine": Held()},
    ),
    Row("status-capacity", "GET", f"{S}/status?view=capacity", 200, {"capacity": CAPACITY, "status": ARMED}),
    Row("status-queue", "GET", f"{S}/status?view=queue", 200, {"queue": QUEUE, "status": ARMED}),
    Row("status-clone-boot", "GET", f"{S}/status?view=clone,boot", 200, {"clone": TASK, "boot": TASK, "status": ARMED}),
    Row("status-view-empty", "GET", f"{S}/status?view=", 200, {"status": ARMED}),
    Row("status-view-unknown", "GET", f"{S}/status?view=nonsense", 200, {"status": ARMED}),
    Row(
        "status-empty-pool",
        "GET",
        f"{S}/status?view=pools",
        200,
        {
            "pools": {"<web>": {"ready": 0, "running": 0, "pending": 0, "max": 2, "lastBoot": str}, Each(".+"): POOL},
            "status": {"ok": False, "message": Match(r"Found \d+ empty pools\."), "empty": [str], "uptime": NUMBER},
        },
        pools={"web": Stock(spec={"replicas": 2})},
    ),
    Row(
        "status-alias",
        "GET",
        f"{S}/status?view=pools",
        200,
        {
            "pools": {
                "<web>": {"ready": 1, "running": 0, "pending": 0, "max": 1, "lastBoot": str, "alias": ("<any>",)},
                Each(".+"): POOL,
            },
            "status": HEALTH,
        },
        pools=WITH_ALIAS,
    ),
    Row(
        "poolstat",
        "GET",
        f"{S}/poolstat?pool=<web>",
        200,
        {"pools": {"<web>": {"max": 1, "ready": 1}}},
        pools=WEB,
        on=BOTH,
    ),
    Row(
        "poolstat-slash",
        "GET",
        f"{S}/poolstat/?pool=<web>",
        200,
        {"pools": {"<web>": {"max": 1, "ready": 1}}},
        pools=WEB,
    ),
    Row(
        "poolstat-two",
        "GET",
        f"{S}/poolstat?pool=<web>,<other>,nowhere",
        200,
        {"pools": {"<web>": {"max": 2, "ready": 2}, "<other>": {"max": 1, "ready": 1}}},
        pools=TWO,
    ),
    Row(
        "poolstat-alias",
        "GET",
        f"{S}/poolstat?pool=<any>",
        200,
        {"pools": {"<web>": {"max": 1, "alias": ("<any>",), "ready": 1}}},
        pools=WITH_ALIAS,
    ),
    Row("poolstat-nothing", "GET", f"{S}/poolstat", 200, {"pools": {}}),
    Row("poolstat-unknown", "GET", f"{S}/poolstat?pool=nowhere", 200, {"pools": {}}),
    Row("totalrunning", "GET", f"{S}/totalrunning", 200, {"running": int}, on=BOTH),
    Row("totalrunning-slash", "GET", f"{S}/totalrunning/", 200, {"running": int}),
)

SUMMARY_ROWS = (
    Row("summary", "GET", f"{S}/summary", 200, SUMMARY, on=BOTH),
    Row("summary-slash", "GET", f"{S}/summary/", 200, SUMMARY),
    Row("summary-day", "GET", f"{S}/summary?from=<today>&to=<today>", 200, SUMMARY),
    Row(
        "summary-days",
        "GET",
        f"{S}/summary?from=<yesterday>&to=<today>",
        200,
        {**SUMMARY, "daily": (SUMMARY["daily"][0],) * 2},
    ),
    Row("summary-bad-from", "GET", f"{S}/summary?from=soon", 400, Text(FORMAT.format("soon"))),
    Row("summary-bad-to", "GET", f"{S}/summary?to=2026-1-1", 400, Text(FORMAT.format("2026-1-1"))),
    Row("summary-backwards", "GET", f"{S}/summary?from=<today>&to=<yesterday>", 400, Text(BACKWARDS)),
    Row("summary-future", "GET", f"{S}/summary?from=<tomorrow>&to=<tomorrow>", 400, Text(FUTURE)),
    Row(
        "summary-no-such-day",
        "GET",
        f"{S}/summary?from=2026-02-31",
        400,
        Text(FORMAT.format("2026-02-31")),
        difference="A day that no calendar has is 400 with the sentence for bad dates; the reference answers 500.",
    ),
    Row("summary-boot", "GET", f"{S}/summary/boot", 200, {"boot": BY_POOL, "daily": [{"date": DAY, "boot": BY_POOL}]}),
    Row(
        "summary-clone",
        "GET",
        f"{S}/summary/clone/",
        200,
        {"clone": BY_POOL, "daily": [{"date": DAY, "clone": BY_POOL}]},
    ),
    Row("summary-tag", "GET", f"{S}/summary/tag", 200, {"tag": TAGS, "daily": [{"date": DAY, "tag": TAGS}]}),
    Row(
        "summary-boot-key",
        "GET",
        f"{S}/summary/boot/duration",
        200,
        {"boot": {"duration": ANYTHING}, "daily": [{"date": DAY, "boot": {"duration": ANYTHING}}]},
    ),
    Row("summary-tag-key", "GET", f"{S}/summary/tag/user", 200, {"tag": TAGS, "daily": [{"date": DAY, "tag": TAGS}]}),
    Row("summary-unknown", "GET", f"{S}/summary/weather", 404, REFUSED),
    Row("summary-date-before-section", "GET", f"{S}/summary/weather?from=soon", 400, Text(FORMAT.format("soon"))),
)

AROUND = (
    Row("root", "GET", "/", 302, ANYTHING, headers={"Location": "(https?://[^/]+)?/dashboard/"}),
    Row(
        "dashboard",
        "GET",
        "/dashboard/",
        404,
        CAUSE,
        difference="There is no dashboard yet: 404 with the reason.",
    ),
    Row("dashboard-stats", "GET", "/dashboard/stats", 404, REFUSED),
    Row(
        "healthcheck",
        "GET",
        "/healthcheck",
        200,
        DONE,
        difference="/healthcheck is always there; /healthz, /readyz and /ping say more.",
    ),
    Row(
        "prometheus",
        "GET",
        "/prometheus",
        200,
        ANYTHING,
        headers={"Content-Type": "text/plain.*"},
        difference="/prometheus and /metrics are always there, with metric names of our own.",
    ),
    Row("unknown-route", "GET", f"{S}/nonsense", 404, REFUSED, on=BOTH),
    Row("unknown-version-1", "GET", "/api/v1/vm", 404, REFUSED),
    Row("unknown-version-2", "POST", "/api/v2/vm", 404, REFUSED),
    Row("unknown-method", "PATCH", f"{S}/vm", 404, REFUSED),
    Row("unknown-method-here", "DELETE", f"{S}/status", 404, REFUSED),
    Row("unknown-encoded", "GET", "/api%2Fv3/vm", 404, REFUSED),
    Row("unknown-traversal", "GET", f"{S}/..%2f..%2fetc%2fpasswd", 404, REFUSED),
    Row("head", "HEAD", f"{S}/vm", 200, NO_BODY),
    Row(
        "ping",
        "GET",
        "/ping",
        200,
        ANYTHING,
        on=BOTH,
        difference="/healthcheck is always there; /healthz, /readyz and /ping say more.",
    ),
    Row("healthz", "GET", "/healthz", 200, ANYTHING),
    Row("readyz", "GET", "/readyz", 200, ANYTHING),
    Row("metrics", "GET", "/metrics", 200, ANYTHING, headers={"Content-Type": "text/plain.*"}),
    Row(
        "openapi",
        "GET",
        "/openapi.json",
        200,
        {"openapi": Match(r"3\.1\.\d+"), "info": dict, "paths": dict, Each(".+"): ANYTHING},
        headers={"Content-Type": "application/json.*"},
    ),
)

ROWS = (*STATUS_ROWS, *SUMMARY_ROWS, *AROUND)
