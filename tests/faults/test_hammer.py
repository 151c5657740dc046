"""Operators and gateways are killed every few seconds while people check out: nothing leaks, nothing is given twice.

The long run is ``python -m tests.faults.hammer``; here it is short enough for every run of the tests.
"""

import logging
import os
from pathlib import Path

import pytest

from tests.faults.hammer.judge import GROUPS
from tests.faults.hammer.run import hammered
from tests.planes import Kubectl
from vmpool.dev.plane import ControlPlane

pytestmark = [pytest.mark.control_plane, pytest.mark.usefixtures("crds_installed")]

log = logging.getLogger(__name__)

SECONDS = float(os.environ.get("VMPOOL_TEST_HAMMER_SECONDS", "40"))
SEED = int(os.environ.get("VMPOOL_TEST_HAMMER_SEED", "0"))
LONGEST_KILL_SECONDS = 5.0


async def test_nothing_is_lost_under_the_hammer(plane: ControlPlane, kubectl: Kubectl, tmp_path: Path) -> None:
    outcome = await hammered(plane, kubectl, tmp_path, SECONDS, SEED, log.info)
    report = outcome.report
    assert not outcome.violations, "\n".join(map(str, outcome.violations[:20]))
    assert not any(report[name] for name in GROUPS)
    # It has been a hammer, and there has been something to break.
    assert report["strikes"] >= SECONDS / LONGEST_KILL_SECONDS - 1
    assert report["lives"] >= report["strikes"] + len(report["kills"])
    assert set(report["vms_checked_out"]) == {"rest", "several", "claim", "direct"}
    assert report["refusals"], "no request was cut off or refused: the kills prove nothing"
    assert report["letters"] > 0
    assert report["vms"] > report["checkouts"] > 0
