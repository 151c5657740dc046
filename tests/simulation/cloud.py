"""A model of ``vmpool simcloud``: the same requests and answers, on the virtual clock, with what clouds do to machines.

With tokens the same token always means the same machine, for ever; without, every create makes one, and listings may
lag behind. Boots and deletions take their time, some machines fail to boot, die, or vanish.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from random import Random
from typing import Any

from vmpool.kube.resource import Json

Answer = tuple[int, Json]
GONE = "Gone"


@dataclass
class MachineModel:
    """One machine, from its creation on; it stays on record when it is gone."""

    id: str
    name: str
    token: str
    tags: dict[str, str]
    born: float
    running_at: float
    fails: bool
    shown_at: float
    """From when listings show it."""
    late: bool = False
    """Its request landed when nobody waited for it any more."""
    maker: str = ""
    """Who sent that request."""
    state: str = "Creating"
    gone_at: float | None = None
    """When its deletion is done."""
    ended_by: str = ""

    @property
    def uid(self) -> str:
        """The PooledVM uid in its tags."""
        return self.tags.get("vmpool-uid", "")

    @property
    def alive(self) -> bool:
        """Whether it is there and nobody has asked for its end."""
        return self.state not in (GONE, "Deleting")


@dataclass(frozen=True)
class CloudScript:
    """How this cloud is: seconds, and shares from 0 to 1."""

    tokens: bool = True
    boot: tuple[float, float] = (0.05, 0.8)
    delete: tuple[float, float] = (0.05, 0.4)
    boot_fails: float = 0.0
    lag: float = 0.0
    """How long a listing may not show a new machine."""


@dataclass
class CloudModel:
    """One tenant. ``now`` is seconds; ``on_made`` hears of each create and ``on_delete`` of each delete."""

    now: Callable[[], float]
    random: Random
    script: CloudScript
    calm: bool = False
    """No more misfortunes: machines boot."""
    late: bool = False
    """Whether whoever sent the present request has given it up."""
    asker: str = ""
    """Who that is."""
    machines: dict[str, MachineModel] = field(default_factory=dict)
    on_made: Callable[[MachineModel], None] = lambda _: None
    on_delete: Callable[[MachineModel], None] = lambda _: None

    def handle(
        self,
        method: str,
        path: str,
        body: Json | None = None,
        params: Mapping[str, str] | Iterable[tuple[str, str]] | None = None,
    ) -> Answer:
        """Carry out one request and return what the cloud answers."""
        self._go_on()
        asked = list(params.items()) if isinstance(params, Mapping) else list(params or ())
        match method, path.split("/")[1:]:
            case "GET", ["identity"]:
                return 200, {"identity": "ledger-1/tenant"}
            case "GET", ["machines"]:
                return self._list(asked)
            case "POST", ["machines"]:
                return self._create(body or {})
            case _, ["machines", machine_id, *_] if machine_id not in self.machines:
                return _no_machine(machine_id)
            case _, ["machines", machine_id, *rest]:
                return self._on_one(method, self.machines[machine_id], rest, body or {}, dict(asked))
        return 404, {"error": {"code": "NotFound", "message": path}}

    def _on_one(
        self, method: str, machine: MachineModel, rest: list[str], body: Json, params: Mapping[str, str]
    ) -> Answer:
        if method == "DELETE":
            name, value = params["ifTag"].split("=")
            if machine.tags.get(name) != value:
                return 412, {"error": {"code": "TagMismatch", "message": "not of this install"}}
            return self._delete(machine)
        if machine.state == GONE:
            return _no_machine(machine.id)
        if rest == ["tags"]:
            machine.tags |= body["tags"]
        elif rest == ["console"]:
            return 200, {"console": "login:"}
        return 200, document(machine)

    def _create(self, body: Json) -> Answer:
        token = body.get("token") or ""
        if token and not self.script.tokens:
            return 400, {"error": {"code": "TokenUnsupported", "message": "this cloud knows no tokens"}}
        known = next((one for one in self.machines.values() if token and one.token == token), None)
        if known is not None:
            if known.state == GONE:
                return 410, {"error": {"code": "TokenSpent", "message": "the machine of this token is gone"}}
            return 200, document(known)
        now = self.now()
        machine = MachineModel(
            id=f"m-{len(self.machines)}",
            name=body["name"],
            token=token,
            tags=dict(body["tags"]),
            born=now,
            running_at=now + self.random.uniform(*self.script.boot),
            fails=not self.calm and self.random.random() < self.script.boot_fails,
            shown_at=now + (0.0 if self.calm else self.random.uniform(0.0, self.script.lag)),
            late=self.late,
            maker=self.asker,
        )
        self.machines[machine.id] = machine
        self.on_made(machine)
        return 201, document(machine)

    def _delete(self, machine: MachineModel) -> Answer:
        if machine.state == GONE:
            return _no_machine(machine.id)
        if machine.gone_at is None:
            self.on_delete(machine)
            machine.state = "Deleting"
            machine.gone_at = self.now() + self.random.uniform(*self.script.delete)
            machine.ended_by = "deleted"
        return 200, document(machine)

    def _list(self, asked: list[tuple[str, str]]) -> Answer:
        tags = [value.split("=", 1) for key, value in asked if key == "tag"]
        now = self.now()
        found = [
            document(one)
            for one in self.machines.values()
            if one.state != GONE and one.shown_at <= now and all(one.tags.get(name) == value for name, value in tags)
        ]
        return 200, {"machines": found, "next": None}

    def _go_on(self) -> None:
        """Let time have its effect on every machine."""
        now = self.now()
        for machine in self.machines.values():
            if machine.gone_at is not None and now >= machine.gone_at:
                machine.state = GONE
            elif machine.state == "Creating" and now >= machine.running_at:
                machine.state = "Failed" if machine.fails else "Running"

    # --- misfortunes and looks from above ------------------------------------------------------------------------

    def alive(self) -> list[MachineModel]:
        """Return the machines that are there, those on their way out included."""
        self._go_on()
        return [one for one in self.machines.values() if one.state != GONE]

    def vanish(self, machine: MachineModel) -> None:
        """Somebody else destroys a machine: it is not there any more."""
        machine.state, machine.gone_at, machine.ended_by = GONE, self.now(), "vanished"

    def die(self, machine: MachineModel) -> None:
        """A machine that ran has failed."""
        if machine.alive:
            machine.running_at, machine.fails, machine.state = self.now(), True, "Failed"


def document(machine: MachineModel) -> Json:
    """Return a machine as the cloud's answers show it."""
    made: dict[str, Any] = {
        "id": machine.id,
        "name": machine.name,
        "state": machine.state,
        "tags": dict(machine.tags),
        "addresses": [f"192.0.2.{machine.id[2:]}"] if machine.state == "Running" else [],
        "message": "kernel panic" if machine.state == "Failed" else "",
        "createdAt": machine.born,
    }
    return made


def _no_machine(machine_id: str) -> Answer:
    return 404, {"error": {"code": "MachineNotFound", "message": f"no machine {machine_id}"}}
