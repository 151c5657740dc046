"""What the benchmark of claims makes of the versions that a watch has told it."""

import pytest

from bench.claim import Eyes, Version, writes_before_bound

MADE = Version("claim", 10, "")
BOUND = Version("claim", 12, "Bound", ("vm",))
TAKEN = Version("vm", 11, "Ready")
CLAIMED = Version("vm", 13, "Claimed")
MORE = Version("claim", 14, "Bound", ("vm",))


@pytest.mark.parametrize(
    ("claims", "vms", "expected"),
    [
        pytest.param([MADE, BOUND], [TAKEN, CLAIMED], [2], id="the claim on the VM and the status of the VMClaim"),
        pytest.param([BOUND, MADE], [CLAIMED, TAKEN], [2], id="in whatever order they are told"),
        pytest.param([MADE, BOUND, MORE], [TAKEN, CLAIMED], [2], id="what comes after Bound does not count"),
        pytest.param(
            [MADE, Version("claim", 11, "Pending"), BOUND], [TAKEN], [3], id="a status that says that it waits does"
        ),
        pytest.param([MADE, BOUND], [Version("vm", 9, "Ready"), TAKEN], [2], id="what was before does not"),
        pytest.param([MADE, BOUND], [TAKEN, Version("other", 11, "Ready")], [2], id="nor the VMs of others"),
        pytest.param(
            [MADE, Version("claim", 13, "Bound", ("vm", "second"))],
            [TAKEN, Version("second", 12, "Ready")],
            [3],
            id="each VM of a claim does",
        ),
        pytest.param(
            [MADE, BOUND, Version("next", 20, ""), Version("next", 23, "Bound", ("second",))],
            [TAKEN, Version("second", 21, "Ready"), Version("second", 22, "Ready")],
            [2, 3],
            id="each claim for itself",
        ),
    ],
)
def test_writes_are_counted_until_a_claim_is_bound(
    claims: list[Version], vms: list[Version], expected: list[int]
) -> None:
    assert writes_before_bound(claims, vms) == expected


def test_a_claim_that_was_never_bound_is_an_error_and_not_cheap() -> None:
    with pytest.raises(ValueError, match="claim was never Bound"):
        writes_before_bound([MADE, Version("claim", 11, "Pending")], [])


def test_all_is_seen_once_as_many_are_bound_as_vms_say_claimed() -> None:
    eyes = Eyes(claims=[MADE, BOUND, MORE], vms=[TAKEN])
    assert not eyes.settled(1)
    eyes.vms.append(CLAIMED)
    assert eyes.settled(1)
    assert not eyes.settled(2)
