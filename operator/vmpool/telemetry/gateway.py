"""Every metric of the gateway, once. Names follow the glossary; durations are seconds."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)


class GatewayMetrics:
    """The metrics of one gateway on a registry of its own, or on that of the operator it runs inside."""

    def __init__(self, registry: CollectorRegistry | None = None) -> None:
        self.registry = registry or CollectorRegistry()
        r = self.registry
        pool = ("namespace", "pool")
        self.requests = Counter(
            "vmpool_gateway_requests_total",
            "REST requests by route and status.",
            ("method", "route", "code"),
            registry=r,
        )
        self.request_seconds = Histogram(
            "vmpool_gateway_request_seconds",
            "REST requests by route.",
            ("method", "route"),
            buckets=SECONDS,
            registry=r,
        )
        self.checkouts = Counter(
            "vmpool_gateway_checkouts_total",
            "VMs asked for over REST, by outcome: ok, empty, waiting, refused, unknown, error.",
            (*pool, "outcome"),
            registry=r,
        )
        self.losses = Counter(
            "vmpool_gateway_checkout_losses_total", "VMs that another allocator got first.", pool, registry=r
        )
        self.partial = Counter(
            "vmpool_gateway_checkout_partial_total", "Checkouts of several VMs that had to give some back.", registry=r
        )
        self.releases = Counter("vmpool_gateway_releases_total", "VMs released over REST.", pool, registry=r)
        self.ready = Gauge(
            "vmpool_gateway_ready", "VMs that can be handed out, as this gateway sees it.", pool, registry=r
        )
        self.limited = Counter(
            "vmpool_gateway_rate_limited_total", "Requests over a rate limit.", ("limit",), registry=r
        )
        self.logins = Counter(
            "vmpool_gateway_logins_total",
            "Logins and tokens by result: ok, wrong, expired, error.",
            ("how", "result"),
            registry=r,
        )
        self.tokens = Gauge("vmpool_gateway_tokens", "REST tokens known.", registry=r)
        self.reviews = Counter(
            "vmpool_gateway_reviews_total",
            "Access reviews asked of the API server, by result.",
            ("result",),
            registry=r,
        )
        self.api_requests = Counter(
            "vmpool_gateway_api_requests_total",
            "Requests of the gateway to the API server.",
            ("method", "resource", "code"),
            registry=r,
        )
        self.watch_age = Gauge(
            "vmpool_gateway_watch_age_seconds", "Since a watch last proved to be alive.", ("kind",), registry=r
        )
        self.clock_skew = Gauge(
            "vmpool_gateway_clock_skew_seconds", "The gateway's clock minus the API server's.", registry=r
        )
