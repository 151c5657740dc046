"""Contract rows: look at, change and give back VMs; disks and snapshots."""

from tests.control_plane.gateway.rows_checkout import V
from tests.control_plane.gateway.scene import DOMAIN, Stock
from tests.control_plane.gateway.shapes import ADDRESS, Around, Match, Maybe, Says
from tests.control_plane.gateway.table import (
    BOB,
    BOTH,
    CAUSE,
    CHALLENGE,
    DONE,
    REFUSED,
    STATIC,
    WEB,
    WRONG,
    Before,
    Held,
    Row,
    says,
)

TIME = Match(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?(Z|[+-]\d\d:\d\d)")
IP = Match(ADDRESS.pattern)
MINE = {"mine": Held()}
THEIRS = {"theirs": Held(by=BOB)}
ENDED = {"mine": Held(released=True)}
MORE = {Maybe("host"): str, Maybe("migrated"): str, Maybe("snapshots"): list, Maybe("disk"): list}
RUNNING = {
    "template": "<web>",
    "lifetime": 24,
    "running": Around(0, 0.05),
    "remaining": Around(24, 0.05),
    "start_time": TIME,
    "end_time": TIME,
    "state": "running",
    "ip": IP,
    "fqdn": f"<mine>.{DOMAIN}",
    **MORE,
}
SEEN = {"ok": True, "<mine>": RUNNING}


def waits(name: str, state: str) -> dict[str, object]:
    """What GET says of a VM that nobody has."""
    told = {"template": "<web>", "lifetime": 24, "state": state, "ip": IP, "fqdn": f"<{name}>.{DOMAIN}"}
    return {"ok": True, f"<{name}>": {**told, **MORE}}


OVER = {
    **{key: one for key, one in RUNNING.items() if key not in ("remaining", "start_time", "end_time", "state")},
    "state": "destroyed",
    Maybe("start_time"): TIME,
    Maybe("end_time"): TIME,
}
GONE = {"ok": True, "<mine>": OVER}
WRITE_NEEDS_TOKEN = "Where users are configured every change of a VM needs a token; the reference sets tags without."
OWNER_ONLY = "A VM is changed only by its owner: 403 for others; in the reference any valid token will do."
NOBODYS = (
    "A VM that nobody has cannot be changed or deleted: 404. The reference destroys VMs that are still handed out."
)

LOOK = (
    Row("vm-running", "GET", f"{V}/<mine>", 200, SEEN, pools=WEB, vms=MINE, on=BOTH),
    Row("vm-slash", "GET", f"{V}/<mine>/", 200, SEEN, pools=WEB, vms=MINE),
    Row("vm-running-claimed", "GET", f"{V}/<mine>", 200, SEEN, pools=WEB, vms={"mine": Held(phase="Claimed")}),
    Row("vm-by-fqdn", "GET", f"{V}/<mine>.{DOMAIN}", 200, SEEN, pools=WEB, vms=MINE),
    Row("vm-needs-no-token", "GET", f"{V}/<mine>", 200, SEEN, pools=WEB, vms=MINE, on=(STATIC,), who=""),
    Row(
        "vm-in-capitals",
        "GET",
        f"{V}/<mine.upper>.{DOMAIN}",
        200,
        {"ok": True, "<mine.upper>": RUNNING},
        pools=WEB,
        vms=MINE,
        difference="Host names are compared without case, as DNS does.",
    ),
    Row("vm-ready", "GET", f"{V}/<web.0>", 200, waits("web.0", "ready"), pools=WEB),
    Row(
        "vm-pending", "GET", f"{V}/<web.pending>", 200, waits("web.pending", "pending"), pools={"web": Stock(pending=1)}
    ),
    Row("vm-destroyed", "GET", f"{V}/<mine>", 200, GONE, pools=WEB, vms=ENDED),
    Row(
        "vm-destroyed-completed",
        "GET",
        f"{V}/<mine>",
        200,
        GONE,
        pools=WEB,
        vms={"mine": Held(released=True, phase="Completed")},
    ),
    Row("vm-unknown", "GET", f"{V}/nowhere-12345678", 404, REFUSED, on=BOTH),
    Row("vm-bad-name", "GET", f"{V}/a_b", 400, says("Invalid hostname format")),
    Row("vm-bad-name-control", "GET", f"{V}/a%00b", 400, says("Invalid hostname format")),
    Row("vm-bad-name-traversal", "GET", f"{V}/..%2F..%2Fsecrets", 400, says("Invalid hostname format")),
    Row("vm-long-name", "GET", f"{V}/{'a.' * 130}a", 400, says("Hostname too long")),
)


def change(name: str, status: int, shape: object, body: object, **more: object) -> Row:
    """A change of one's own VM."""
    return Row(name, "PUT", f"{V}/<mine>", status, shape, body, **{"pools": WEB, "vms": MINE, **more})  # type: ignore[arg-type]


def failure(*words: str) -> dict[str, object]:
    """The refusal of a change, with the reference's sentences."""
    return {"ok": False, "failure": tuple(Says(sentence) for sentence in words)}


CHANGE = (
    change("change-lifetime", 200, DONE, {"lifetime": "2"}, on=BOTH),
    change("change-lifetime-number", 200, DONE, {"lifetime": 2}),
    change("change-tags", 200, DONE, {"tags": {"department": "engineering", "user": "jdoe"}}, on=BOTH),
    change("change-both", 200, DONE, {"lifetime": "3", "tags": {"a": "b"}}),
    change("change-nothing", 200, DONE, {}),
    *(
        change(
            f"change-lifetime-{label}",
            400,
            failure(f"Lifetime must be a positive integer (got {shown})"),
            {"lifetime": sent},
        )
        for label, sent, shown in (("0", 0, "0"), ("negative", -1, "-1"), ("word", "x", "x"), ("empty", "", ""))
    ),
    change(
        "change-lifetime-too-long",
        400,
        failure("You provided a lifetime (1000) that exceeds the configured maximum of 168."),
        {"lifetime": "1000"},
    ),
    change(
        "change-tags-no-object",
        400,
        failure("You provided tags (x) as something other than a hash."),
        {"tags": "x"},
        difference="Tags that are no object are refused with the reference's sentence; the reference then answers 500.",
    ),
    change("change-unknown-argument", 400, failure("Unknown argument x."), {"colour": "x"}),
    change(
        "change-two-mistakes",
        400,
        failure("Lifetime must be a positive integer (got 0)", "Unknown argument x."),
        {"lifetime": 0, "colour": "x"},
    ),
    change("change-null", 400, says("Request body must be a JSON object"), None),
    change("change-list", 400, says("Request body must be a JSON object"), []),
    Row("change-bad-json", "PUT", f"{V}/<mine>", 400, says("Invalid JSON"), raw=b"{", pools=WEB, vms=MINE),
    Row("change-unknown", "PUT", f"{V}/nowhere-12345678", 404, REFUSED, {"lifetime": 2}, on=BOTH),
    Row("change-unknown-before-body", "PUT", f"{V}/nowhere-12345678", 404, REFUSED, raw=b"{"),
    Row("change-bad-name", "PUT", f"{V}/a_b", 400, says("Invalid hostname format"), {"lifetime": 2}),
    Row(
        "change-nobodys",
        "PUT",
        f"{V}/<web.0>",
        404,
        CAUSE,
        {"lifetime": 2},
        pools=WEB,
        on=BOTH,
        difference=NOBODYS,
    ),
    Row("change-ended", "PUT", f"{V}/<mine>", 404, CAUSE, {"lifetime": 2}, pools=WEB, vms=ENDED, difference=NOBODYS),
    change("change-without-token", 401, REFUSED, {"lifetime": 2}, on=(STATIC,), who="", headers=CHALLENGE),
    change("change-wrong-token", 401, REFUSED, {"lifetime": 2}, on=(STATIC,), who=WRONG, headers=CHALLENGE),
    change(
        "change-tags-without-token",
        401,
        REFUSED,
        {"tags": {"a": "b"}},
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
        difference=WRITE_NEEDS_TOKEN,
    ),
    Row(
        "change-theirs",
        "PUT",
        f"{V}/<theirs>",
        403,
        CAUSE,
        {"lifetime": 2},
        pools=WEB,
        vms=THEIRS,
        on=(STATIC,),
        difference=OWNER_ONLY,
    ),
)

LOOK_AGAIN = (
    Row(
        "vm-lifetime-shown",
        "GET",
        f"{V}/<mine>",
        200,
        {"ok": True, "<mine>": {**RUNNING, "lifetime": 2, "remaining": Around(2, 0.05)}},
        pools=WEB,
        vms=MINE,
        before=(Before("PUT", f"{V}/<mine>", {"lifetime": "2"}),),
        on=BOTH,
    ),
    Row(
        "vm-tags-shown",
        "GET",
        f"{V}/<mine>",
        200,
        {"ok": True, "<mine>": {**RUNNING, "tags": {"department": "engineering", "user": "jdoe"}}},
        pools=WEB,
        vms=MINE,
        before=(
            Before("PUT", f"{V}/<mine>", {"tags": {"department": "engineering"}}),
            Before("PUT", f"{V}/<mine>", {"tags": {"user": "jdoe"}}),
        ),
    ),
    Row(
        "vm-tag-empty-changes-nothing",
        "GET",
        f"{V}/<mine>",
        200,
        {"ok": True, "<mine>": {**RUNNING, "tags": {"user": "jdoe"}}},
        pools=WEB,
        vms=MINE,
        before=(
            Before("PUT", f"{V}/<mine>", {"tags": {"user": "jdoe"}}),
            Before("PUT", f"{V}/<mine>", {"tags": {"user": ""}}),
        ),
    ),
)

GIVE_BACK = (
    Row("delete", "DELETE", f"{V}/<mine>", 200, DONE, pools=WEB, vms=MINE, on=BOTH, taken={"web": 0}),
    Row("delete-by-fqdn", "DELETE", f"{V}/<mine>.{DOMAIN}", 200, DONE, pools=WEB, vms=MINE, taken={"web": 0}),
    Row("delete-slash", "DELETE", f"{V}/<mine>/", 200, DONE, pools=WEB, vms=MINE, taken={"web": 0}),
    Row("delete-unknown", "DELETE", f"{V}/nowhere-12345678", 404, REFUSED, on=BOTH),
    Row(
        "delete-ready",
        "DELETE",
        f"{V}/<web.0>",
        404,
        CAUSE,
        pools=WEB,
        on=BOTH,
        difference=NOBODYS,
    ),
    Row(
        "delete-pending",
        "DELETE",
        f"{V}/<web.pending>",
        404,
        CAUSE,
        pools={"web": Stock(pending=1)},
        difference=NOBODYS,
    ),
    Row("delete-twice", "DELETE", f"{V}/<mine>", 200, DONE, pools=WEB, vms=ENDED, on=BOTH),
    Row(
        "delete-without-token",
        "DELETE",
        f"{V}/<mine>",
        401,
        REFUSED,
        pools=WEB,
        vms=MINE,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
        taken={"web": 1},
    ),
    Row(
        "delete-wrong-token",
        "DELETE",
        f"{V}/<mine>",
        401,
        REFUSED,
        pools=WEB,
        vms=MINE,
        on=(STATIC,),
        who=WRONG,
        headers=CHALLENGE,
        taken={"web": 1},
    ),
    Row(
        "delete-theirs",
        "DELETE",
        f"{V}/<theirs>",
        403,
        CAUSE,
        pools=WEB,
        vms=THEIRS,
        on=(STATIC,),
        taken={"web": 1},
        difference=OWNER_ONLY,
    ),
)

LATER = (
    "Disks and snapshots are checked as in the reference, then answered 501 with the reason until VMOperation exists."
)


def operations() -> tuple[Row, ...]:
    """Disk, snapshot and revert: the reference's checks, then 501."""
    rows = []
    for name, path in (("disk", "disk/8"), ("snapshot", "snapshot"), ("revert", "snapshot/abc123")):
        rows += [
            Row(name, "POST", f"{V}/<mine>/{path}", 501, CAUSE, pools=WEB, vms=MINE, on=BOTH, difference=LATER),
            Row(f"{name}-unknown", "POST", f"{V}/nowhere-12345678/{path}", 404, REFUSED, on=BOTH),
            Row(
                f"{name}-without-token",
                "POST",
                f"{V}/nowhere-12345678/{path}",
                401,
                REFUSED,
                on=(STATIC,),
                who="",
                headers=CHALLENGE,
            ),
            Row(
                f"{name}-wrong-token",
                "POST",
                f"{V}/<mine>/{path}",
                401,
                REFUSED,
                pools=WEB,
                vms=MINE,
                on=(STATIC,),
                who=WRONG,
                headers=CHALLENGE,
            ),
            Row(
                f"{name}-theirs",
                "POST",
                f"{V}/<theirs>/{path}",
                403,
                CAUSE,
                pools=WEB,
                vms=THEIRS,
                on=(STATIC,),
                difference=OWNER_ONLY,
            ),
        ]
    return tuple(rows)


SIZES = tuple(
    Row(f"disk-{label}", "POST", f"{V}/<mine>/disk/{size}", 400, says(f"Disk size {words}"), pools=WEB, vms=MINE)
    for label, size, words in (
        ("0", "0", "must be at least 1"),
        ("negative", "-1", "must be a valid integer"),
        ("2049", "2049", "must be at most 2048"),
        ("word", "x", "must be a valid integer"),
        ("fraction", "1.5", "must be a valid integer"),
    )
)
DISK = (
    *SIZES,
    Row("disk-bad-name", "POST", f"{V}/a_b/disk/8", 400, says("Invalid hostname format")),
    Row("disk-name-before-size", "POST", f"{V}/a_b/disk/0", 400, says("Invalid hostname format")),
    Row("disk-token-before-size", "POST", f"{V}/a_b/disk/0", 401, REFUSED, on=(STATIC,), who="", headers=CHALLENGE),
)

ROWS = (*LOOK, *CHANGE, *LOOK_AGAIN, *GIVE_BACK, *operations(), *DISK)
