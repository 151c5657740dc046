"""Contract rows: list pools, check out by body and by path."""

from tests.control_plane.gateway.scene import DOMAIN, HOST, Stock
from tests.control_plane.gateway.shapes import Has, Match
from tests.control_plane.gateway.table import BOTH, CAUSE, CHALLENGE, REFUSED, RETRY, STATIC, TWO, WEB, WRONG, Row, says

V = "/api/v3/vm"
LONG = "n" * 101
NEEDS_TOKEN = "Where users are configured a checkout needs a token; the reference gives VMs to all who send none."


def host(pool: str) -> Match:
    """Any host name of a pool."""
    return Match(rf"<{pool}>-{HOST}\.{DOMAIN}")


def given(**pools: int) -> dict[str, object]:
    """A checkout of so many VMs by pool."""
    names = {f"<{pool}>": {"hostname": host(pool) if n == 1 else (host(pool),) * n} for pool, n in pools.items()}
    return {"ok": True, **names}


LIST = (
    Row("vm-list", "GET", V, 200, Has(("<web>", "<other>"), without=("<any>",)), pools=TWO, on=BOTH),
    Row("vm-list-slash", "GET", f"{V}/", 200, Has(("<web>",)), pools=WEB),
    Row("vm-list-needs-no-token", "GET", V, 200, Has(("<web>",)), pools=WEB, on=(STATIC,), who=""),
)

CHECKOUT = (
    Row("checkout", "POST", V, 200, given(web=1), {"<web>": "1"}, pools=TWO, on=BOTH, taken={"web": 1, "other": 0}),
    Row("checkout-number", "POST", V, 200, given(web=1), {"<web>": 1}, pools=WEB),
    Row("checkout-slash", "POST", f"{V}/", 200, given(web=1), {"<web>": 1}, pools=WEB),
    Row("checkout-two", "POST", V, 200, given(web=2), {"<web>": "2"}, pools=TWO, taken={"web": 2, "other": 0}),
    Row(
        "checkout-pools",
        "POST",
        V,
        200,
        given(web=2, other=1),
        {"<web>": 2, "<other>": "1"},
        pools=TWO,
        on=BOTH,
        taken={"web": 2, "other": 1},
    ),
    Row(
        "checkout-alias",
        "POST",
        V,
        200,
        {"ok": True, "<any>": {"hostname": host("web")}},
        {"<any>": 1},
        pools={"web": Stock(1, spec={"aliases": ["<any>"]})},
    ),
    Row(
        "checkout-alias-falls-through",
        "POST",
        V,
        200,
        {"ok": True, "<any>": {"hostname": host("web")}},
        {"<any>": 1},
        pools={"web": Stock(1, spec={"aliases": ["<any>"]}), "dry": Stock(spec={"aliases": ["<any>"]})},
    ),
    Row(
        "checkout-alias-of-several",
        "POST",
        V,
        200,
        {"ok": True, "<any>": {"hostname": (Match(rf"(web|other)-<tag>-{HOST}\.{DOMAIN}"),) * 2}},
        {"<any>": 2},
        pools={"web": Stock(1, spec={"aliases": ["<any>"]}), "other": Stock(1, spec={"aliases": ["<any>"]})},
        taken={"web": 1, "other": 1},
    ),
    Row(
        "checkout-qualified",
        "POST",
        V,
        200,
        {"ok": True, "<ns>_<web>": {"hostname": host("web")}},
        {"<ns>_<web>": 1},
        pools=WEB,
        difference="Every pool can also be named <namespace>_<name>.",
    ),
    Row(
        "checkout-dotted",
        "POST",
        V,
        200,
        {"ok": True, "<web>.x64": {"hostname": host("web")}},
        {"<web>.x64": 1},
        pools={"web": Stock(1, spec={"restName": "<web>.x64"})},
        difference="A dot may stand in the name of a pool; since 3.8.1 the reference answers 400.",
    ),
    Row("checkout-token-ignored", "POST", V, 200, given(web=1), {"<web>": 1}, pools=WEB, sent={"X-AUTH-TOKEN": "x"}),
    Row("checkout-empty-body", "POST", V, 404, REFUSED, pools=WEB, on=BOTH),
    Row("checkout-empty-object", "POST", V, 404, REFUSED, {}, on=BOTH),
    Row("checkout-null", "POST", V, 400, says("Request body must be a JSON object"), raw=b"null"),
    Row("checkout-list", "POST", V, 400, says("Request body must be a JSON object"), raw=b'["<web>"]'),
    Row("checkout-string", "POST", V, 400, says("Request body must be a JSON object"), raw=b'"web"'),
    Row("checkout-bad-json", "POST", V, 400, says("Invalid JSON"), raw=b'{"web": 1', on=BOTH),
    Row("checkout-not-utf-8", "POST", V, 400, says("Invalid JSON"), raw=b'{"w\xffb": 1}'),
    Row("checkout-too-deep", "POST", V, 400, says("Request body too complex"), {"a": {"b": {"c": {"d": {"e": {}}}}}}),
    Row("checkout-too-large", "POST", V, 400, says("Request body too large"), {"a" * 10_241: 1}),
    *(
        Row(
            f"checkout-count-{label}",
            "POST",
            V,
            400,
            says(f"VM count {words}"),
            {"<web>": count},
            pools=WEB,
            taken={"web": 0},
        )
        for label, count, words in (
            ("0", 0, "must be at least 1"),
            ("negative", -1, "must be a valid integer"),
            ("101", 101, "must be at most 100"),
            ("word", "x", "must be a valid integer"),
            ("fraction", 1.5, "must be a valid integer"),
            ("true", True, "must be a valid integer"),
            ("null", None, "is required"),
            ("empty", "", "must be a valid integer"),
            ("space", " 1", "must be a valid integer"),
            ("other-digits", "١", "must be a valid integer"),
            ("list", [1], "must be a valid integer"),
            ("object", {"n": 1}, "must be a valid integer"),
        )
    ),
    *(
        Row(f"checkout-name-{label}", "POST", V, 400, says(words), {name: 1})
        for label, name, words in (
            ("empty", "", "Pool name is required"),
            ("long", LONG, "Pool name too long"),
            ("blank", "a b", "Invalid pool name format"),
            ("control", "web\x00", "Invalid pool name format"),
            ("newline", "web\n", "Invalid pool name format"),
            ("slash", "../web", "Invalid pool name format"),
            ("foreign-letter", "wéb", "Invalid pool name format"),
        )
    ),
    Row(
        "checkout-first-mistake-counts",
        "POST",
        V,
        400,
        says("VM count must be at least 1"),
        {"<web>": 0, "a b": 1},
        pools=WEB,
    ),
    Row("checkout-name-before-count", "POST", V, 400, says("Invalid pool name format"), {"a b": 0}),
    Row("checkout-count-before-unknown", "POST", V, 400, says("VM count must be at least 1"), {"nowhere": 0}),
    Row("checkout-unknown", "POST", V, 404, REFUSED, {"nowhere": 1}, on=BOTH),
    Row("checkout-one-unknown", "POST", V, 404, REFUSED, {"<web>": 1, "nowhere": 1}, pools=WEB, taken={"web": 0}),
    Row(
        "checkout-dry",
        "POST",
        V,
        503,
        CAUSE,
        {"<web>": 1},
        pools={"web": Stock(pending=1)},
        headers=RETRY,
        on=BOTH,
        difference="503 names the cause under error and says in Retry-After when to try again.",
    ),
    Row(
        "checkout-all-or-nothing",
        "POST",
        V,
        503,
        CAUSE,
        {"<web>": 2, "<other>": 2},
        pools=TWO,
        headers=RETRY,
        taken={"web": 0, "other": 0},
    ),
    Row(
        "checkout-paused",
        "POST",
        V,
        503,
        CAUSE,
        {"<web>": 1},
        pools={"web": Stock(1, spec={"paused": True})},
        headers=RETRY,
        taken={"web": 0},
        difference="A pool that is paused hands out nothing; the reference has no such state.",
    ),
    Row(
        "checkout-without-token",
        "POST",
        V,
        401,
        REFUSED,
        {"<web>": 1},
        pools=WEB,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
        taken={"web": 0},
        difference=NEEDS_TOKEN,
    ),
    Row(
        "checkout-wrong-token",
        "POST",
        V,
        401,
        REFUSED,
        {"<web>": 1},
        pools=WEB,
        on=(STATIC,),
        who=WRONG,
        headers=CHALLENGE,
        taken={"web": 0},
    ),
    Row(
        "checkout-body-before-token",
        "POST",
        V,
        400,
        says("VM count must be at least 1"),
        {"<web>": 0},
        pools=WEB,
        on=(STATIC,),
        who="",
    ),
)

BY_PATH = (
    Row("path-checkout", "POST", f"{V}/<web>", 200, given(web=1), pools=TWO, on=BOTH, taken={"web": 1}),
    Row("path-checkout-slash", "POST", f"{V}/<web>/", 200, given(web=1), pools=WEB),
    Row("path-checkout-pools", "POST", f"{V}/<web>+<web>+<other>", 200, given(web=2, other=1), pools=TWO, on=BOTH),
    Row("path-checkout-order", "POST", f"{V}/<web>+<other>+<web>", 200, given(web=2, other=1), pools=TWO),
    Row("path-checkout-encoded", "POST", f"{V}/<web>%2B<other>", 200, given(web=1, other=1), pools=TWO),
    Row("path-checkout-body-unread", "POST", f"{V}/<web>", 200, given(web=1), raw=b"{nonsense", pools=WEB),
    Row(
        "path-checkout-alias",
        "POST",
        f"{V}/<any>",
        200,
        {"ok": True, "<any>": {"hostname": host("web")}},
        pools={"web": Stock(1, spec={"aliases": ["<any>"]})},
    ),
    Row("path-checkout-unknown", "POST", f"{V}/nowhere", 404, REFUSED, on=BOTH),
    Row("path-checkout-one-unknown", "POST", f"{V}/<web>+nowhere", 404, REFUSED, pools=WEB, taken={"web": 0}),
    Row("path-checkout-long", "POST", f"{V}/{LONG}", 404, REFUSED),
    Row("path-checkout-control", "POST", f"{V}/we%00b", 404, REFUSED),
    Row("path-checkout-traversal", "POST", f"{V}/..%2Fvm", 404, REFUSED),
    Row("path-checkout-dry", "POST", f"{V}/<web>", 503, CAUSE, pools={"web": Stock()}, headers=RETRY, on=BOTH),
    Row("path-checkout-too-few", "POST", f"{V}/<web>+<web>", 503, CAUSE, pools=WEB, headers=RETRY, taken={"web": 0}),
    Row(
        "path-checkout-wrong-token",
        "POST",
        f"{V}/<web>",
        401,
        REFUSED,
        pools=WEB,
        on=(STATIC,),
        who=WRONG,
        headers=CHALLENGE,
    ),
    Row(
        "path-checkout-without-token",
        "POST",
        f"{V}/<web>",
        401,
        REFUSED,
        pools=WEB,
        on=(STATIC,),
        who="",
        headers=CHALLENGE,
        difference=NEEDS_TOKEN,
    ),
)

ROWS = (*LIST, *CHECKOUT, *BY_PATH)
