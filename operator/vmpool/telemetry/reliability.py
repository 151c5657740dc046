"""The metrics of dead letters, purge and health. Ages are at the time of the last check, in seconds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

CYCLE_SECONDS = (0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 10.0, 30.0, 60.0, 300.0)

POOL = ("namespace", "pool")


class ReliabilityMetrics:
    """Part of the metrics of one process, on its registry."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self._letters(registry)
        self._purge(registry)
        self._health(registry)

    def _letters(self, r: CollectorRegistry) -> None:
        dlq = ("namespace", "dead_letter_queue")
        self.letters_written = Counter(
            "vmpool_dead_letters_written_total", "Dead letters written, by queue name.", (*dlq, "queue"), registry=r
        )
        self.letters = Gauge("vmpool_dead_letters", "Dead letters that are kept.", (*dlq, "queue"), registry=r)
        self.letters_oldest = Gauge(
            "vmpool_dead_letter_oldest_timestamp_seconds", "When the oldest one failed; 0 without any.", dlq, registry=r
        )
        self.letters_removed = Counter(
            "vmpool_dead_letters_removed_total",
            "By why: expired, trimmed, discarded, unarchived (its archive was out of reach for too long).",
            (*dlq, "why"),
            registry=r,
        )
        self.letters_archived = Counter(
            "vmpool_dead_letters_archived_total", "Written into the archive.", dlq, registry=r
        )
        self.archive_errors = Counter(
            "vmpool_dead_letter_archive_errors_total", "Tries to archive that failed.", dlq, registry=r
        )
        self.redrives = Counter(
            "vmpool_dead_letter_redrives_total",
            "By outcome: Redriven, NotNeeded, Refused.",
            (*dlq, "outcome"),
            registry=r,
        )
        self.poisoned = Gauge("vmpool_pool_poisoned", "1 while poison stops a pool's creates.", POOL, registry=r)

        self.paused = Gauge(
            "vmpool_pool_paused", "1 while a pool is paused or being deleted: nothing is refilled.", POOL, registry=r
        )

    def _purge(self, r: CollectorRegistry) -> None:
        purge = ("namespace", "purge_policy")
        self.purge_cycles = Counter(
            "vmpool_purge_cycles_total", "By outcome: live, dry_run, paused.", (*purge, "outcome"), registry=r
        )
        self.purge_last = Gauge(
            "vmpool_purge_last_cycle_timestamp_seconds", "When the last cycle ended.", purge, registry=r
        )
        self.purge_interval = Gauge(
            "vmpool_purge_interval_seconds", "How far apart the policy's cycles are.", purge, registry=r
        )
        self.purge_seconds = Histogram(
            "vmpool_purge_cycle_seconds", "How long a cycle took.", purge, buckets=CYCLE_SECONDS, registry=r
        )
        self.purge_found = Gauge(
            "vmpool_purge_found", "VMs that the last cycle found too old.", (*purge, "state"), registry=r
        )
        self.purged = Counter("vmpool_purged_vms_total", "VMs removed for their age.", (*purge, "state"), registry=r)

    def _health(self, r: CollectorRegistry) -> None:
        health = ("namespace", "health_policy")
        self.health = Gauge(
            "vmpool_health_status", "0 healthy, 1 degraded, 2 unhealthy: all pools of a policy.", health, registry=r
        )
        self.health_last = Gauge(
            "vmpool_health_last_check_timestamp_seconds", "When health was judged last.", health, registry=r
        )
        self.health_interval = Gauge(
            "vmpool_health_interval_seconds", "How far apart the policy's checks are.", health, registry=r
        )
        self.health_letters = Gauge(
            "vmpool_health_dlq_total_size", "Dead letters of all pools of a policy.", health, registry=r
        )
        self.health_letters_by_queue = Gauge(
            "vmpool_health_dlq_size", "The same by queue name.", (*health, "queue"), registry=r
        )
        self.stuck = Gauge(
            "vmpool_health_stuck_vms_count", "VMs on their way to ready for too long.", health, registry=r
        )
        self.orphaned = Gauge("vmpool_health_orphaned_count", "Machines of ours that no pool owns.", health, registry=r)
        self.tasks = Gauge(
            "vmpool_health_tasks",
            "Tasks clone and ondemand, by state: active or pending.",
            (*health, "task", "state"),
            registry=r,
        )
        self.pool_health = Gauge(
            "vmpool_pool_health_status", "0 healthy, 1 degraded, 2 unhealthy: one pool.", POOL, registry=r
        )
        self.queue_size = Gauge(
            "vmpool_health_queue_size", "VMs in pending, ready or completed.", (*POOL, "queue"), registry=r
        )
        self.queue_oldest = Gauge(
            "vmpool_health_queue_oldest_age_seconds", "Age of the oldest of them.", (*POOL, "queue"), registry=r
        )
        self.queue_average = Gauge(
            "vmpool_health_queue_average_age_seconds", "Their average age.", (*POOL, "queue"), registry=r
        )
        self.queue_stuck = Gauge(
            "vmpool_health_queue_stuck_count", "VMs in pending for too long.", (*POOL, "queue"), registry=r
        )

    def drop_pool(self, namespace: str, pool: str) -> None:
        """Forget the levels of a pool that is gone."""
        for gauge in (self.poisoned, self.paused):
            drop(gauge, namespace=namespace, pool=pool)
        self.drop_pool_health(namespace, pool)

    def drop_pool_health(self, namespace: str, pool: str) -> None:
        """Forget the levels of a pool that no health policy judges any more."""
        for gauge in (self.pool_health, self.queue_size, self.queue_oldest, self.queue_average, self.queue_stuck):
            drop(gauge, namespace=namespace, pool=pool)

    def drop_health(self, namespace: str, health_policy: str) -> None:
        """Forget the levels of a health policy that is gone."""
        for gauge in (
            self.health,
            self.health_last,
            self.health_interval,
            self.health_letters,
            self.health_letters_by_queue,
            self.stuck,
            self.orphaned,
            self.tasks,
        ):
            drop(gauge, namespace=namespace, health_policy=health_policy)


def drop(gauge: Gauge, **labels: str) -> None:
    """Forget the samples of a gauge that have these labels."""
    for found in [sample.labels for metric in gauge.collect() for sample in metric.samples]:
        if labels.items() <= found.items():
            gauge.remove(*(found[name] for name in gauge._labelnames))
