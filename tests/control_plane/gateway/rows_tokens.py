"""Contract rows: make, list, look at and delete tokens."""

from tests.control_plane.gateway.scene import Stock
from tests.control_plane.gateway.shapes import Each, Has, Match, Maybe
from tests.control_plane.gateway.table import (
    ALICE,
    BOB,
    CHALLENGE,
    DONE,
    REFUSED,
    STATIC,
    WEB,
    WRONG,
    Before,
    Held,
    Row,
)

T = "/api/v3/token"
NEW = {"ok": True, "token": Match(r"[A-Za-z0-9_-]{32,128}")}
MADE = Before("POST", T, basic=ALICE, keep={"token": "made"})
THEIRS = Before("POST", T, basic=BOB, keep={"token": "made"})
TOLD = {"user": ALICE, "created": Match(".+"), Maybe("last"): Match(".+")}
IDS = "Tokens are kept as hashes: GET /token shows ids in their place, which DELETE /token/<id> takes as well."
OWN = "A user deletes only tokens of their own; in the reference any user deletes any token."

MISFORMED = (
    ("no-basic", "Bearer abc"),
    ("no-base64", "Basic !!!"),
    ("no-colon", "Basic YWxpY2U="),
    ("no-utf-8", "Basic /////w=="),
    ("empty", "Basic "),
    ("huge", f"Basic {'QUFB' * 1500}"),
)

ROWS = (
    # Without users there are no tokens: 404 before anything else.
    Row("token-list-no-users", "GET", T, 404, REFUSED),
    Row("token-make-no-users", "POST", T, 404, REFUSED),
    Row("token-show-no-users", "GET", f"{T}/abc", 404, REFUSED),
    Row("token-delete-no-users", "DELETE", f"{T}/abc", 404, REFUSED),
    Row("token-make", "POST", T, 200, NEW, on=(STATIC,), basic=ALICE),
    Row("token-make-slash", "POST", f"{T}/", 200, NEW, on=(STATIC,), basic=ALICE),
    Row("token-make-without-login", "POST", T, 401, REFUSED, on=(STATIC,), who="", headers=CHALLENGE),
    Row("token-make-wrong-password", "POST", T, 401, REFUSED, on=(STATIC,), basic=WRONG, headers=CHALLENGE),
    Row("token-make-token-is-no-login", "POST", T, 401, REFUSED, on=(STATIC,), who=ALICE, headers=CHALLENGE),
    *(
        Row(
            f"token-make-{label}",
            "POST",
            T,
            401,
            REFUSED,
            on=(STATIC,),
            sent={"Authorization": sent},
            headers=CHALLENGE,
        )
        for label, sent in MISFORMED
    ),
    Row(
        "token-list",
        "GET",
        T,
        200,
        {"ok": True, Each("[A-Za-z0-9_-]{4,64}"): {"created": Match(".+"), "last": Match(".+")}},
        on=(STATIC,),
        basic=ALICE,
        before=(MADE,),
        difference=IDS,
    ),
    Row(
        "token-list-slash",
        "GET",
        f"{T}/",
        200,
        {"ok": True, Each(".+"): dict},
        on=(STATIC,),
        basic=ALICE,
        before=(MADE,),
    ),
    Row("token-list-without-login", "GET", T, 401, REFUSED, on=(STATIC,), who="", headers=CHALLENGE),
    Row("token-list-wrong-password", "GET", T, 401, REFUSED, on=(STATIC,), basic=WRONG, headers=CHALLENGE),
    Row("token-list-none", "GET", T, 404, REFUSED, on=(STATIC,), basic="carol"),
    Row(
        "token-show",
        "GET",
        f"{T}/<made>",
        200,
        {"ok": True, "<made>": TOLD},
        on=(STATIC,),
        who="",
        before=(MADE,),
    ),
    Row(
        "token-show-vms",
        "GET",
        f"{T}/<token-alice>",
        200,
        {"ok": True, "<token-alice>": {**TOLD, "vms": {"running": Has(("<mine>",), without=("<theirs>",))}}},
        pools={"web": Stock(ready=2)},
        vms={"mine": Held(), "theirs": Held(by=BOB)},
        on=(STATIC,),
        who="",
    ),
    Row(
        "token-show-without-released-vms",
        "GET",
        f"{T}/<token-alice>",
        200,
        {"ok": True, "<token-alice>": {**TOLD, Maybe("vms"): {"running": Has((), without=("<mine>",))}}},
        pools=WEB,
        vms={"mine": Held(released=True)},
        on=(STATIC,),
        who="",
    ),
    Row("token-show-unknown", "GET", f"{T}/abcdefghijklmnopqrstuvwxyz012345", 404, REFUSED, on=(STATIC,), who=""),
    Row("token-show-odd", "GET", f"{T}/a%00b%2Fc", 404, REFUSED, on=(STATIC,), who=""),
    Row("token-delete", "DELETE", f"{T}/<made>", 200, DONE, on=(STATIC,), basic=ALICE, before=(MADE,)),
    Row(
        "token-delete-without-login",
        "DELETE",
        f"{T}/<made>",
        401,
        REFUSED,
        on=(STATIC,),
        before=(MADE,),
        headers=CHALLENGE,
    ),
    Row(
        "token-delete-wrong-password",
        "DELETE",
        f"{T}/<made>",
        401,
        REFUSED,
        on=(STATIC,),
        basic=WRONG,
        before=(MADE,),
        headers=CHALLENGE,
    ),
    Row(
        "token-delete-unknown",
        "DELETE",
        f"{T}/abcdefghijklmnopqrstuvwxyz012345",
        404,
        REFUSED,
        on=(STATIC,),
        basic=ALICE,
        difference="A token that is not there is 404; the reference answers 401 even to a right login.",
    ),
    Row(
        "token-delete-theirs",
        "DELETE",
        f"{T}/<made>",
        404,
        REFUSED,
        on=(STATIC,),
        basic=ALICE,
        before=(THEIRS,),
        difference=OWN,
    ),
    Row(
        "token-deleted-is-unknown",
        "GET",
        f"{T}/<made>",
        404,
        REFUSED,
        on=(STATIC,),
        who="",
        before=(MADE, Before("DELETE", f"{T}/<made>", basic=ALICE)),
    ),
    Row(
        "token-deleted-is-refused",
        "POST",
        "/api/v3/vm/<web>",
        401,
        REFUSED,
        pools=WEB,
        on=(STATIC,),
        who="made",
        before=(MADE, Before("DELETE", f"{T}/<made>", basic=ALICE)),
        headers=CHALLENGE,
        taken={"web": 0},
    ),
)
