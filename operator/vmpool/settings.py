"""Every setting of the operator with its default and the reason for it. Read from ``VMPOOL_*`` and the command line."""

import re
from datetime import timedelta
from typing import Literal

from pydantic import Field, field_validator
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
    pod_uid: str = ""
    """uid of our pod, from the downward API: who finds the lease of its own pod knows that its holder is dead."""
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
    watch_silence_seconds: float = Field(default=90.0, ge=1.0, le=600.0)
    """Without a byte for so long a watch is given up and begun anew: a server sends bookmarks about every 60 s."""
    relist_seconds: float = Field(default=1800.0, ge=5.0, le=86_400.0)
    """How often every kind is listed anew although nothing looks wrong: so long may a lost event stay unnoticed."""
    list_recounts: int = Field(default=3, ge=1, le=100)
    """How often a list is read that has another number of objects than the server counts; then it is believed."""
    gone_kept: int = Field(default=10_000, ge=100, le=1_000_000)
    """Objects of each kind that are gone of which a process still knows it, so that old news brings none back."""
    watchdog_seconds: float = Field(default=1.0, ge=0.05, le=5.0)
    """How often the watchdog looks. With the two settings that follow at most 30 s: so soon is doubt noticed."""
    watchdog_margin_seconds: float = Field(default=20.0, ge=0.1, le=20.0)
    """How much longer than its silence a watch may have told nothing, and how long kopf may take to watch a kind."""
    watchdog_linger_seconds: float = Field(default=3.0, ge=0.0, le=5.0)
    """How long a process in doubt shows why in /healthz and /metrics, and begins nothing, before it ends."""
    loop_block_seconds: float = Field(default=10.0, ge=0.5, le=25.0)
    """How long the event loop may be held up by one piece of work before the process is ended from outside it."""
    clock_jump_seconds: float = Field(default=5.0, ge=1.0, le=60.0)
    """How far the wall clock may jump before the process ends; the next one compares clocks with the API server."""
    gateway: bool = False
    """Serve the REST API from this process too; its settings are those of ``vmpool gateway``."""
    claim_rounds_longest_seconds: float = Field(default=30.0, ge=0.1, le=3600.0)
    """How long the queue of VMClaims rests at most while something waits in it."""
    claim_effects_in_flight: int = Field(default=32, ge=1, le=1000)
    """Most claims that are being bound, ended or written at once."""
    claim_losses: int = Field(default=20, ge=1, le=1000)
    """How many VMs in a row one slot of a VMClaim may lose to other allocators before the queue looks anew."""
    claim_retry_seconds: float = Field(default=3.0, ge=0.1, le=600.0)
    """How soon a claim is tried again that could not be judged or bound although nothing is against it."""
    claim_proof_seconds: float = Field(default=30.0, ge=0.1, le=3600.0)
    """How soon a VMClaim that is not there, but not proven gone either, is asked for again."""
    claim_review_seconds: float = Field(default=30.0, ge=0.0, le=3600.0)
    """How long the answer to who may claim from a pool is believed."""
    letters_in_flight: int = Field(default=8, ge=1, le=100)
    """Most dead letters that are being written at once."""
    letters_per_second: float = Field(default=50.0, gt=0.0, le=10_000.0)
    """Most dead letters written, and most removed, a second: a mass failure must not flood the API server."""
    discard_hold_seconds: float = Field(default=60.0, ge=0.0, le=3600.0)
    """How long a discarded letter stays whose VM is still where it failed: who takes over would write it again."""
    letters_per_round: int = Field(default=100, ge=1, le=10_000)
    """Most dead letters of one queue removed or redriven before the queue looks again: what is asked for meanwhile
    waits no longer, and no more of them are in memory as a whole."""
    archive_seconds: float = Field(default=30.0, ge=0.1, le=600.0)
    """How long an archive may take to store one batch of dead letters; then it counts as out of reach."""
    diagnostics_in_flight: int = Field(default=4, ge=0, le=100)
    """Most consoles of one provider that are read at once for diagnostics; more are left out."""
    diagnostics_seconds: float = Field(default=5.0, ge=0.1, le=60.0)
    """How long the diagnostics of a failed machine may take; what is not there by then is left out."""
    purge_cycle_seconds: float = Field(default=600.0, ge=0.1, le=3600.0)
    """How long a purge waits for the pools to remove what is too old; what is left then waits for the next cycle."""
    purge_start_seconds: float = Field(default=60.0, ge=0.0, le=3600.0)
    """How long the first purge after a start waits for a provider, or a pool's health, that nobody has looked at."""
    purge_look_seconds: float = Field(default=5.0, ge=0.1, le=600.0)
    """How often a purge policy looks, between its cycles, which pools name it and what pauses it."""
    claim_policy_margin_seconds: float = Field(default=10.0, ge=0.0, le=3600.0)
    """How long after the admission policy was installed API servers may not enforce it yet."""

    @property
    def resync(self) -> timedelta:
        """``resync_seconds`` as a duration."""
        return timedelta(seconds=self.resync_seconds)


class GatewaySettings(BaseSettings):
    """Settings of ``vmpool gateway``; how to reach the API server is in ``Settings``."""

    model_config = SettingsConfigDict(
        env_prefix="VMPOOL_GATEWAY_", frozen=True, extra="ignore", use_attribute_docstrings=True
    )

    host: str = "127.0.0.1"
    """Address of the REST API. Loopback unless told otherwise."""
    port: int = Field(default=4567, ge=0, le=65535)
    """Port of the same, VMPooler's own; 0 takes a free one."""
    tls_certificate: str = ""
    """PEM file with the certificate and its chain; read again when it changes. Empty: plain HTTP."""
    tls_key: str = ""
    """PEM file with its key."""
    auth: Literal["none", "static", "kubernetes", "ldap"] = "none"
    """Who vouches for users. none: nothing needs a token, everybody is ``vmpool:anonymous``."""
    authorization: Literal["rbac", "open"] = "rbac"
    """rbac: the API server is asked whether a user may claim from a pool. open: every user may, from every pool."""
    users_file: str = ""
    """For static: one ``user:hash[:group,group]`` a line; ``vmpool gateway hash-password`` makes the hashes."""
    ldap_url: str = ""
    """For ldap: ``ldap://host:port`` (with StartTLS) or ``ldaps://host:port``."""
    ldap_base: str = ""
    """For ldap: base DNs under which users are, separated by semicolons."""
    ldap_user_attribute: str = "uid"
    """For ldap: attributes that hold the login, separated by commas."""
    ldap_bind_dn: str = ""
    """For ldap: account that searches for the user's DN. Empty: the DN is ``<attribute>=<login>,<base>``."""
    ldap_bind_password_file: str = ""
    """For ldap: file with that account's password."""
    ldap_ca_file: str = ""
    """For ldap: PEM file of the authorities that are trusted. Empty: those of the system."""
    ldap_timeout_seconds: float = Field(default=5.0, ge=0.1, le=60.0)
    """For ldap: how long the directory may take for one login."""
    ldap_turn_seconds: float = Field(default=10.0, ge=0.1, le=120.0)
    """For ldap: how long a login may wait for its turn behind others; then 503."""
    token_days: float = Field(default=0.0, ge=0.0, le=3650.0)
    """How long a new token is valid; 0 is for ever, as VMPooler has it."""
    tokens_per_user: int = Field(default=100, ge=1, le=10_000)
    """Most tokens of one user; above it the user must delete one first."""
    token_used_seconds: float = Field(default=3600.0, ge=60.0, le=86_400.0)
    """How often at most it is written down that a token was used."""
    token_sweep_seconds: float = Field(default=3600.0, ge=1.0, le=86_400.0)
    """How often expired tokens are looked for and removed."""
    logins_at_once: int = Field(default=2, ge=1, le=64)
    """Most passwords checked at once: each costs a core, and up to 128 MiB (static) or a process (ldap)."""
    logins_waiting: int = Field(default=64, ge=1, le=10_000)
    """Most logins that wait for that, those being checked included; above it a login is answered 503."""
    review_seconds: float = Field(default=30.0, ge=0.0, le=3600.0)
    """How long the API server's answer about a user is believed."""
    review_entries: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most such answers kept."""
    rate_limits: bool = False
    """Hold clients to the limits below."""
    rate_period_seconds: float = Field(default=60.0, ge=1.0, le=3600.0)
    """The time that the limits are meant for."""
    rate_per_address: int = Field(default=100, ge=1, le=1_000_000)
    """Requests without a valid token, by address."""
    rate_per_token: int = Field(default=500, ge=1, le=1_000_000)
    """Requests with a valid token, by its user."""
    rate_creation: int = Field(default=20, ge=1, le=1_000_000)
    """Requests that make something: POST with /vm, /ondemandvm or /token in the path."""
    rate_deletion: int = Field(default=50, ge=1, le=1_000_000)
    """Requests that delete a VM."""
    rate_entries: int = Field(default=100_000, ge=100, le=10_000_000)
    """Most clients that are counted; above it those seen longest ago are forgotten."""
    trusted_proxies: str = ""
    """Networks, separated by commas, whose X-Forwarded-For is believed. Empty: nobody's."""
    body_bytes: int = Field(default=10_240, ge=100, le=1_048_576)
    """Largest body of a request."""
    body_depth: int = Field(default=5, ge=1, le=32)
    """Deepest nesting of JSON in it."""
    body_seconds: float = Field(default=10.0, ge=0.1, le=300.0)
    """How long a client may take to send it."""
    requests_at_once: int = Field(default=2000, ge=1, le=100_000)
    """Most requests that are being answered at once; more are answered 503 at once."""
    stop_seconds: float = Field(default=15.0, ge=0.0, le=600.0)
    """How long requests in flight may take when the process is told to stop."""
    tls_look_seconds: float = Field(default=5.0, ge=0.1, le=3600.0)
    """How often the files of the certificate are looked at for a change."""
    count_max: int = Field(default=100, ge=1, le=100)
    """Most VMs of one pool in one request."""
    checkout_max: int = Field(default=500, ge=1, le=10_000)
    """Most VMs of all pools together in one request."""
    ondemand_max: int = Field(default=10, ge=1, le=100)
    """Most VMs of one pool in one on-demand request."""
    ondemand_seconds: float = Field(default=300.0, ge=1.0, le=86_400.0)
    """How long an on-demand request waits for its VMs."""
    ondemand_kept_seconds: float = Field(default=86_400.0, ge=0.0, le=2_592_000.0)
    """How long an on-demand request that has ended can still be asked about."""
    ondemand_deleted_entries: int = Field(default=10_000, ge=1, le=1_000_000)
    """Most deleted on-demand requests that are remembered; above it the one deleted first is forgotten."""
    checkout_losses: int = Field(default=20, ge=1, le=1000)
    """How many VMs in a row one request may lose to other allocators before it is answered 503."""
    checkouts_in_flight: int = Field(default=64, ge=1, le=1000)
    """Most requests to the API server at once; others wait their turn."""
    checkout_wait_seconds: float = Field(default=10.0, ge=0.1, le=120.0)
    """Longest time for a checkout, from knowing what is asked for; then 503. A write on its way is followed up."""
    retry_after_seconds: int = Field(default=5, ge=1, le=3600)
    """What 503 tells clients to wait."""
    config_endpoints: bool = False
    """Let clients change pools over REST (sizes, templates, clone targets), as VMPooler's experimental features."""
    allowed_tags: str = ""
    """Names of the tags that may be set, separated by commas. Empty: all."""
    tag_filters: dict[str, str] = Field(default_factory=dict)
    """Regular expressions by tag: what their groups match, joined, is what is stored."""
    audit: bool = True
    """Log a line for each checkout, release and change of a claim."""
    site_name: str = Field(default="vmpool", max_length=100)
    """Name of this installation in /api/v3/status."""

    @field_validator("tag_filters")
    @classmethod
    def _filters(cls, filters: dict[str, str]) -> dict[str, str]:
        for tag, pattern in filters.items():
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"the filter of tag {tag} is no regular expression: {error}") from error
        return filters
