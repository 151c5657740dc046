"""One order of three clocks: between which moments a version came to be."""

from hypothesis import given
from hypothesis import strategies as st

from tests.faults.gate.plan import Kind
from tests.faults.oracle.facts import FAR, Facts, Terms
from tests.unit.faults.oracle_story import CALL, Story, good, plan


def _facts(story: Story) -> Facts:
    return Facts(story.evidence())


@given(st.lists(st.sampled_from(["told", "untold", "pause"]), min_size=1, max_size=12))
def test_a_version_lies_between_its_bounds_whoever_wrote_it(steps: list[str]) -> None:
    story = Story()
    story.pool(1)
    story.vm("one")
    moments: dict[int, float] = {}
    for step in steps:
        if step == "pause":
            story.pass_time(1)
            continue
        story.write("pooledvms", "one", status={"message": str(story.number)}, told=step == "told")
        moments[story.number] = story.now
    clock = _facts(story).clock
    for number, at in moments.items():
        assert clock.earliest(number) <= at <= clock.latest(number)


def test_what_an_operator_writes_is_known_to_the_call() -> None:
    story = good()
    clock = _facts(story).clock
    wrote = next(entry for entry in story.trace if entry["plural"] == "pooledvms" and entry["verb"] == "patch")
    assert clock.latest(wrote["version"]) == wrote["at"]
    assert clock.earliest(wrote["version"]) == wrote["at"] - CALL


def test_what_nothing_shows_is_never_sure() -> None:
    story = Story()
    story.pool(1)
    assert _facts(story).clock.latest(story.number) == FAR
    assert _facts(story).when(story.number) == story.now + 5.0


def test_an_answer_that_may_be_of_a_write_without_effect_proves_no_beginning() -> None:
    story = Story()
    story.pool(1)
    story.vm("one")
    story.write("pooledvms", "one", status={"message": "past the gate"}, told=False)
    made = story.number
    story.pass_time(1)
    # Says what is there already: answered with that version, and taken for a change because the gate had not seen it.
    story.call("patch", "pooledvms", "one", body={"metadata": {"uid": "uid-one"}}, version=made, step=True)
    assert _facts(story).clock.earliest(made) < story.now - 1


def test_a_machine_is_the_one_of_whom_it_was_made_for() -> None:
    story = Story()
    story.vm("one")
    story.machine("m-token", "other", token="uid-x")
    story.machine("m-name", "one", token=None, tags={"vmpool-uid": "uid-straggler"})
    story.machine("m-tag", "unknown", token=None, tags={"vmpool-uid": "uid-y"})
    facts = _facts(story)
    assert [facts.made_for(machine) for machine in facts.machines] == ["uid-x", "uid-one", "uid-y"]


def test_how_old_a_view_may_be_follows_from_the_plan() -> None:
    story = good()
    assert Facts(story.evidence()).lag(Terms(lag_seconds=2.0)) == 2.0
    assert Facts(story.evidence(plan=plan(Kind.DELAY, seconds=3.0))).lag(Terms(lag_seconds=2.0)) == 5.0
    assert Facts(story.evidence(plan=plan(Kind.STALE))).lag(Terms()) == FAR
