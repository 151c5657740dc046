"""What a new attempt begins with: nothing that was seen or said of the last one."""

from datetime import UTC, datetime

from vmpool.engine.sights import Sights
from vmpool.plan.snapshot import NOTHING_SEEN, Failed
from vmpool.providers.base import Machine, MachineState

NOW = datetime(2026, 5, 1, tzinfo=UTC)


def test_a_new_attempt_is_judged_by_nothing_of_the_last_one() -> None:
    sights = Sights()
    for uid in ("redriven", "other"):
        sights.saw(uid, Machine(id="m", name="vm", state=MachineState.FAILED), NOW)
        sights.probed(uid, ok=False, now=NOW)
        sights.failed(uid, Failed("boot", "PendingTimeout", "late"))
    sights.begin_anew("redriven")
    assert sights.of("redriven") == NOTHING_SEEN
    assert sights.of("other").failure is not None
    sights.begin_anew("never seen")
