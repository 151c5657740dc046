"""The guide's first part, "Dead-Letter Queue": what gets captured, what it is good for, and how it is asked."""

import asyncio
import json
import secrets
import socket
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from tests.api import Json
from tests.clouds import SimCloud
from tests.control_plane.operator.box import Box
from tests.control_plane.operator.stage import DEADLINE, Stage, metric
from tests.guide.terminal import Typed, pool_of
from tests.objects import thing
from tests.operators import Operator
from tests.waiting import until
from vmpool.api import keys
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

ONCE = {"attempts": 1, "backoff": "100ms", "maxBackoff": "1s"}
SHORT = {"timeout": "5s"}
ALIAS = "centos-7"
ENTRY_FORMAT = {
    "vm": str,
    "pool": str,
    "queueFrom": str,
    "errorClass": str,
    "errorMessage": str,
    "failedAt": str,
    "retryCount": int,
    "requestId": str,
    "poolAlias": str,
}
"""The fields that the guide prints, in the spelling of Kubernetes."""
QUEUES = ("pending", "clone", "ready", "tasks")
"""``vmpooler__dlq__*`` of the guide."""
PERMANENT = {
    "template": ("clone", "InvalidTemplate", "'no-such-template' is unknown"),
    "address": ("pending", "MachineFailed", "step nic failed"),
}
"""By pool: queue name, class and words of a failure that no other try can mend."""
REFUSED = {
    "permission": ("clone", "CredentialsRefused", "HTTP 403 Forbidden"),
    "quota": ("clone", "ProviderExhausted", "HTTP 403 QuotaExceeded"),
}
"""The same of a refusal that somebody may end any time: told when it has lasted as long as a VM may take."""


@pytest.fixture(scope="module")
def typed(plane: ControlPlane, shared_namespace: str, tmp_path_factory: pytest.TempPathFactory) -> Typed:
    return Typed(plane, shared_namespace, tmp_path_factory.mktemp("typed"))


class Silence:
    """A port that answers at a machine's address until it is told not to."""

    def __init__(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as chosen:
            self.port = int(chosen.getsockname()[1])
        self._server: socket.socket | None = None

    def answers(self, cloud: SimCloud, tenant: str) -> bool:
        """Listen at the address of the tenant's first machine, once it has one."""
        found = [one["addresses"] for one in cloud.ledger()["machines"] if one["tenant"] == tenant]
        if self._server is None and found and found[0]:
            self._server = socket.create_server((found[0][0], self.port))
        return self._server is not None

    def begins(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None


@pytest.fixture(scope="module")
def letters(served: Operator, typed: Typed, shared_simcloud: SimCloud) -> Iterator[dict[str, list[Json]]]:
    """One pool for each way to fail, and what was written about it, by the pool's name and oldest first."""
    cloud, silence = shared_simcloud, Silence()
    asyncio.run(served.ready())
    typed.apply(
        thing("DeadLetterQueue", "failures", {"poison": {"failures": 1}}),
        thing("DeadLetterQueue", "clones", {"poison": {"failures": 3}}),
    )
    tenants = {name: cloud.tenant() for name in (*QUEUES, *PERMANENT, *REFUSED)}

    def fault(name: str, action: str, match: Json, **fields: object) -> None:
        cloud.fault(action, {"tenant": tenants[name].name, **match}, **fields)

    def pool(name: str, **spec: object) -> list[Json]:
        return pool_of(cloud, tenants[name], name, **{"deadLetterQueue": "failures", "retry": ONCE, **spec})

    create = {"operation": "create"}
    fault("clone", "failBefore", create)
    fault("pending", "neverReady", create)
    fault("tasks", "failBefore", {"operation": "delete"})
    fault("permission", "status", create, status=403)
    fault("quota", "status", create, status=403, code="QuotaExceeded")
    fault("address", "failStep", {**create, "step": "nic"})
    probe = {"tcpSocket": {"port": silence.port}, "interval": "1s", "failureThreshold": 2, "timeout": "1m"}
    typed.apply(
        *pool("clone", deadLetterQueue="clones", aliases=[ALIAS]),
        *pool("pending", readiness=SHORT),
        *pool("ready", readiness=probe),
        *pool("tasks"),
        *pool("template", template={"image": "no-such-template"}),
        *pool("permission", readiness=SHORT),
        *pool("quota", readiness=SHORT),
        *pool("address"),
    )
    typed.wait(lambda: silence.answers(cloud, tenants["ready"].name), "a machine with an address")
    typed.shell("kubectl wait --for=condition=Ready vmp/ready vmp/tasks --timeout=60s")
    silence.begins()
    typed.shell("kubectl scale vmp/tasks --replicas=0")

    def found() -> dict[str, list[Json]]:
        made: dict[str, list[Json]] = {name: [] for name in tenants}
        for one in sorted(typed.items("deadletters"), key=lambda one: str(one["spec"]["failedAt"])):
            made[one["spec"]["pool"]].append(one)
        return made

    def complete() -> bool:
        counts = {name: len(those) for name, those in found().items()}
        exact = all(counts[name] == 1 for name in (*QUEUES, *PERMANENT) if name != "clone")
        return exact and counts["clone"] == 3 and all(counts[name] >= 1 for name in REFUSED)

    typed.wait(complete, "every pool has its letters")
    yield found()
    silence.begins()


@pytest.fixture
def only(letters: dict[str, list[Json]]) -> Json:
    """The letter of a clone that failed twice before."""
    return letters["clone"][-1]


# --- what gets captured -----------------------------------------------------------------------------------------------


def test_vms_that_fail_during_clone_operations(letters: dict[str, list[Json]]) -> None:
    for letter in letters["clone"]:
        assert (letter["spec"]["queueFrom"], letter["spec"]["step"]) == ("clone", "create")
        assert letter["spec"]["errorClass"] == "ProviderUnavailable"
        assert "HTTP 500" in letter["spec"]["errorMessage"]


def test_vms_that_timeout_in_pending_queue(letters: dict[str, list[Json]]) -> None:
    (letter,) = letters["pending"]
    assert (letter["spec"]["queueFrom"], letter["spec"]["errorClass"]) == ("pending", "PendingTimeout")
    assert letter["spec"]["errorMessage"].startswith("not ready within 5 s")


def test_vms_that_become_unreachable_in_ready_queue(letters: dict[str, list[Json]]) -> None:
    (letter,) = letters["ready"]
    assert (letter["spec"]["queueFrom"], letter["spec"]["errorClass"]) == ("ready", "NotAnswering")
    assert "not answered" in letter["spec"]["diagnostics"]["probe"]


@pytest.mark.parametrize("pool", PERMANENT | REFUSED)
def test_any_permanent_errors(letters: dict[str, list[Json]], pool: str, typed: Typed) -> None:
    """Template not found, permission denied, etc."""
    queue, error_class, words = (PERMANENT | REFUSED)[pool]
    for letter in letters[pool]:
        assert (letter["spec"]["queueFrom"], letter["spec"]["errorClass"]) == (queue, error_class)
        assert words in letter["spec"]["errorMessage"]
        times = [one["at"] for one in letter["spec"]["attempts"]]
        assert times == sorted(times)
        assert times[-1] == letter["spec"]["failedAt"]
    conditions = {one["type"] for one in typed.get(f"vmp/{pool}")["status"]["conditions"]}
    assert ("Poisoned" in conditions) == (pool in PERMANENT), "a refusal says nothing of the template"


# --- benefits ---------------------------------------------------------------------------------------------------------


def test_failed_vms_are_not_lost_they_are_moved_to_dlq_for_analysis(
    letters: dict[str, list[Json]], typed: Typed, served: Operator
) -> None:
    """ "Moved to DLQ": the VM is gone or in quarantine, its name and its story are in the letter and in the log."""
    for name in ("clone", "template"):
        for letter in letters[name]:
            vm, message = letter["spec"]["vm"], letter["spec"]["errorMessage"]
            assert letter["metadata"]["name"].startswith(f"{vm}-clone-")
            assert "NotFound" in typed.shell(f"kubectl get pvm {vm}", code=1)
            assert f"[!] [dlq] Moved '{vm}' from 'clone' queue to DLQ: {message}" in [
                json.loads(line)["event"] for line in served.lines().splitlines() if "[dlq]" in line
            ]
    told = typed.get("vmp/clone")["status"]["recentFailures"]
    assert {one["vm"] for one in told} == {one["spec"]["vm"] for one in letters["clone"]}


def test_an_entry_has_every_field_of_the_entry_format(only: Json) -> None:
    spec = only["spec"]
    assert {name: type(spec[name]) for name in ENTRY_FORMAT} == ENTRY_FORMAT
    assert all(spec[name] != "" for name in ENTRY_FORMAT)
    assert (spec["pool"], spec["queueFrom"], spec["poolAlias"]) == ("clone", "clone", ALIAS)
    assert spec["vm"].startswith("clone-")


def test_the_failure_context_has_the_error_message(only: Json, typed: Typed) -> None:
    told = typed.shell(f"vmpool dlq show {only['metadata']['name']}")
    assert only["spec"]["errorMessage"] in told
    assert only["spec"]["errorClass"] in told


def test_the_failure_context_has_the_timestamp(only: Json) -> None:
    failed = datetime.fromisoformat(only["spec"]["failedAt"])
    written = datetime.fromisoformat(only["metadata"]["creationTimestamp"])
    assert failed.tzinfo is not None
    assert timedelta(seconds=-1) <= written - failed.replace(microsecond=0) < timedelta(seconds=20)


def test_the_failure_context_has_the_retry_count(letters: dict[str, list[Json]]) -> None:
    assert [one["spec"]["retryCount"] for one in letters["clone"]] == [0, 1, 2]


def test_the_failure_context_has_the_request_id(letters: dict[str, list[Json]], typed: Typed) -> None:
    """The same request for all three tries to fill one place."""
    (request,) = {one["spec"]["requestId"] for one in letters["clone"]}
    found = typed.shell(f"kubectl get dl --field-selector spec.requestId={request} -o name").split()
    assert sorted(found) == sorted(f"deadletter.vmpool.dev/{one['metadata']['name']}" for one in letters["clone"])


async def test_ttl_based_expiration_prevents_unbounded_growth(box: Box, served: Operator) -> None:
    await box.make(ttl="168h")
    await box.put(f"{box.stage.pool}-old", days_ago=7.1)
    await box.put(f"{box.stage.pool}-new", days_ago=6.9)
    await box.holds(clone=1)
    assert [one["spec"]["vm"] for one in await box.all()] == [f"{box.stage.pool}-new"]
    assert metric(served, "vmpool_dead_letters_removed_total", why="expired", dead_letter_queue=box.queue) == 1


async def test_size_limiting_prevents_memory_issues(box: Box, served: Operator) -> None:
    """dlq_max_entries is "per DLQ queue"."""
    await box.make(maxEntries=2)
    for number in range(4):
        await box.put(f"{box.stage.pool}-{number}", days_ago=4 - number)
    await box.put(f"{box.stage.pool}-p", days_ago=5, queueFrom="pending")
    await box.holds(clone=2, pending=1)
    assert [one["spec"]["vm"][-1] for one in await box.all()] == ["p", "2", "3"]
    trimmed = [json.loads(line) for line in served.lines().splitlines() if "oldest entries from" in line]
    mine = [one["event"] for one in trimmed if one["queue"] == f"{box.stage.namespace}/{box.queue}"]
    assert mine
    assert all(one.startswith("[!] [dlq] Trimmed ") and one.endswith(" from vmpooler__dlq__clone") for one in mine)


def test_the_configuration_has_the_defaults_of_the_guide(typed: Typed) -> None:
    """``dlq_ttl: 168``, ``dlq_max_entries: 10000``."""
    typed.apply(thing("DeadLetterQueue", "defaults", {}))
    assert typed.shell("kubectl get dlq defaults -o jsonpath='{.spec.ttl} {.spec.maxEntries}'") == "168h 10000"


async def test_dead_letters_are_opt_in(stage: Stage) -> None:
    """``dlq_enabled``: a pool that names no queue has none, and works as ever."""
    await stage.put_provider()
    stage.fault("failStep", "create", count=1)
    await stage.put_pool(replicas=1)
    await stage.full(1)
    assert len((await stage.status())["recentFailures"]) == 1
    written = stage.api.kind("deadletters", stage.namespace)
    assert not await written.names(f"spec.pool={stage.pool}")


# --- keys -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("queue", QUEUES)
def test_every_key_of_the_guide_is_a_label_and_a_queue_name(
    letters: dict[str, list[Json]], typed: Typed, queue: str
) -> None:
    shown = typed.shell(f"kubectl get dl -l vmpool.dev/queue={queue} --no-headers").splitlines()
    assert {line.split()[0] for line in shown} >= {one["metadata"]["name"] for one in letters[queue]}
    assert {line.split()[1] for line in shown} == {queue}


# --- querying ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def many(served: Operator, typed: Typed) -> str:
    """A queue with twelve clone failures, half an hour apart, and one from pending; the newest is ``-00``."""
    asyncio.run(served.ready())
    queue = f"many-{secrets.token_hex(3)}"
    typed.apply(thing("DeadLetterQueue", queue, {}))
    typed.apply(*(_letter(queue, number, "clone") for number in range(12)), _letter(queue, 99, "pending"))
    wanted = f"kubectl get dlq {queue} -o jsonpath='{{.status.entries}}'"
    typed.wait(lambda: typed.shell(wanted) == "13", "the queue has counted them")
    return queue


def _letter(queue: str, number: int, queue_from: str) -> Json:
    failed = datetime.now(UTC) - timedelta(minutes=30 * number + 15)
    spec = {
        "queue": queue,
        "vm": f"web-{number:02}",
        "vmUid": f"uid-{number}",
        "pool": queue,
        "poolUid": "uid-of-pool",
        "queueFrom": queue_from,
        "errorClass": "InvalidTemplate",
        "errorMessage": "template does not exist",
        "failedAt": failed.isoformat(timespec="microseconds").replace("+00:00", "Z"),
        "provider": "cloud",
        "step": "create",
        "fingerprint": "abc123",
    }
    body = thing("DeadLetter", f"{queue}-{number:02}", spec)
    body["metadata"]["labels"] = {keys.LABEL_DEAD_LETTER_QUEUE: queue, keys.LABEL_QUEUE: queue_from}
    return body


def test_view_all_pending_dlq_entries(many: str, typed: Typed) -> None:
    select = f"spec.queue={many},spec.queueFrom=pending"
    assert typed.shell(f"kubectl get dl --field-selector {select} -o name").split() == [
        f"deadletter.vmpool.dev/{many}-99"
    ]
    (shown,) = typed.items(f"dl -l vmpool.dev/dead-letter-queue={many},vmpool.dev/queue=pending")
    assert shown["spec"]["vm"] == "web-99"


def test_view_dlq_entries_with_scores(many: str, typed: Typed) -> None:
    """The score is the time of the failure."""
    columns = "VM:.spec.vm,FAILED:.spec.failedAt"
    select = f"-l vmpool.dev/dead-letter-queue={many}"
    lines = typed.shell(f"kubectl get dl {select} -o custom-columns={columns}").splitlines()
    assert lines[0].split() == ["VM", "FAILED"]
    assert dict(line.split() for line in lines[1:]) == {
        one["spec"]["vm"]: one["spec"]["failedAt"] for one in typed.items(f"dl {select}")
    }
    assert len(lines) == 14


def test_get_dlq_size(many: str, typed: Typed) -> None:
    path = '{.status.queues[?(@.name=="pending")].entries} {.status.queues[?(@.name=="clone")].entries}'
    assert typed.shell(f"kubectl get dlq {many} -o jsonpath='{path}'") == "1 12"
    count = f"kubectl get dl --field-selector spec.queue={many},spec.queueFrom=clone --no-headers | wc -l"
    assert typed.shell(count).strip() == "12"


def test_view_recent_failures_last_10(many: str, typed: Typed) -> None:
    select = f"--field-selector spec.queue={many},spec.queueFrom=clone"
    last = f"kubectl get dl {select} --sort-by=.spec.failedAt -o name | tail -n 10 | tac"
    newest = [f"{many}-{number:02}" for number in range(10)]
    assert [line.removeprefix("deadletter.vmpool.dev/") for line in typed.shell(last).split()] == newest
    shown = typed.shell(f"vmpool dlq list --queue {many} --from clone | head -n 11").splitlines()
    assert [line.split()[0] for line in shown] == ["NAME", *newest]


def test_view_entries_older_than_1_hour(many: str, typed: Typed) -> None:
    columns = "NAME:.metadata.name,FAILED:.spec.failedAt"
    old = (
        f"kubectl get dl --field-selector spec.queue={many},spec.queueFrom=clone --no-headers "
        f"-o custom-columns={columns} | awk -v then=$(date -u -d '1 hour ago' +%FT%T) '$2 < then {{print $1}}'"
    )
    assert typed.shell(old).split() == [f"{many}-{number:02}" for number in range(2, 12)]


async def test_an_entry_that_is_taken_out_is_counted_no_more(many: str, typed: Typed) -> None:
    """``redis-cli ZREM`` has its form too."""
    typed.shell(f"vmpool dlq discard {many}-99")
    size = f"kubectl get dlq {many} -o jsonpath='{{.status.entries}}'"
    await until(lambda: typed.shell(size) == "12", deadline=DEADLINE, what="the size is one less")
