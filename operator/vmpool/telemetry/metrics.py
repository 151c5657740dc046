"""Every metric of the operator, once. Names follow the glossary; durations are seconds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from vmpool.telemetry.reliability import ReliabilityMetrics, drop

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 900.0)


class WatchdogMetrics:
    """What the watchdog sees."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.age = Gauge(
            "vmpool_watchdog_age_seconds",
            "Age of what the watchdog watches: the mirror heard of longest ago, the lease's last renewal.",
            ("what",),
            registry=registry,
        )
        self.verdicts = Counter(
            "vmpool_watchdog_verdicts_total",
            "Doubts that end the process, by what gave rise to them.",
            ("what",),
            registry=registry,
        )
        self.lag = Histogram(
            "vmpool_loop_lag_seconds",
            "How late the event loop was for the watchdog's look.",
            buckets=SECONDS,
            registry=registry,
        )
        self.longest_lag = Gauge(
            "vmpool_loop_lag_longest_seconds", "The longest such lag since the start.", registry=registry
        )


class Metrics:
    """The metrics of one process on a registry of its own, so that tests can have several."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        pool = ("namespace", "pool")
        provider = ("namespace", "provider")
        self.vms = Gauge("vmpool_vms", "PooledVMs by phase.", (*pool, "phase"), registry=r)
        self.desired = Gauge("vmpool_desired_replicas", "Ready VMs wanted.", pool, registry=r)
        self.failures = Counter(
            "vmpool_vm_failures_total", "VMs given up, by step and class.", (*pool, "step", "error_class"), registry=r
        )
        self.lost_letters = Counter(
            "vmpool_failure_records_refused_total", "Failures whose record the API server refused for good.", registry=r
        )
        self.ready_seconds = Histogram(
            "vmpool_vm_ready_seconds", "From the PooledVM's creation until Ready.", pool, buckets=SECONDS, registry=r
        )
        self.claims_waiting = Gauge(
            "vmpool_claims_waiting", "VMClaims that wait for VMs of a pool; one may wait for several.", pool, registry=r
        )
        self.claim_binds = Counter(
            "vmpool_claim_binds_total", "VMs for VMClaims, by what became of the try.", ("outcome",), registry=r
        )
        self.claim_wait = Histogram(
            "vmpool_claim_wait_seconds", "From a VMClaim's creation until Bound.", buckets=SECONDS, registry=r
        )
        self.rounds = Counter("vmpool_rounds_total", "Rounds by kind and outcome.", ("kind", "outcome"), registry=r)
        self.round_seconds = Histogram(
            "vmpool_round_seconds", "CPU-bound part of a round.", ("kind",), buckets=SECONDS, registry=r
        )
        self.effects = Counter(
            "vmpool_effects_total", "Effects by action and outcome.", ("action", "outcome"), registry=r
        )
        self.in_flight = Gauge("vmpool_effects_in_flight", "Effects in flight, by action.", ("action",), registry=r)
        self.probes = Counter("vmpool_probes_total", "TCP probes by result.", (*pool, "result"), registry=r)
        self.calls = Histogram(
            "vmpool_provider_call_seconds",
            "Provider calls by operation and result class.",
            (*provider, "operation", "result"),
            buckets=SECONDS,
            registry=r,
        )
        self.looks = Counter(
            "vmpool_looks_total", "Looks at single machines, by what answered.", (*provider, "answer"), registry=r
        )
        self.lane_waiting = Gauge(
            "vmpool_lane_waiting", "Calls that wait for a slot of their lane.", (*provider, "slots"), registry=r
        )
        self.lane_running = Gauge("vmpool_lane_running", "Calls in flight.", (*provider, "slots"), registry=r)
        self.circuit = Gauge("vmpool_circuit_open", "1 while the circuit of a provider is open.", provider, registry=r)
        self.machines = Gauge("vmpool_machines", "Machines in the last complete listing.", provider, registry=r)
        self.stragglers = Gauge(
            "vmpool_stragglers", "Machines of ours that no PooledVM stands for.", provider, registry=r
        )
        self.api_requests = Counter(
            "vmpool_api_requests_total", "Requests to the API server.", ("method", "resource", "code"), registry=r
        )
        self.watch_age = Gauge(
            "vmpool_watch_age_seconds", "Since a watch last proved to be alive.", ("kind",), registry=r
        )
        self.relists = Gauge("vmpool_relists", "Full lists made by a mirror.", ("kind",), registry=r)
        self.miscounts = Gauge(
            "vmpool_list_miscounts", "Lists that had another number of objects than counted.", ("kind",), registry=r
        )
        self.clock_skew = Gauge("vmpool_clock_skew_seconds", "Our clock minus the API server's.", registry=r)
        self.reliability = ReliabilityMetrics(r)
        self.watchdog = WatchdogMetrics(r)
        self.leader = Gauge("vmpool_leader", "1 while this process holds the lease.", registry=r)

    def drop_pool(self, namespace: str, pool: str) -> None:
        """Forget the levels of a pool that is gone; its counters stay, as counters do."""
        for gauge in (self.vms, self.desired, self.claims_waiting):
            drop(gauge, namespace=namespace, pool=pool)
        self.reliability.drop_pool(namespace, pool)
