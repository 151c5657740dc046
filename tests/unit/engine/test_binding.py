"""What a refused claim says: that somebody else was faster, or that something is wrong.

The writes themselves are tested on a real API server in ``tests/control_plane/gateway``.
"""

import json

import pytest

from vmpool.engine.binding import lost_the_race
from vmpool.kube.errors import Invalid, error_from_answer
from vmpool.plan.rules import CLAIM_ENDED, CLAIM_NOT_READY, CLAIM_TAKEN


def refusal(*causes: tuple[str, str]) -> Invalid:
    """A 422 as the API server sends it."""
    details = {"causes": [{"field": field, "message": message, "reason": "x"} for field, message in causes]}
    status = {"kind": "Status", "code": 422, "reason": "Invalid", "message": "is invalid", "details": details}
    error = error_from_answer(422, json.dumps(status).encode())
    assert isinstance(error, Invalid)
    return error


@pytest.mark.parametrize("message", [CLAIM_TAKEN, CLAIM_NOT_READY, CLAIM_ENDED])
def test_the_rules_of_claims_mean_a_race_that_is_lost(message: str) -> None:
    assert lost_the_race(refusal(("spec.claim", f'Invalid value: "object": {message}')))


def test_another_object_of_that_name_is_lost_too() -> None:
    assert lost_the_race(refusal(("metadata.uid", "Invalid value: field is immutable")))
    assert lost_the_race(refusal(("metadata.uid", "is immutable"), ("spec.claim", CLAIM_TAKEN)))


@pytest.mark.parametrize(
    "causes",
    [
        (),
        (("spec.claim.id", "Too long: may not be more than 128 bytes"),),
        (("spec.claim", CLAIM_TAKEN), ("spec.claim.owner", "Required value")),
        (("spec.claim", "some rule of a newer release"),),
    ],
)
def test_any_other_cause_is_an_error(causes: tuple[tuple[str, str], ...]) -> None:
    assert not lost_the_race(refusal(*causes))
