"""Dead letters that are written, tried again, archived and removed; VMs that are purged for their age."""

import gzip
import json
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path

from tests.api import Json
from tests.crash.site import POOL, PROVIDER, Site
from tests.faults.rig.trial import Scenario
from tests.faults.scenarios.users import change, put, wait

QUEUE = "failures"
POLICY = "stale"
NEVER = "8000h"
CALM = {"maxPendingAge": NEVER, "maxReadyAge": NEVER, "maxCompletedAge": NEVER, "maxOrphanedAge": NEVER}


async def letters(site: Site) -> list[Json]:
    """The dead letters that are there."""
    return list((await site.api.kind("deadletters", site.namespace).list()).ok()["items"])


async def redrive(site: Site) -> None:
    """Every clone fails until somebody mends the cause and has a letter tried again."""
    rule = site.fault("failBefore", "create")
    await put(site, "deadletterqueues", "DeadLetterQueue", QUEUE, poison={"failures": 2})
    retry = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
    await site.build(1, deadLetterQueue=QUEUE, retry=retry)

    async def poisoned() -> list[Json]:
        found = await letters(site)
        status = (await site.pools.get(POOL)).ok().get("status", {})
        stopped = any(one["type"] == "Poisoned" for one in status.get("conditions", ()))
        return found if stopped and not await site.objects() else []

    found = await wait(poisoned, "the pool is poisoned, and its failed VMs are gone")
    site.mend(rule)
    name = found[0]["metadata"]["name"]
    kind = site.api.kind("deadletters", site.namespace)
    (await kind.merge(name, {"spec": {"action": "redrive"}})).ok()

    async def answered() -> bool:
        return bool((await kind.get(name)).ok()["status"]["phase"] == "Redriven")

    await wait(answered, "the letter is redriven")
    await site.full(1)
    (await kind.merge(name, {"spec": {"action": "discard"}})).ok()

    async def discarded() -> bool:
        return (await kind.get(name)).status == 404

    await wait(discarded, "the letter is discarded")


async def quarantine(site: Site) -> None:
    """A VM that does not become ready is kept for a while, and redriven from there."""
    site.fault("neverReady", "create", count=1)
    await put(site, "deadletterqueues", "DeadLetterQueue", QUEUE, poison={"failures": 5})
    await site.build(1, deadLetterQueue=QUEUE, readiness={"timeout": "5s"}, maxVMs=3)

    async def told() -> list[Json]:
        pool = (await site.pools.get(POOL)).ok()
        return await letters(site) or list(pool.get("status", {}).get("recentFailures", ()))

    await wait(told, "the failure is written down")
    # A letter that the server refuses for good is logged, and the pool remembers the failure: nothing can be redriven.
    letter = next(iter(await letters(site)), None)

    async def kept() -> list[Json]:
        vms = [vm for vm in await site.objects() if vm["status"]["phase"] == "Quarantined"]
        return vms if len(await site.objects()) == 2 else []

    (vm, *_) = await wait(kept, "the failed VM is in quarantine, and another one is there")
    await change(site, replicas=2)
    if letter is not None:
        await _answered(site, letter["metadata"]["name"])
    # Its machine never becomes ready: whoever wins, two VMs are Ready in the end and the dead one is kept or gone.
    (await site.vms.delete(vm["metadata"]["name"])).ok()
    await site.full(2)


async def _answered(site: Site, name: str) -> None:
    kind = site.api.kind("deadletters", site.namespace)
    (await kind.merge(name, {"spec": {"action": "redrive"}})).ok()

    async def answered() -> bool:
        return bool((await kind.get(name)).ok()["status"]["phase"] != "Kept")

    await wait(answered, "the letter is answered")


async def archive(site: Site) -> None:
    """Old letters go into the archive, then from the server."""
    with tempfile.TemporaryDirectory(prefix="vmpool-archive-") as folder:
        await _archive(site, Path(folder))


async def _archive(site: Site, folder: Path) -> None:
    await site.build(1)
    await site.full(1)
    failed = datetime.now(UTC) - timedelta(days=3)
    spec = {
        "queue": QUEUE,
        "vm": "web-old",
        "vmUid": "uid-of-vm",
        "pool": POOL,
        "poolUid": "uid-of-pool",
        "queueFrom": "clone",
        "errorClass": "InvalidTemplate",
        "errorMessage": "no image",
        "failedAt": failed.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "provider": PROVIDER,
        "step": "create",
        "fingerprint": "abc123",
    }
    for number in range(2):
        await put(site, "deadletters", "DeadLetter", f"web-old-{number}", **spec)
    uids = {one["metadata"]["uid"] for one in await letters(site)}
    await put(site, "deadletterqueues", "DeadLetterQueue", QUEUE, ttl="24h", archive={"folder": str(folder)})

    async def empty() -> bool:
        return not await letters(site)

    await wait(empty, "the old letters are gone")
    kept = _archived(folder)
    assert kept == uids, f"letters went without being archived: {uids - kept}"


def _archived(folder: Path) -> set[str]:
    """The uids of the letters in an archive; one may be there twice."""
    files = [gzip.decompress(file.read_bytes()) for file in folder.rglob("*.jsonl.gz")]
    return {json.loads(line)["metadata"]["uid"] for content in files for line in content.splitlines()}


async def purge(site: Site) -> None:
    """What nobody takes is replaced for its age, one by one."""
    await site.build(2, purgePolicy=POLICY)
    await site.full(2)
    before = {vm["metadata"]["uid"] for vm in await site.objects()}
    await put(site, "purgepolicies", "PurgePolicy", POLICY, **{**CALM, "maxReadyAge": "2s"}, interval="1s")

    async def replaced() -> bool:
        return not before & {vm["metadata"]["uid"] for vm in await site.objects()}

    await wait(replaced, "both are replaced")
    await change(site, purgePolicy=None)
    await site.full(2)


async def purge_dry(site: Site) -> None:
    """A dry run lists, and removes nothing."""
    await site.build(2, purgePolicy=POLICY)
    await site.full(2)
    before = {vm["metadata"]["uid"] for vm in await site.objects()}
    spec = {**CALM, "maxReadyAge": "1s", "interval": "1s", "dryRun": True}
    await put(site, "purgepolicies", "PurgePolicy", POLICY, **spec)
    policies = site.api.kind("purgepolicies", site.namespace)

    async def listed() -> bool:
        status = (await policies.get(POLICY)).ok().get("status", {})
        return bool(status.get("lastCycle", {}).get("found") == 2)

    await wait(listed, "both are listed")
    assert before == {vm["metadata"]["uid"] for vm in await site.objects()}, "a dry run has removed something"
    await site.full(2)


SCENARIOS = [
    Scenario("redrive", redrive),
    Scenario("quarantine", quarantine),
    Scenario("archive", archive),
    Scenario("purge", purge),
    Scenario("purge-dry", purge_dry),
]
