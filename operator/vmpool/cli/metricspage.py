"""The page of metrics, as text: every metric of every registry, and the names of VMPooler's guide for them."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Final

from prometheus_client.metrics import MetricWrapperBase

from vmpool.cli.reference import NOTICE
from vmpool.telemetry.gateway import GatewayMetrics
from vmpool.telemetry.metrics import Metrics

RULES: Final = "deploy/monitoring/rules.yaml"


@dataclass(frozen=True, slots=True)
class Described:
    """One metric as its registry has it."""

    name: str
    """As queries write it: a counter ends with ``_total``."""
    type: str
    """counter, gauge or histogram."""
    labels: tuple[str, ...]
    help: str
    """What it says, in one sentence."""


@dataclass(frozen=True, slots=True)
class GuideName:
    """A metric of VMPooler's guide and what makes it here."""

    guide: str
    """As the guide prints it."""
    recorded: str
    """The series that a recording rule makes."""
    source: str
    """The metric of ours that it is made from."""


_PENDING, _READY, _COMPLETED = (
    f'vmpool_health_queue_size{{queue="{name}"}}' for name in ("pending", "ready", "completed")
)
GUIDE_NAMES: Final = (
    GuideName("vmpooler.health.status", "vmpooler_health_status", "vmpool_health_status"),
    GuideName("vmpooler.health.dlq.total_size", "vmpooler_health_dlq_total_size", "vmpool_health_dlq_total_size"),
    GuideName("vmpooler.health.stuck_vms.count", "vmpooler_health_stuck_vms_count", "vmpool_health_stuck_vms_count"),
    GuideName(
        "vmpooler.health.orphaned_metadata.count",
        "vmpooler_health_orphaned_metadata_count",
        "vmpool_health_orphaned_count",
    ),
    GuideName("vmpooler.health.queue.<pool_name>.pending.size", "vmpooler_health_queue_pending_size", _PENDING),
    GuideName(
        "vmpooler.health.queue.<pool_name>.pending.oldest_age",
        "vmpooler_health_queue_pending_oldest_age",
        'vmpool_health_queue_oldest_age_seconds{queue="pending"}',
    ),
    GuideName(
        "vmpooler.health.queue.<pool_name>.pending.stuck_count",
        "vmpooler_health_queue_pending_stuck_count",
        'vmpool_health_queue_stuck_count{queue="pending"}',
    ),
    GuideName("vmpooler.health.queue.<pool_name>.ready.size", "vmpooler_health_queue_ready_size", _READY),
    GuideName(
        "vmpooler.health.queue.<pool_name>.ready.oldest_age",
        "vmpooler_health_queue_ready_oldest_age",
        'vmpool_health_queue_oldest_age_seconds{queue="ready"}',
    ),
    GuideName("vmpooler.health.queue.<pool_name>.completed.size", "vmpooler_health_queue_completed_size", _COMPLETED),
    GuideName("vmpooler.health.dlq.<queue_type>.size", "vmpooler_health_dlq_size", "vmpool_health_dlq_size"),
    GuideName(
        "vmpooler.health.tasks.clone.active",
        "vmpooler_health_tasks_clone_active",
        'vmpool_health_tasks{task="clone", state="active"}',
    ),
    GuideName(
        "vmpooler.health.tasks.ondemand.active",
        "vmpooler_health_tasks_ondemand_active",
        'vmpool_health_tasks{task="ondemand", state="active"}',
    ),
    GuideName(
        "vmpooler.health.tasks.ondemand.pending",
        "vmpooler_health_tasks_ondemand_pending",
        'vmpool_health_tasks{task="ondemand", state="pending"}',
    ),
)
"""Every metric that the guide lists, in its order."""


def described(holder: object) -> list[Described]:
    """Return the metrics that are attributes of an object, in the order of its class."""
    return [_of(one) for one in vars(holder).values() if isinstance(one, MetricWrapperBase)]


def _of(metric: MetricWrapperBase) -> Described:
    family = next(iter(metric.describe()))
    name = f"{family.name}_total" if family.type == "counter" else family.name
    return Described(name, family.type, tuple(metric._labelnames), family.documentation)


def every_metric() -> list[Described]:
    """Return every metric of the product."""
    operator = Metrics()
    return [
        *described(operator),
        *described(operator.watchdog),
        *described(operator.reliability),
        *described(GatewayMetrics()),
    ]


def metrics_page() -> str:
    """Return the page of metrics."""
    operator = Metrics()
    parts = [
        NOTICE,
        "# Metrics",
        "Operator and gateway each show theirs at `/metrics`; an operator that runs with `--gateway` shows both. Times"
        " and durations are in seconds. Of several operators only the leader has levels and counts; the others show"
        " `vmpool_leader` as 0. Scrape with `honor_labels: true`: the label `namespace` is that of the pool, not that"
        " of the process.",
        f"`{RULES}` has recording rules and alerts, with a page for each in `docs/runbooks`;"
        " `deploy/monitoring/dashboard.json` is a dashboard of Grafana.",
        "A counter with labels begins with its first event, so `increase()` sees those after it. Every counter and"
        " histogram also has a series that ends with `_created`: when it began.",
        "## Operator",
        _table(described(operator)),
        "## Operator: watchdog",
        _table(described(operator.watchdog)),
        "## Operator: dead letters, purge and health",
        _table(described(operator.reliability)),
        "## Gateway",
        _table(described(GatewayMetrics())),
        "## Names of VMPooler's guide",
        f"Recording rules in `{RULES}` make them; parts of a name that say which pool or queue are labels here: `pool`,"
        " `queue`. All have the label `namespace`, and those that are not of one pool have `health_policy`.",
        _rows(
            ("Name in the guide", "Recorded as", "From"),
            ((_code(one.guide), _code(one.recorded), _code(one.source)) for one in GUIDE_NAMES),
        ),
    ]
    return "\n\n".join(parts) + "\n"


def _table(metrics: Iterable[Described]) -> str:
    return _rows(
        ("Metric", "Type", "Labels", "Meaning"),
        ((_code(one.name), one.type, ", ".join(_code(label) for label in one.labels), one.help) for one in metrics),
    )


def _rows(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _code(text: str) -> str:
    return f"`{text}`"
