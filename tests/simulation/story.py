"""What a seed chooses: the pools, the cloud, the weather, how many leaders there are, and what people do when."""

from dataclasses import dataclass
from random import Random
from typing import Final

from tests.objects import pool, provider, thing
from tests.simulation.cloud import CloudScript
from tests.simulation.net import Weather
from vmpool.kube.resource import Json

NAMESPACE: Final = "lab"
PROVIDER: Final = "sim"
QUEUE: Final = "failures"
DEEDS: Final = (
    ("scale", 4),
    ("checkout", 8),
    ("release", 4),
    ("extend", 1),
    ("claim", 4),
    ("drop_claim", 2),
    ("template", 1),
    ("delete_vm", 2),
    ("delete_pool", 1),
    ("make_pool", 2),
    ("pause", 1),
    ("redrive", 3),
    ("vanish", 1),
    ("die", 1),
    ("hold", 1),
    ("kill", 2),
)
"""What may happen, and how often beside the others."""


@dataclass(frozen=True)
class Story:
    """One seed's choices."""

    seed: int
    pools: tuple[Json, ...]
    cloud: CloudScript
    weather: Weather
    leaders: int
    most_letters: int
    """Above it the oldest dead letters are removed."""
    deeds: tuple[tuple[float, str], ...]
    """When, in seconds, and what."""
    heals_at: float


def story_of(seed: int) -> Story:
    """Choose by the seed alone."""
    random = Random(seed)
    heals_at = random.uniform(4.0, 16.0)
    names, weights = zip(*DEEDS, strict=True)
    count = random.randint(2, 6)
    deeds = sorted((random.uniform(0.0, heals_at), random.choices(names, weights)[0]) for _ in range(count))
    return Story(
        seed=seed,
        pools=tuple(new_pool(random, name) for name in random.choice([("web",), ("web",), ("web",), ("web", "db")])),
        cloud=CloudScript(
            tokens=random.random() < 0.7,
            boot_fails=random.choice([0.0, 0.1, 0.4]),
            lag=random.choice([0.0, 0.0, 3.0]),
        ),
        weather=_weather(random),
        leaders=random.choice([1, 1, 1, 2]),
        most_letters=random.choice([2, 1000]),
        deeds=tuple(deeds),
        heals_at=heals_at,
    )


def _weather(random: Random) -> Weather:
    return Weather(
        refused=random.choice([0.0, 0.02, 0.1]),
        lost=random.choice([0.0, 0.02, 0.08]),
        late=random.choice([0.0, 0.0, 0.02, 0.06]),
        kills=random.choice([0.0, 0.0, 0.01, 0.04]),
        cuts=random.choice([0.0, 0.0, 0.05]),
        slow_news=random.choice([0.0, 0.0, 0.05, 0.2]),
    )


def new_pool(random: Random, name: str) -> Json:
    """Return a small pool."""
    replicas = random.randint(1, 2)
    spec: Json = {
        "replicas": replicas,
        "maxVMs": replicas + random.randint(1, 3),
        "hostName": {"prefix": f"{name}-"},
        "readiness": {"timeout": random.choice(["8s", "30s"])},
        "limits": {"quarantined": random.randint(0, 1)},
        "recycle": {"quarantineTTL": "10s"},
        "retry": {"attempts": random.randint(2, 4), "backoff": "200ms", "maxBackoff": "2s"},
        "claims": {"lifetime": "1m", "maxLifetime": "2m"},
        "deletionPolicy": random.choice(["Drain", "Force"]),
    }
    if random.random() < 0.7:
        spec["deadLetterQueue"] = QUEUE
    if random.random() < 0.3:
        spec["update"] = {"strategy": "Rolling", "maxSurge": 1, "maxUnavailable": random.choice([0, 1])}
    return pool(name, **spec)


def furniture(most_letters: int) -> tuple[Json, ...]:
    """Return what every story has beside its pools."""
    return (
        provider(
            PROVIDER,
            observe={"interval": "20s"},
            timeouts={"operate": "20s", "observe": "10s"},
            circuitBreaker={"failures": 4, "pause": "2s"},
        ),
        thing("DeadLetterQueue", QUEUE, {"poison": {"failures": 0}, "maxEntries": most_letters}),
    )
