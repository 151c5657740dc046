"""What was last seen of machines: doubt ends when one is seen, and only a later listing may add to it."""

from datetime import UTC, datetime, timedelta

from tests.unit.engine.test_writes import vm
from vmpool.engine.sights import Sights
from vmpool.providers.base import Machine, MachineState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)


def machine(**changes: object) -> Machine:
    plain = {"id": "m1", "name": "vm-1", "state": MachineState.RUNNING, "addresses": ("127.0.0.2",)}
    return Machine(**{**plain, **changes})  # type: ignore[arg-type]


def test_seeing_a_machine_ends_all_doubt() -> None:
    sights = Sights()
    sights.missed("u1", NOW)
    sights.listed([vm(machine_id="m1", created_at=NOW - SECOND)], {}, {}, NOW)
    assert sights["u1"].misses == 1
    assert sights["u1"].unlisted
    sights.saw("u1", machine(), NOW + SECOND)
    assert (sights["u1"].misses, sights["u1"].unlisted, sights["u1"].missed_at) == (0, False, None)


def test_a_listing_finds_by_id_or_by_token_and_misses_only_what_existed_when_it_began() -> None:
    sights = Sights()
    old, young = (
        vm(uid="old", machine_id="m1", created_at=NOW - SECOND),
        vm(uid="young", machine_id="m2", created_at=NOW),
    )
    by_token = vm(uid="token", machine_id="", created_at=NOW - SECOND)
    sights.listed([old, young, by_token], {}, {"token": machine(id="m3")}, NOW)
    assert sights.of("old").unlisted
    assert not sights.of("young").unlisted
    assert sights.of("token").state == "Running"


def test_a_listing_that_began_before_the_last_look_changes_nothing() -> None:
    sights = Sights()
    sights.saw("u1", machine(state=MachineState.FAILED), NOW)
    sights.listed([vm(machine_id="m1")], {"m1": machine()}, {}, NOW - SECOND)
    assert sights["u1"].state == "Failed"


def test_an_unchanged_idle_machine_keeps_its_very_sight() -> None:
    sights = Sights()
    sights.saw("u1", machine(), NOW)
    before = sights["u1"]
    sights.listed([vm(machine_id="m1")], {"m1": machine()}, {}, NOW + SECOND)
    assert sights["u1"] is before


def test_only_living_objects_are_kept() -> None:
    sights = Sights()
    sights.missed("u1", NOW)
    sights.missed("u2", NOW)
    sights.keep(["u2"])
    assert list(sights) == ["u2"]


def test_a_listing_says_whether_a_plan_may_have_waited_for_it() -> None:
    sights, one = Sights(), vm(machine_id="m1", created_at=NOW - SECOND)
    here, nowhere = {"m1": machine()}, dict[str, Machine]()
    assert sights.listed([one], here, {}, NOW), "seen for the first time"
    assert not sights.listed([one], here, {}, NOW + SECOND), "as it was"
    assert sights.listed([one], nowhere, {}, NOW + 2 * SECOND), "not there"
    assert sights.listed([one], nowhere, {}, NOW + 3 * SECOND), "not there again, in a listing that proves more"
    assert sights.listed([one], here, {}, NOW + 4 * SECOND), "there after all"


def test_a_listing_tells_which_claim_a_machine_names_and_that_is_news_once() -> None:
    sights = Sights()
    one = vm(uid="u1", machine_id="m1", created_at=NOW - SECOND)
    tagged = {"m1": machine(tags={"vmpool-claim": "claim-1"})}
    sights.saw("u1", machine(), NOW)
    assert sights["u1"].claim_tag == ""
    assert sights.listed([one], tagged, {}, NOW + SECOND)
    assert sights["u1"].claim_tag == "claim-1"
    assert not sights.listed([one], tagged, {}, NOW + 2 * SECOND)


def test_tries_to_tag_a_machine_come_ever_more_seldom() -> None:
    sights = Sights()
    pauses = []
    for _ in range(30):
        sights.tagging("u1", NOW)
        at = sights["u1"].tag_at
        assert at is not None
        pauses.append(at - NOW)
    assert pauses[:3] == [timedelta(minutes=1), timedelta(minutes=2), timedelta(minutes=4)]
    assert pauses[-1] == timedelta(hours=6)


def test_another_machine_of_the_same_token_does_not_stand_for_one_whose_id_is_written_down() -> None:
    sights = Sights()
    sights.saw("u1", machine(), NOW)
    second = machine(id="m2", addresses=("127.0.0.9",))
    known = vm(uid="u1", machine_id="m1", created_at=NOW - SECOND)
    assert sights.listed([known], {"m2": second}, {"u1": second}, NOW + SECOND)
    assert (sights["u1"].unlisted, sights["u1"].namesake) == (True, True), "it may be the same one under a new id"
    assert sights["u1"].addresses == ("127.0.0.2",)
    assert sights.listed([known], {}, {}, NOW + 2 * SECOND)
    assert (sights["u1"].unlisted, sights["u1"].namesake) == (True, False)
