"""Contract rows: look at the configuration and change pools."""

from typing import Any

from tests.control_plane.gateway.scene import IMAGE, OTHER_PROVIDER, PROVIDER
from tests.control_plane.gateway.shapes import ANYTHING, Each, Maybe
from tests.control_plane.gateway.table import (
    BOTH,
    CHALLENGE,
    DONE,
    OPEN,
    REFUSED,
    STATIC,
    WEB,
    WRONG,
    Before,
    Row,
)

C = "/api/v3/config"
RESET = "/api/v3/poolreset"
CHANGES = (
    ("poolsize", f"{C}/poolsize", {"<web>": "5"}, "not_configured"),
    ("pooltemplate", f"{C}/pooltemplate", {"<web>": "templates/debian-13"}, "bad_templates"),
    ("clonetarget", f"{C}/clonetarget", {"<web>": OTHER_PROVIDER}, "bad_templates"),
    ("poolreset", RESET, {"<web>": "1"}, "bad_pools"),
)
BODY = "A body that is no JSON object is 400 with the cause; the reference answers 500 for most of these endpoints."
SECRETS = (
    "/full_config shows the pools' configuration without any secret, and needs a token where users are configured."
)
ON: dict[str, Any] = {"on": (STATIC,), "pools": WEB}
UNREADABLE = {"ok": False, Maybe("error"): str, Maybe("message"): str}


def wrong(key: str, *names: str) -> dict[str, Any]:
    """The refusal of a change: which pools are wrong, and why."""
    return {"ok": False, key: names, Maybe("error"): str}


def for_each_change() -> tuple[Row, ...]:
    """What all changes have in common, in the reference's order of checks."""
    rows = []
    for name, path, body, key in CHANGES:
        rows += [
            Row(f"{name}-off", "POST", path, 405, REFUSED, body, pools=WEB),
            Row(f"{name}-off-before-body", "POST", path, 405, REFUSED, raw=b"{"),
            Row(name, "POST", path, 201, DONE, body, **ON),
            Row(f"{name}-slash", "POST", f"{path}/", 201, DONE, body, **ON),
            Row(f"{name}-without-token", "POST", path, 401, REFUSED, body, who="", headers=CHALLENGE, **ON),
            Row(f"{name}-wrong-token", "POST", path, 401, REFUSED, body, who=WRONG, headers=CHALLENGE, **ON),
            Row(f"{name}-token-before-body", "POST", path, 401, REFUSED, raw=b"{", who="", headers=CHALLENGE, **ON),
            Row(f"{name}-unknown", "POST", path, 400, wrong(key, "nowhere"), {"nowhere": "1/2"}, on=(STATIC,)),
            Row(f"{name}-some-unknown", "POST", path, 400, wrong(key, "nowhere"), {**body, "nowhere": "1"}, **ON)
            if name in ("poolsize", "poolreset")
            else Row(
                f"{name}-some-unknown", "POST", path, 400, wrong(key, "nowhere"), {**body, "nowhere": "a/b"}, **ON
            ),
            Row(f"{name}-null", "POST", path, 404, REFUSED, raw=b"null", on=(STATIC,)),
            Row(
                f"{name}-bad-json",
                "POST",
                path,
                400,
                {"ok": False, "message": "JSON payload could not be parsed"} if path == RESET else UNREADABLE,
                raw=b"{",
                on=(STATIC,),
                difference="" if path == RESET else BODY,
            ),
            Row(f"{name}-list", "POST", path, 400, UNREADABLE, raw=b"[]", on=(STATIC,), difference=BODY),
        ]
        if path != RESET:
            rows.append(Row(f"{name}-again", "POST", path, 200, DONE, body, before=(Before("POST", path, body),), **ON))
    return tuple(rows)


SIZES = tuple(
    Row(f"poolsize-{label}", "POST", f"{C}/poolsize", 400, wrong("not_configured", "<web>"), {"<web>": size}, **ON)
    for label, size in (("word", "x"), ("negative", -1), ("fraction", 1.5), ("no-value", None), ("5001", 5001))
)
TEMPLATES = tuple(
    Row(
        f"pooltemplate-{label}",
        "POST",
        f"{C}/pooltemplate",
        400,
        wrong("bad_templates", "<web>"),
        {"<web>": image},
        **ON,
    )
    for label, image in (("front", "/image"), ("end", "image/"), ("empty", ""), ("number", 7), ("no-value", None))
)
SIZE_BACK = {"ok": True, "pool_size_before_reset": int, "pool_size_before_overrides": 1}
IMAGE_BACK = {"ok": True, "template_before_reset": str, "template_before_overrides": IMAGE}
UNDO = (
    Row("poolsize-undo", "DELETE", f"{C}/poolsize/<web>", 200, {**SIZE_BACK, "pool_size_before_reset": 1}, **ON),
    Row(
        "poolsize-undo-change",
        "DELETE",
        f"{C}/poolsize/<web>",
        201,
        {**SIZE_BACK, "pool_size_before_reset": 5},
        before=(Before("POST", f"{C}/poolsize", {"<web>": 5}),),
        **ON,
    ),
    Row(
        "poolsize-undo-two-changes",
        "DELETE",
        f"{C}/poolsize/<web>",
        201,
        {**SIZE_BACK, "pool_size_before_reset": 7},
        before=(Before("POST", f"{C}/poolsize", {"<web>": 5}), Before("POST", f"{C}/poolsize", {"<web>": 7})),
        **ON,
    ),
    Row(
        "pooltemplate-undo",
        "DELETE",
        f"{C}/pooltemplate/<web>",
        200,
        {**IMAGE_BACK, "template_before_reset": IMAGE},
        **ON,
    ),
    Row(
        "pooltemplate-undo-change",
        "DELETE",
        f"{C}/pooltemplate/<web>",
        201,
        {**IMAGE_BACK, "template_before_reset": "templates/debian-13"},
        before=(Before("POST", f"{C}/pooltemplate", {"<web>": "templates/debian-13"}),),
        **ON,
    ),
    *(
        row
        for what in ("poolsize", "pooltemplate")
        for row in (
            Row(f"{what}-undo-off", "DELETE", f"{C}/{what}/<web>", 405, REFUSED, pools=WEB, on=(OPEN,)),
            Row(f"{what}-undo-unknown", "DELETE", f"{C}/{what}/nowhere", 404, REFUSED, on=(STATIC,)),
            Row(
                f"{what}-undo-without-token",
                "DELETE",
                f"{C}/{what}/<web>",
                401,
                REFUSED,
                who="",
                headers=CHALLENGE,
                **ON,
            ),
        )
    ),
)
TARGETS = (
    Row(
        "clonetarget-unknown-provider",
        "POST",
        f"{C}/clonetarget",
        400,
        wrong("bad_templates", "<web>"),
        {"<web>": "moon"},
        **ON,
    ),
    Row("clonetarget-same", "POST", f"{C}/clonetarget", 200, DONE, {"<web>": PROVIDER}, **ON),
)
LOOK = (
    Row(
        "config",
        "GET",
        C,
        200,
        {
            "pool_configuration": [
                {
                    "name": str,
                    "size": int,
                    "template": str,
                    "template_ready": bool,
                    Maybe("alias"): [str],
                    Each(".+"): ANYTHING,
                }
            ],
            "status": {"ok": True},
        },
        pools=WEB,
        on=BOTH,
    ),
    Row("config-slash", "GET", f"{C}/", 200, {"pool_configuration": list, "status": {"ok": True}}, pools=WEB),
    Row(
        "full-config",
        "GET",
        "/api/v3/full_config",
        200,
        {"full_config": dict, "status": {"ok": True}},
        pools=WEB,
        on=BOTH,
        difference=SECRETS,
    ),
    Row(
        "full-config-without-token",
        "GET",
        "/api/v3/full_config",
        401,
        REFUSED,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
        difference=SECRETS,
    ),
)

ROWS = (*LOOK, *for_each_change(), *SIZES, *TEMPLATES, *UNDO, *TARGETS)
