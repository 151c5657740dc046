"""Contract rows: on-demand requests."""

from typing import Any

from tests.control_plane.gateway.rows_checkout import host
from tests.control_plane.gateway.scene import Stock
from tests.control_plane.gateway.shapes import Match, Says
from tests.control_plane.gateway.table import (
    BOB,
    BOTH,
    CAUSE,
    CHALLENGE,
    DONE,
    REFUSED,
    STATIC,
    WRONG,
    Before,
    Patch,
    Row,
)

O = "/api/v3/ondemandvm"  # noqa: E741
UUID = Match("[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
DRY = {"web": Stock()}
NAMED = {"ok": True, "request_id": "<id>"}
UNREADABLE = {"ok": False, "message": "JSON payload could not be parsed"}
ASKED = Before("POST", O, {"<web>": "2", "request_id": "<id>"})
DELETED = Before("DELETE", f"{O}/<id>")
COUNT = "Counts of on-demand requests are checked as those of checkouts; the reference takes any text for a number."


def message(words: str) -> dict[str, Any]:
    """A refusal with the reference's sentence, and a cause of ours."""
    return {"ok": False, "message": words}


ASK = (
    Row("ondemand", "POST", O, 201, {"ok": True, "request_id": UUID}, {"<web>": "2"}, pools=DRY, on=BOTH),
    Row("ondemand-slash", "POST", f"{O}/", 201, {"ok": True, "request_id": UUID}, {"<web>": "2"}, pools=DRY),
    Row("ondemand-number", "POST", O, 201, {"ok": True, "request_id": UUID}, {"<web>": 2}, pools=DRY),
    Row("ondemand-named", "POST", O, 201, NAMED, {"<web>": "2", "request_id": "<id>"}, pools=DRY, on=BOTH),
    Row(
        "ondemand-alias",
        "POST",
        O,
        201,
        {"ok": True, "request_id": UUID},
        {"<any>": 2},
        pools={"web": Stock(spec={"aliases": ["<any>"]}), "other": Stock(spec={"aliases": ["<any>"]})},
    ),
    Row("ondemand-path", "POST", f"{O}/<web>", 201, {"ok": True, "request_id": UUID}, pools=DRY, on=BOTH),
    Row(
        "ondemand-path-pools",
        "POST",
        f"{O}/<web>+<web>+<other>",
        201,
        {"ok": True, "request_id": UUID},
        pools={"web": Stock(), "other": Stock()},
    ),
    Row("ondemand-bad-json", "POST", O, 400, UNREADABLE, raw=b"{", on=BOTH),
    Row("ondemand-empty-body", "POST", O, 400, UNREADABLE),
    Row("ondemand-null", "POST", O, 404, REFUSED, raw=b"null"),
    Row(
        "ondemand-list",
        "POST",
        O,
        400,
        {"ok": False, "message": str},
        raw=b"[]",
        difference="A body that is no object is refused with 400; the reference answers 500.",
    ),
    Row(
        "ondemand-nothing-asked",
        "POST",
        O,
        404,
        REFUSED,
        {},
        difference="A request for nothing is refused with 404, as for checkouts; the reference makes one without VMs.",
    ),
    Row(
        "ondemand-without-token",
        "POST",
        O,
        401,
        REFUSED,
        {"<web>": 1},
        pools=DRY,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
    ),
    Row(
        "ondemand-wrong-token",
        "POST",
        O,
        401,
        REFUSED,
        {"<web>": 1},
        pools=DRY,
        on=(STATIC,),
        who=WRONG,
        headers=CHALLENGE,
    ),
    Row("ondemand-token-before-body", "POST", O, 401, REFUSED, raw=b"{", on=(STATIC,), who="", headers=CHALLENGE),
    Row(
        "ondemand-path-without-token",
        "POST",
        f"{O}/<web>",
        401,
        REFUSED,
        pools=DRY,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
    ),
    Row("ondemand-unknown", "POST", O, 404, {"ok": False, "bad_templates": ("nowhere",)}, {"nowhere": 1}, on=BOTH),
    Row(
        "ondemand-some-unknown",
        "POST",
        O,
        404,
        {"ok": False, "bad_templates": ("nowhere", "never")},
        {"nowhere": 1, "<web>": 1, "never": 1},
        pools=DRY,
    ),
    Row("ondemand-path-unknown", "POST", f"{O}/nowhere", 404, {"ok": False, "bad_templates": ("nowhere",)}),
    Row(
        "ondemand-too-many",
        "POST",
        O,
        403,
        message("requested amount of instances exceeds the maximum 10"),
        {"<web>": 11},
        pools=DRY,
        on=BOTH,
    ),
    Row(
        "ondemand-path-too-many",
        "POST",
        f"{O}/{'+'.join(['<web>'] * 11)}",
        403,
        message("requested amount of instances exceeds the maximum 10"),
        pools=DRY,
    ),
    Row(
        "ondemand-unknown-before-too-many",
        "POST",
        O,
        404,
        {"ok": False, "bad_templates": ("nowhere",)},
        {"<web>": 11, "nowhere": 1},
        pools=DRY,
    ),
    Row(
        "ondemand-again",
        "POST",
        O,
        409,
        {"ok": False, "request_id": "<id>", "message": "request_id '<id>' has already been created"},
        {"<web>": 1, "request_id": "<id>"},
        pools=DRY,
        before=(ASKED,),
        on=BOTH,
    ),
    Row(
        "ondemand-too-many-before-again",
        "POST",
        O,
        403,
        message("requested amount of instances exceeds the maximum 10"),
        {"<web>": 11, "request_id": "<id>"},
        pools=DRY,
        before=(ASKED,),
    ),
    *(
        Row(
            f"ondemand-count-{label}",
            "POST",
            O,
            400,
            {"ok": False, "message": Says("VM count")},
            {"<web>": count},
            pools=DRY,
            difference=COUNT,
        )
        for label, count in (
            ("0", 0),
            ("negative", -1),
            ("word", "x"),
            ("fraction", 1.5),
            ("true", True),
            ("null", None),
        )
    ),
)

WAITING = {"ok": True, "request_id": "<id>", "ready": False, "<web>": {"ready": "0", "pending": "2"}}
TTL = "The request failed to provision instances within the configured ondemand_request_ttl '5'"
FAILED = {"phase": "Failed", "reason": "DeadlinePassed", "message": "no VM was ready in time"}

LOOK = (
    Row("ondemand-waits", "GET", f"{O}/<id>", 202, WAITING, pools=DRY, before=(ASKED,), on=BOTH),
    Row("ondemand-look-slash", "GET", f"{O}/<id>/", 202, WAITING, pools=DRY, before=(ASKED,)),
    Row(
        "ondemand-look-needs-no-token",
        "GET",
        f"{O}/<id>",
        202,
        WAITING,
        pools=DRY,
        before=(ASKED,),
        on=(STATIC,),
        who="",
    ),
    Row(
        "ondemand-ready",
        "GET",
        f"{O}/<id>",
        200,
        {"ok": True, "request_id": "<id>", "ready": True, "<web>": {"hostname": (host("web"), host("web"))}},
        pools={"web": Stock(ready=2)},
        before=(ASKED, Patch("<id>", {"phase": "Bound"}, bind="web")),
        on=BOTH,
    ),
    Row(
        "ondemand-failed",
        "GET",
        f"{O}/<id>",
        200,
        {"ok": True, "request_id": "<id>", "ready": False, "message": Says(TTL)},
        pools=DRY,
        before=(ASKED, Patch("<id>", FAILED)),
        difference="A failed request says why, after the reference's sentence.",
    ),
    Row(
        "ondemand-filled-never-fails",
        "GET",
        f"{O}/<id>",
        200,
        {"ok": True, "request_id": "<id>", "ready": True, "<web>": {"hostname": (host("web"), host("web"))}},
        pools={"web": Stock(ready=2)},
        before=(ASKED, Patch("<id>", {"phase": "Bound"}, bind="web"), Patch("<id>", {"phase": "Expired"})),
        difference="A request that was filled never turns failed, whatever happens to its VMs later.",
    ),
    Row(
        "ondemand-deleted",
        "GET",
        f"{O}/<id>",
        200,
        {"ok": True, "request_id": "<id>", "ready": False, "message": "The request has been deleted"},
        pools=DRY,
        before=(ASKED, DELETED),
        on=BOTH,
    ),
    Row("ondemand-look-unknown", "GET", f"{O}/never", 404, message("no request found for request_id 'never'"), on=BOTH),
)

END = (
    Row("ondemand-delete", "DELETE", f"{O}/<id>", 200, DONE, pools=DRY, before=(ASKED,), on=BOTH),
    Row(
        "ondemand-delete-again",
        "DELETE",
        f"{O}/<id>",
        200,
        {"ok": True, "message": "the request has already been deleted"},
        pools=DRY,
        before=(ASKED, DELETED),
        on=BOTH,
    ),
    Row(
        "ondemand-delete-releases",
        "DELETE",
        f"{O}/<id>",
        200,
        DONE,
        pools={"web": Stock(ready=2)},
        before=(ASKED, Patch("<id>", {"phase": "Bound"}, bind="web")),
        taken={"web": 0},
    ),
    Row(
        "ondemand-delete-unknown",
        "DELETE",
        f"{O}/never",
        404,
        message("no request found for request_id 'never'"),
        on=BOTH,
    ),
    Row(
        "ondemand-delete-without-token",
        "DELETE",
        f"{O}/<id>",
        401,
        REFUSED,
        pools=DRY,
        before=(ASKED,),
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
    ),
    Row(
        "ondemand-delete-theirs",
        "DELETE",
        f"{O}/<id>",
        403,
        CAUSE,
        pools=DRY,
        before=(ASKED,),
        on=(STATIC,),
        who=BOB,
        difference="Where users are configured only the owner deletes an on-demand request, not any token.",
    ),
    Row(
        "ondemand-id-used-up",
        "POST",
        O,
        409,
        {"ok": False, "request_id": "<id>", "message": "request_id '<id>' has already been created"},
        {"<web>": 1, "request_id": "<id>"},
        pools=DRY,
        before=(ASKED, DELETED),
    ),
)

ROWS = (*ASK, *LOOK, *END)
