"""What the gate calls a request: the same name in every run, another one for another thing."""

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.calls import Call, Occurrences, classify

VMS = "/apis/vmpool.dev/v1alpha1/namespaces/ci/pooledvms"
MERGE = "application/merge-patch+json"


def call(method: str, target: str, body: object = None, *, far: str = "api") -> Call:
    raw = b"" if body is None else orjson.dumps(body)
    return classify("cloud" if far == "cloud" else "api", "a", method, target, MERGE, raw)


@pytest.mark.parametrize(
    ("method", "target", "body", "signature"),
    [
        ("GET", f"{VMS}?limit=500", None, "list pooledvms"),
        ("GET", f"{VMS}/web-a", None, "get pooledvms"),
        ("GET", f"{VMS}?watch=1&resourceVersion=7", None, "watch pooledvms"),
        ("GET", "/apis/vmpool.dev/v1alpha1/vmpools?watch=true", None, "watch vmpools"),
        ("POST", VMS, {"metadata": {"name": "web-a"}, "spec": {"pool": "web"}}, "create pooledvms"),
        ("DELETE", f"{VMS}/web-a", {"preconditions": {"uid": "u"}}, "delete pooledvms"),
        (
            "PATCH",
            f"{VMS}/web-a/status",
            {"metadata": {"uid": "u"}, "status": {"phase": "Ready", "machineId": "m-1", "reason": None}},
            "patch pooledvms/status status.machineId status.phase=Ready status.reason-",
        ),
        (
            "PATCH",
            f"{VMS}/web-a/status",
            {"status": {"steps": [{"name": "create", "finishedAt": "now"}, {"name": "boot", "reason": "Late"}]}},
            "patch pooledvms/status status.steps[boot!]",
        ),
        (
            "PATCH",
            f"{VMS}/web-a",
            [{"op": "test", "path": "/metadata/uid", "value": "u"}, {"op": "remove", "path": "/metadata/finalizers/0"}],
            "patch pooledvms remove:/metadata/finalizers/#",
        ),
        (
            "PATCH",
            f"{VMS}/web-a",
            {"spec": {"claim": {"id": "c", "boundAt": "t"}}},
            "patch pooledvms spec.claim[boundAt]",
        ),
        ("POST", "/api/v1/namespaces/ci/secrets", {"metadata": {"name": "x"}}, "create secrets"),
        ("POST", "/apis/vmpool.dev/v1alpha1/namespaces/ci/deadletters", {"spec": {"queueFrom": "clone"}},
         "create deadletters queueFrom=clone"),
    ],
)  # fmt: skip
def test_a_call_has_the_name_of_what_it_does(method: str, target: str, body: object, signature: str) -> None:
    assert call(method, target, body).signature == signature


@pytest.mark.parametrize(
    ("method", "target", "signature"),
    [
        ("POST", "/v1/machines", "cloud create machines image"),
        ("DELETE", "/v1/machines/m-1", "cloud delete machines"),
        ("GET", "/v1/machines?limit=9", "cloud list machines"),
        ("PUT", "/v1/machines/m-1/tags", "cloud update machines/tags image"),
    ],
)
def test_so_has_a_call_to_the_cloud(method: str, target: str, signature: str) -> None:
    body = {"image": "one", "name": "web-a"} if method in {"POST", "PUT"} else None
    assert call(method, target, body, far="cloud").signature == signature


def test_names_numbers_and_times_make_no_difference() -> None:
    def write(name: str, number: int) -> str:
        status = {"phase": "Ready", "readyAt": f"2026-01-0{number}", "machineId": f"m-{number}"}
        return call("PATCH", f"{VMS}/{name}/status", {"status": status}).signature

    assert write("web-a", 1) == write("web-b", 2)


@pytest.mark.parametrize("plural", ["leases", "events"])
def test_what_has_no_meaning_for_machines_is_no_write(plural: str) -> None:
    assert not call("POST", f"/api/v1/namespaces/ci/{plural}", {}).is_write
    assert call("POST", "/api/v1/namespaces/ci/secrets", {}).is_write
    assert not call("GET", f"{VMS}/web-a").is_write


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["x", "y"])), max_size=40))
def test_occurrences_count_each_replica_and_signature_from_one(drawn: list[tuple[str, str]]) -> None:
    seen = Occurrences()
    numbers = [seen.next(replica, signature) for replica, signature in drawn]
    for place, (one, number) in enumerate(zip(drawn, numbers, strict=True)):
        assert number == drawn[: place + 1].count(one)


@given(st.binary(max_size=60))
def test_a_body_that_is_no_json_is_still_a_call(raw: bytes) -> None:
    found = classify("api", "a", "POST", VMS, "text/plain", raw)
    assert found.verb == "create"
