"""What an answer of the server means; the answers are those of a 1.36 server, shortened."""

from datetime import timedelta
from typing import Any

import orjson
import pytest

from vmpool.kube.errors import (
    AlreadyExists,
    BadRequest,
    Conflict,
    Forbidden,
    Gone,
    Invalid,
    KindNotFound,
    NamespaceTerminating,
    NotFound,
    ServerError,
    Throttled,
    Unauthorized,
    error_from_answer,
    error_from_status,
)
from vmpool.kube.resource import Resource

PODS = Resource("", "v1", "pods", "Pod")
NODES = Resource("", "v1", "nodes", "Node", namespaced=False)
LEASES = Resource("coordination.k8s.io", "v1", "leases", "Lease")


def status(code: int, reason: str = "", **details: Any) -> bytes:
    return orjson.dumps({"kind": "Status", "code": code, "reason": reason, "message": "words", "details": details})


TERMINATING = {"reason": "NamespaceTerminating", "message": "n is being terminated", "field": "metadata.namespace"}


@pytest.mark.parametrize(
    ("code", "body", "error"),
    [
        pytest.param(400, status(400, "BadRequest"), BadRequest, id="bad request"),
        pytest.param(401, status(401, "Unauthorized"), Unauthorized, id="unknown caller"),
        pytest.param(403, status(403, "Forbidden", kind="pods"), Forbidden, id="no rights"),
        pytest.param(403, status(403, "Forbidden", causes=[TERMINATING]), NamespaceTerminating, id="namespace going"),
        pytest.param(404, status(404, "NotFound", name="a", kind="pods"), NotFound, id="no such object"),
        pytest.param(404, status(404, "NotFound"), KindNotFound, id="no such kind in a group that is there"),
        pytest.param(404, b"404 page not found\n", KindNotFound, id="no such group"),
        pytest.param(405, status(405, "MethodNotAllowed"), BadRequest, id="no such verb"),
        pytest.param(409, status(409, "AlreadyExists", name="a"), AlreadyExists, id="name taken"),
        pytest.param(409, status(409, "Conflict", name="a"), Conflict, id="old version"),
        pytest.param(410, status(410, "Expired"), Gone, id="too old"),
        pytest.param(413, b"too large", BadRequest, id="too large"),
        pytest.param(422, status(422, "Invalid", name="a"), Invalid, id="invalid"),
        pytest.param(429, b"slow down", Throttled, id="throttled"),
        pytest.param(500, status(500, "InternalError"), ServerError, id="internal error"),
        pytest.param(503, b"<html>no backend</html>", ServerError, id="a proxy's page"),
        pytest.param(302, b"", BadRequest, id="a redirect, which we never follow"),
    ],
)
def test_every_answer_has_its_type(code: int, body: bytes, error: type[Exception]) -> None:
    found = error_from_answer(code, body)
    assert type(found) is error
    assert found.status == code
    assert found.reason


def test_causes_are_read_and_may_be_incomplete() -> None:
    body = status(422, "Invalid", causes=[{"reason": "FieldValueInvalid", "message": "no", "field": "spec"}, {}])
    first, second = error_from_answer(422, body).causes
    assert (first.field, first.reason, first.message) == ("spec", "FieldValueInvalid", "no")
    assert second.field == ""


def test_a_long_page_is_cut() -> None:
    assert len(error_from_answer(502, b"\xc3\xa9" * 100_000).message) <= 300


@pytest.mark.parametrize(
    ("header", "details", "seconds"),
    [
        pytest.param("7", {}, 7, id="header"),
        pytest.param(None, {"retryAfterSeconds": 3}, 3, id="body"),
        pytest.param("7", {"retryAfterSeconds": 3}, 7, id="the header comes from whoever is nearest"),
        pytest.param("Wed, 21 Oct 2026 07:28:00 GMT", {}, None, id="dates are not followed"),
        pytest.param(None, {}, None, id="nothing said"),
    ],
)
def test_the_wanted_pause_is_read(header: str | None, details: dict[str, int], seconds: int | None) -> None:
    wanted = error_from_status(429, {"details": details}, header).retry_after
    assert wanted == (None if seconds is None else timedelta(seconds=seconds))


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        (PODS.path("n"), "/api/v1/namespaces/n/pods"),
        (PODS.path(None), "/api/v1/pods"),
        (PODS.path("n", "a", "status"), "/api/v1/namespaces/n/pods/a/status"),
        (NODES.path(None, "a"), "/api/v1/nodes/a"),
        (LEASES.path("n", "a"), "/apis/coordination.k8s.io/v1/namespaces/n/leases/a"),
        (PODS.path("n", "a/../../b?c"), "/api/v1/namespaces/n/pods/a%2F..%2F..%2Fb%3Fc"),
    ],
)
def test_every_object_has_its_path(path: str, expected: str) -> None:
    assert path == expected


@pytest.mark.parametrize(
    ("resource", "namespace", "name"),
    [
        pytest.param(PODS, "n", "", id="an empty name would be the whole collection"),
        pytest.param(PODS, "n", "..", id="a name that climbs"),
        pytest.param(PODS, "", "a", id="an empty namespace"),
        pytest.param(PODS, None, "a", id="an object without its namespace"),
        pytest.param(NODES, "n", "a", id="a namespace where there is none"),
    ],
)
def test_what_would_address_something_else_is_refused(resource: Resource, namespace: str | None, name: str) -> None:
    with pytest.raises(ValueError, match=r"not a name|namespace"):
        resource.path(namespace, name)
