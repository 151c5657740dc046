"""How the pools are: GET status, poolstat and totalrunning, live from the mirrors."""

from collections import Counter
from collections.abc import Iterable

from vmpool.gateway import durations
from vmpool.gateway.answers import Answer, Json
from vmpool.gateway.context import Call, Gateway
from vmpool.gateway.history import Task
from vmpool.gateway.routes import Parameter, Route, Schema
from vmpool.gateway.schemas import COUNT, NUMBER, TEXT, TEXTS, record, table
from vmpool.gateway.tally import Place
from vmpool.plan.names import qualified_name, rest_name
from vmpool.plan.snapshot import PoolFacts

FINE = "Battle station fully armed and operational."
TIME = "%Y-%m-%d %H:%M:%S %z"
"""How VMPooler writes a time that is not for programs."""


async def show_status(call: Call) -> Answer:
    """GET status: never an error; ``status.ok`` is false while pools that should have VMs have none ready."""
    views = call.query["view"].split(",") if "view" in call.query else None
    return Answer(status_document(call.gateway, views))


async def show_pools(call: Call) -> Answer:
    """GET poolstat: size and ready VMs of the pools that ``pool`` names; of none without it."""
    gateway = call.gateway
    wanted = set(call.query.get("pool", "").split(","))
    found = {}
    for name, pool in named_pools(gateway):
        if wanted.intersection((name, rest_name(pool), qualified_name(pool), *pool.spec.aliases)):
            found[name] = _called(pool, {"max": size(pool)}) | {"ready": gateway.tally.of(pool.uid)[Place.READY]}
    return Answer({"pools": found})


async def show_running(call: Call) -> Answer:
    """GET totalrunning: how many VMs somebody has."""
    gateway = call.gateway
    return Answer({"running": sum(gateway.tally.of(pool.uid)[Place.RUNNING] for _, pool in named_pools(gateway))})


def status_document(gateway: Gateway, views: list[str] | None) -> Json:
    """Return the status with these views; None means all of them."""

    def wanted(view: str) -> bool:
        return views is None or view in views

    pools = named_pools(gateway)
    status: Json = {"ok": True, "message": FINE}
    made: Json = {"status": status}
    if wanted("capacity"):
        made["capacity"] = _capacity(gateway, pools)
    if wanted("queue"):
        made["queue"] = _queue(gateway, pools)
    today = gateway.now().date()
    for task in Task:
        if wanted(task):
            made[task] = durations.of_day(gateway.history.spans(task, today).values())
    if wanted("pools"):
        made["pools"] = {name: _pool(gateway, pool) for name, pool in pools}
        empty = [name for name, pool in pools if size(pool) and not made["pools"][name]["ready"]]
        if empty:
            status |= {"ok": False, "message": f"Found {len(empty)} empty pools.", "empty": empty}
    status["uptime"] = round((gateway.now() - gateway.started_at).total_seconds(), 1)
    return dict(sorted(made.items()))


def named_pools(gateway: Gateway) -> list[tuple[str, PoolFacts]]:
    """Return every pool with the name under which it is shown, in the order of names."""
    pools = gateway.all_pools()
    return sorted(
        ((gateway.directory.shown(pool.uid, qualified_name(pool)), pool) for pool in pools), key=lambda pair: pair[0]
    )


def size(pool: PoolFacts) -> int:
    """Return how many ready VMs are wanted of a pool."""
    return pool.status.desired_replicas if pool.spec.replicas is None else pool.spec.replicas


def _called(pool: PoolFacts, fields: Json) -> Json:
    return fields | ({"alias": list(pool.spec.aliases)} if pool.spec.aliases else {})


def _pool(gateway: Gateway, pool: PoolFacts) -> Json:
    counts = gateway.tally.of(pool.uid)
    booted = gateway.history.last_boot((pool.namespace, pool.name))
    return _called(
        pool,
        {
            "ready": counts[Place.READY],
            "running": counts[Place.RUNNING],
            "pending": counts[Place.CLONING] + counts[Place.BOOTING],
            "max": size(pool),
            "lastBoot": booted.strftime(TIME) if booted is not None else "",
        },
    )


def _capacity(gateway: Gateway, pools: Iterable[tuple[str, PoolFacts]]) -> Json:
    current = total = 0
    for _, pool in pools:
        current += gateway.tally.of(pool.uid)[Place.READY]
        total += size(pool)
    return {"current": current, "total": total, "percent": round(current / total * 100, 1) if total else 0}


def _queue(gateway: Gateway, pools: Iterable[tuple[str, PoolFacts]]) -> Json:
    counts: Counter[Place] = Counter()
    requested = 0
    for _, pool in pools:
        counts.update(gateway.tally.of(pool.uid))
        requested += pool.status.waiting_replicas
    pending = counts[Place.CLONING] + counts[Place.BOOTING]
    return {
        "requested": requested,
        "pending": pending,
        "cloning": counts[Place.CLONING],
        "booting": counts[Place.BOOTING],
        "ready": counts[Place.READY],
        "running": counts[Place.RUNNING],
        "completed": counts[Place.COMPLETED],
        "total": pending + counts[Place.READY] + counts[Place.RUNNING] + counts[Place.COMPLETED],
    }


STATUS: Schema = record(
    {
        "status": record(
            {"ok": {"type": "boolean"}, "message": TEXT, "uptime": {"type": "number"}},
            empty=TEXTS,
        )
    },
    capacity=record({"current": COUNT, "total": COUNT, "percent": NUMBER}),
    queue=record(dict.fromkeys(("requested", "pending", *Place, "total"), COUNT)),
    clone=durations.OF_DAY,
    boot=durations.OF_DAY,
    pools=table(
        record(
            {"ready": COUNT, "running": COUNT, "pending": COUNT, "max": COUNT, "lastBoot": TEXT},
            alias=TEXTS,
        )
    ),
)

ROUTES: tuple[Route, ...] = (
    Route(
        "GET",
        "/api/v3/status",
        show_status,
        "How the pools are, and how long clones and boots took today.",
        {200: STATUS},
        parameters=(
            Parameter("view", "query", "Only these parts, separated by commas: capacity, queue, clone, boot, pools."),
        ),
    ),
    Route(
        "GET",
        "/api/v3/poolstat",
        show_pools,
        "Size and ready VMs of some pools.",
        {200: record({"pools": table(record({"max": COUNT, "ready": COUNT}, alias=TEXTS))})},
        parameters=(Parameter("pool", "query", "Names or aliases of pools, separated by commas."),),
    ),
    Route("GET", "/api/v3/totalrunning", show_running, "How many VMs somebody has.", {200: record({"running": COUNT})}),
)
