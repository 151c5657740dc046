"""Every setting of the operator with its default and the reason for it. Read from ``VMPOOL_*`` and the command line."""

from datetime import timedelta
from typing import Literal

from pydantic import Field
from pydantic_settings import BaseSettings, SettingsConfigDict


class Settings(BaseSettings):
    """Settings of ``vmpool operator``. Durations are seconds where the name says so."""

    model_config = SettingsConfigDict(env_prefix="VMPOOL_", frozen=True, extra="ignore", use_attribute_docstrings=True)

    kubeconfig: str = ""
    """Path of a kubeconfig file. Empty: $KUBECONFIG, then the service account of the pod."""
    context: str = ""
    """Context in the kubeconfig. Empty: its current one."""
    watch_namespace: str = ""
    """Serve only this namespace. Empty: all."""
    namespace: str = "default"
    """Where the operator's own objects are: its lease and its install id."""
    install_id: str = Field(default="", max_length=63, pattern=r"^[a-z0-9-]*$")
    """Take over machines of this install id. Empty: the one in ConfigMap vmpool-identity, made on the first start."""
    http_host: str = "127.0.0.1"
    """Address of /metrics, /healthz and /readyz. Loopback unless told otherwise: they are not authenticated."""
    http_port: int = Field(default=8080, ge=0, le=65535)
    """Port of the same; 0 takes a free one."""
    log_format: Literal["json", "console"] = "json"
    """One JSON object a line for machines, or coloured lines for people."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severity that is logged."""

    lease_seconds: float = Field(default=15.0, ge=1.0, le=600.0)
    """How long a rival waits for an unchanged lease: a killed operator is replaced within this time and a little."""
    lease_renew_seconds: float = Field(default=10.0, ge=0.5, le=590.0)
    """Not renewed for so long, the process ends: well before a rival may begin."""
    lease_retry_seconds: float = Field(default=2.0, ge=0.1, le=60.0)
    """Between two renewals."""
    round_pause_seconds: float = Field(default=0.005, ge=0.0, le=10.0)
    """Least time between two rounds of one object: events that come together are decided on together."""
    round_share: float = Field(default=0.1, gt=0.0, le=1.0)
    """Share of one core for the rounds of one object: the more a round costs, the longer the pause after it."""
    round_pause_longest_seconds: float = Field(default=0.05, ge=0.0, le=10.0)
    """Longest pause for the share's sake: a large pool may take more than its share, but answers as soon as this."""
    resync_seconds: float = Field(default=300.0, ge=1.0, le=86_400.0)
    """Longest time between two rounds of one object, whatever happens."""
    error_pause_seconds: float = Field(default=0.5, ge=0.01, le=60.0)
    """Pause after a round that ended with an unforeseen error; doubles each time."""
    error_pause_longest_seconds: float = Field(default=30.0, ge=0.1, le=600.0)
    """Longest such pause."""
    status_pause_seconds: float = Field(default=1.0, ge=0.0, le=60.0)
    """Least time between two status writes of one pool while only its counts change."""
    machines_pause_seconds: float = Field(default=5.0, ge=0.0, le=600.0)
    """The same for a provider, whose count of machines nobody waits for."""
    probe_timeout_seconds: float = Field(default=2.0, ge=0.1, le=60.0)
    """How long a TCP probe waits for its connection."""
    probes_in_flight: int = Field(default=64, ge=1, le=1000)
    """Most TCP probes at once: each costs a socket."""
    stalled_pause_seconds: float = Field(default=3.0, ge=0.1, le=600.0)
    """How soon a stalled provider is tried again: it should recover by itself within seconds of being fixed."""
    listing_pause_seconds: float = Field(default=1.0, ge=0.05, le=600.0)
    """Least time between two listings of one provider when machines wait to be proven gone."""
    sweep_seconds: float = Field(default=30.0, ge=0.5, le=3600.0)
    """How often VMs without a pool and machines without an object are looked for."""
    straggler_grace_seconds: float = Field(default=120.0, ge=1.0, le=86_400.0)
    """How long a machine must be listed without an object before it is taken in: longer than any create can take."""
    straggler_ttl_seconds: float = Field(default=14_400.0, ge=0.0, le=2_592_000.0)
    """How long a straggler is kept in quarantine before it is destroyed."""
    max_clock_skew_seconds: float = Field(default=5.0, ge=0.5, le=3600.0)
    """A process whose clock differs more from the API server's is unready and ends nothing."""
    stop_grace_seconds: float = Field(default=10.0, ge=0.0, le=600.0)
    """How long calls in flight may take when the process is told to stop."""
    requests_in_flight: int = Field(default=32, ge=1, le=1000)
    """Most requests to the API server at once."""

    @property
    def resync(self) -> timedelta:
        """``resync_seconds`` as a duration."""
        return timedelta(seconds=self.resync_seconds)
