"""The durable memory of the cloud: one SQLite file, written before anything is answered.

Rows are never removed, except fault rules and disks of nothing: the history is what tests look back on. Kill -9 at
any moment loses nothing that was answered. (A power cut may lose the last moments: the write-ahead log is not
synced for every commit, which a simulation does not need.)

One process has one ledger, and calls it from one thread. Statements are small, so they run in the event loop.
"""

import hashlib
import secrets
import sqlite3
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import orjson

from vmpool.simcloud.faults import Rule, Standing
from vmpool.simcloud.model import (
    FOREVER,
    Fate,
    Machine,
    MachineSpec,
    Part,
    Refused,
    Settings,
    Step,
    TokenMode,
    plan_build,
)

SCHEMA = """
CREATE TABLE IF NOT EXISTS facts (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS tenants (name TEXT PRIMARY KEY, key_hash TEXT NOT NULL UNIQUE) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS faults (
    id INTEGER PRIMARY KEY AUTOINCREMENT, rule TEXT NOT NULL, seen INTEGER NOT NULL, fired INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS tokens (
    tenant TEXT, token TEXT, digest BLOB NOT NULL, machine_id TEXT NOT NULL, PRIMARY KEY (tenant, token)
) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS machines (
    seq INTEGER PRIMARY KEY, id TEXT NOT NULL UNIQUE, tenant TEXT NOT NULL, token TEXT, name TEXT NOT NULL,
    image TEXT NOT NULL, hardware TEXT NOT NULL, tags TEXT NOT NULL, powered INTEGER NOT NULL,
    created_at REAL NOT NULL, boot_at REAL NOT NULL, never_ready INTEGER NOT NULL, fail_at REAL NOT NULL,
    fail_message TEXT NOT NULL, delete_at REAL NOT NULL, gone_at REAL NOT NULL, ended_by TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS machines_in_making ON machines (tenant, boot_at);
CREATE INDEX IF NOT EXISTS machines_of_tenant ON machines (tenant, seq);
CREATE TABLE IF NOT EXISTS tags (
    key TEXT, value TEXT, seq INTEGER, PRIMARY KEY (key, value, seq)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS parts (
    machine_id TEXT, kind TEXT, tenant TEXT NOT NULL, made_at REAL NOT NULL, gone_at REAL NOT NULL,
    PRIMARY KEY (machine_id, kind)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS parts_of_tenant ON parts (tenant);
"""

INSERT_MACHINE = "INSERT OR REPLACE INTO machines VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
INSERT_PART = "INSERT OR REPLACE INTO parts VALUES (?, ?, ?, ?, ?)"
PARTS = (Step.DISK, Step.NIC)
BROKE_OFF = "the create broke off"
"""What is said of a machine of which only parts were made; a create with its token goes on with it."""
BUSY_SECONDS = 5.0
"""How long a writer waits for a reader of the file that came in from outside."""


class Ledger:
    """All machines, tenants, rules and settings of one simulated cloud."""

    def __init__(self, path: Path, ledger_id: str = "") -> None:
        self._db = sqlite3.connect(path, timeout=BUSY_SECONDS, isolation_level=None, cached_statements=256)
        self._db.executescript(f"PRAGMA journal_mode=WAL; PRAGMA synchronous=NORMAL; {SCHEMA}")
        self._db.execute("INSERT OR IGNORE INTO facts VALUES ('id', ?)", (ledger_id or str(uuid.uuid4()),))
        self.id: str = self._db.execute("SELECT value FROM facts WHERE key = 'id'").fetchone()[0]
        """Given or made once, with the file; the first half of every tenant's identity."""
        row = self._db.execute("SELECT value FROM facts WHERE key = 'settings'").fetchone()
        self._settings = Settings.model_validate_json(row[0]) if row else Settings()
        self._tenants = {hash_: name for name, hash_ in self._db.execute("SELECT name, key_hash FROM tenants")}

    @staticmethod
    def now() -> float:
        """Return the time in Unix seconds; the wall clock, because timelines outlive the process."""
        return time.time()

    def close(self) -> None:
        """Close the file. No other call follows."""
        self._db.close()

    # --- set-up -------------------------------------------------------------------------------------------------

    @property
    def settings(self) -> Settings:
        """How this cloud behaves."""
        return self._settings

    def put_settings(self, settings: Settings) -> None:
        """Replace the settings. Machines that exist keep their timelines."""
        text = settings.model_dump_json(by_alias=True)
        self._db.execute("INSERT OR REPLACE INTO facts VALUES ('settings', ?)", (text,))
        self._settings = settings

    def tenants(self) -> list[str]:
        """Return the names of all tenants."""
        return sorted(self._tenants.values())

    def tenant_of(self, key: str) -> str | None:
        """Return whose key this is, or None."""
        return self._tenants.get(_hash(key))

    def put_tenant(self, name: str, key: str) -> None:
        """Add a tenant, or give it another key. Raises Refused when another tenant has this key."""
        hash_ = _hash(key)
        if self._tenants.get(hash_, name) != name:
            raise Refused(409, "KeyTaken", "another tenant has this key")
        self._db.execute("INSERT OR REPLACE INTO tenants VALUES (?, ?)", (name, hash_))
        self._tenants = {known: tenant for known, tenant in self._tenants.items() if tenant != name}
        self._tenants[hash_] = name

    def rules(self) -> list[Standing]:
        """Return the fault rules in their order."""
        rows = self._db.execute("SELECT id, rule, seen, fired FROM faults ORDER BY id")
        return [Standing(id_, Rule.model_validate_json(rule), seen, fired) for id_, rule, seen, fired in rows]

    def add_rule(self, rule: Rule) -> Standing:
        """Put a rule behind the others."""
        text = rule.model_dump_json(by_alias=True)
        cursor = self._db.execute("INSERT INTO faults (rule, seen, fired) VALUES (?, 0, 0)", (text,))
        assert cursor.lastrowid is not None
        return Standing(cursor.lastrowid, rule)

    def count_rules(self, standings: Sequence[Standing]) -> None:
        """Write down what rules have seen."""
        rows = [(standing.seen, standing.fired, standing.id) for standing in standings]
        with self._transaction():
            self._db.executemany("UPDATE faults SET seen = ?, fired = ? WHERE id = ?", rows)

    def remove_rules(self, rule_id: int | None = None) -> int:
        """Remove one rule, or all; return how many there were."""
        if rule_id is None:
            return self._db.execute("DELETE FROM faults").rowcount
        return self._db.execute("DELETE FROM faults WHERE id = ?", (rule_id,)).rowcount

    # --- machines -----------------------------------------------------------------------------------------------

    def create(self, tenant: str, spec: MachineSpec, fate: Fate) -> tuple[Machine | None, bool]:
        """Make a machine and say True, or return the one that this token made already and say False.

        None when ``fate`` breaks the create off; what its steps made by then stays, and a later create with the
        same token goes on with it. Raises Refused: TokenUnsupported, TokenReused, TokenSpent (its machine is
        gone: such a token never makes another one), QuotaExceeded.
        """
        now = self.now()
        with self._transaction():
            machine_id, known = f"sim-{secrets.token_hex(8)}", None
            if spec.token is not None:
                machine_id = self._claim_token(tenant, spec, machine_id)
                known = self._machine(tenant, machine_id)
                if known is not None and now >= known.gone_at:
                    raise Refused(410, "TokenSpent", f"the machine of this token, {known.id}, is gone")
                if known is not None and (known.fail_message != BROKE_OFF or known.delete_at < FOREVER):
                    return known, False
            if known is None:
                # What broke off has its place already: its own retry must not be one too many.
                self._check_quota(tenant, now)
            build = plan_build(self._next_slot(tenant, now), self._settings.create_seconds, fate)
            for part in PARTS[: fate.steps_done]:
                made_at = build.part_at(part) if fate.steps_done is None else now
                self._db.execute(INSERT_PART, (machine_id, part, tenant, made_at, build.gone_at))
            if fate.steps_done == 0:
                return None, True
            machine = Machine(
                seq=known.seq if known is not None else self._next_seq(),
                id=machine_id,
                tenant=tenant,
                token=spec.token,
                name=spec.name,
                image=spec.image,
                hardware=spec.hardware().decode(),
                tags=orjson.dumps(spec.tags).decode(),
                powered=1,
                created_at=now,
                boot_at=build.boot_at,
                never_ready=int(fate.never_ready),
                fail_at=build.fail_at,
                fail_message=_fail_message(fate),
                delete_at=FOREVER,
                gone_at=build.gone_at,
                ended_by="vanished",
            )
            if fate.steps_done is not None:
                # What was made is seen, and can be deleted: as a machine that has failed, and never ran.
                machine = replace(machine, boot_at=now, never_ready=1, fail_at=now, fail_message=BROKE_OFF)
            self._db.execute(INSERT_MACHINE, _row(machine))
            self._index_tags(machine.seq, spec.tags)
        return (None if fate.steps_done is not None else machine), True

    def get(self, tenant: str, machine_id: str) -> Machine | None:
        """Return a machine of this tenant, or None when there is none or it is gone."""
        machine = self._machine(tenant, machine_id)
        return machine if machine is not None and self.now() < machine.gone_at else None

    def page(
        self, tenant: str, tags: Sequence[tuple[str, str]], after: int, limit: int, hide_younger: float = 0.0
    ) -> list[Machine]:
        """Return at most ``limit`` machines with all these tags whose number is above ``after``, in order.

        Fastest when the rarest tag comes first. Paging by number misses nothing, whatever is deleted meanwhile.
        """
        now = self.now()
        where = "m.tenant = ? AND m.gone_at > ? AND m.created_at <= ?"
        values: list[Any] = [tenant, now, now - hide_younger]
        source, order = "machines m", "m.seq"
        if tags:
            source, order = "tags t JOIN machines m ON m.seq = t.seq", "t.seq"
            where = f"t.key = ? AND t.value = ? AND {where}"
            values[:0] = tags[0]
        for tag in tags[1:]:
            where += " AND EXISTS (SELECT 1 FROM tags o WHERE o.key = ? AND o.value = ? AND o.seq = m.seq)"
            values += tag
        # Only the fixed words above go into the statement; every value is bound.
        sql = f"SELECT m.* FROM {source} WHERE {where} AND {order} > ? ORDER BY {order} LIMIT ?"  # noqa: S608
        return [Machine(*row) for row in self._db.execute(sql, (*values, after, limit))]

    def delete(self, machine: Machine, *, never_ends: bool = False) -> Machine:
        """Start the deletion, unless one runs that will end; return the machine as it is now."""
        now = self.now()
        running = machine.delete_at < FOREVER and machine.gone_at < FOREVER
        if running:
            return machine
        ends = FOREVER if never_ends else now + self._settings.delete_seconds
        gone_at = min(machine.gone_at, ends)
        nic_gone_at = min(gone_at, now + self._settings.delete_seconds / 2)
        with self._transaction():
            self._db.execute(
                "UPDATE machines SET delete_at = min(delete_at, ?), gone_at = ?, ended_by = 'deleted' WHERE seq = ?",
                (now, gone_at, machine.seq),
            )
            self._end_parts(machine.id, disk_at=gone_at, nic_at=nic_gone_at)
        return self._again(machine)

    def put_tags(self, machine: Machine, tags: Mapping[str, str]) -> Machine:
        """Merge tags into those of the machine."""
        before = machine.tag_map()
        with self._transaction():
            self._db.executemany(
                "DELETE FROM tags WHERE key = ? AND value = ? AND seq = ?",
                [(key, before[key], machine.seq) for key in tags if key in before],
            )
            self._index_tags(machine.seq, tags)
            text = orjson.dumps({**before, **tags}).decode()
            self._db.execute("UPDATE machines SET tags = ? WHERE seq = ?", (text, machine.seq))
        return self._again(machine)

    def power(self, machine: Machine, *, on: bool) -> Machine:
        """Switch the machine on or off."""
        self._db.execute("UPDATE machines SET powered = ? WHERE seq = ?", (int(on), machine.seq))
        return self._again(machine)

    # --- fate, from outside -------------------------------------------------------------------------------------

    def any_machine(self, machine_id: str) -> Machine | None:
        """Return a machine of any tenant, also one that is gone."""
        row = self._db.execute("SELECT * FROM machines WHERE id = ?", (machine_id,)).fetchone()
        return Machine(*row) if row else None

    def vanish(self, machine: Machine, after: float = 0.0) -> None:
        """Let the machine, its disk and its nic be gone ``after`` seconds from now, without a deletion."""
        at = self.now() + after
        with self._transaction():
            self._db.execute("UPDATE machines SET gone_at = ?, ended_by = 'vanished' WHERE seq = ?", (at, machine.seq))
            self._end_parts(machine.id, disk_at=at, nic_at=at)

    def fail(self, machine: Machine, message: str) -> None:
        """Let the machine be Failed from now on."""
        self._db.execute(
            "UPDATE machines SET fail_at = ?, fail_message = ? WHERE seq = ?", (self.now(), message, machine.seq)
        )

    def revive(self, machine: Machine) -> None:
        """Let the machine be there again, healthy, with its parts, as if it had never been deleted or failed."""
        with self._transaction():
            self._db.execute(
                "UPDATE machines SET fail_at = ?, delete_at = ?, gone_at = ?, never_ready = 0 WHERE seq = ?",
                (FOREVER, FOREVER, FOREVER, machine.seq),
            )
            self._end_parts(machine.id, disk_at=FOREVER, nic_at=FOREVER)

    def history(self, tenant: str | None = None) -> list[Machine]:
        """Return every machine ever made, in the order of their making; with ``tenant`` only its own."""
        rows = (
            self._db.execute("SELECT * FROM machines ORDER BY seq")
            if tenant is None
            else self._db.execute("SELECT * FROM machines WHERE tenant = ? ORDER BY seq", (tenant,))
        )
        return [Machine(*row) for row in rows]

    def parts(self, tenant: str | None = None) -> list[Part]:
        """Return every disk and nic ever made; with ``tenant`` only its own."""
        rows = (
            self._db.execute("SELECT * FROM parts")
            if tenant is None
            else self._db.execute("SELECT * FROM parts WHERE tenant = ?", (tenant,))
        )
        return [Part(*row) for row in rows]

    # --- inside -------------------------------------------------------------------------------------------------

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
        except BaseException:
            self._db.execute("ROLLBACK")
            raise
        self._db.execute("COMMIT")

    def _machine(self, tenant: str, machine_id: str) -> Machine | None:
        machine = self.any_machine(machine_id)
        return machine if machine is not None and machine.tenant == tenant else None

    def _again(self, machine: Machine) -> Machine:
        again = self.any_machine(machine.id)
        assert again is not None, "rows are never removed"
        return again

    def _claim_token(self, tenant: str, spec: MachineSpec, machine_id: str) -> str:
        """Return the machine id that belongs to the token: the given one when the token is new."""
        if self._settings.token_mode is TokenMode.NONE:
            raise Refused(400, "TokenUnsupported", "this cloud knows no idempotency tokens")
        digest = hashlib.sha256(orjson.dumps(spec.model_dump(), option=orjson.OPT_SORT_KEYS)).digest()
        row = self._db.execute(
            "SELECT digest, machine_id FROM tokens WHERE tenant = ? AND token = ?", (tenant, spec.token)
        ).fetchone()
        if row is None:
            values = (tenant, spec.token, digest, machine_id)
            self._db.execute("INSERT INTO tokens VALUES (?, ?, ?, ?)", values)
            return machine_id
        if row[0] != digest:
            raise Refused(409, "TokenReused", "this token came with another request before")
        known: str = row[1]
        return known

    def _check_quota(self, tenant: str, now: float) -> None:
        quota = self._settings.max_machines.get(tenant)
        if quota is None:
            return
        (alive,) = self._db.execute(
            "SELECT count(*) FROM machines WHERE tenant = ? AND gone_at > ?", (tenant, now)
        ).fetchone()
        if alive >= quota:
            raise Refused(403, "QuotaExceeded", f"tenant {tenant} has {alive} of at most {quota} machines")

    def _next_slot(self, tenant: str, now: float) -> float:
        """When the next create can begin: at the end of the one that is ``build_slots`` before it in the queue."""
        if self._settings.build_slots is None:
            return now
        row = self._db.execute(
            "SELECT boot_at FROM machines WHERE tenant = ? AND boot_at > ? ORDER BY boot_at DESC LIMIT 1 OFFSET ?",
            (tenant, now, self._settings.build_slots - 1),
        ).fetchone()
        return row[0] if row else now

    def _next_seq(self) -> int:
        row = self._db.execute("SELECT max(seq) FROM machines").fetchone()
        return (row[0] or 0) + 1

    def _index_tags(self, seq: int, tags: Mapping[str, str]) -> None:
        self._db.executemany(
            "INSERT OR IGNORE INTO tags VALUES (?, ?, ?)", [(key, value, seq) for key, value in tags.items()]
        )

    def _end_parts(self, machine_id: str, *, disk_at: float, nic_at: float) -> None:
        self._db.executemany(
            "UPDATE parts SET gone_at = ? WHERE machine_id = ? AND kind = ?",
            [(disk_at, machine_id, Step.DISK), (nic_at, machine_id, Step.NIC)],
        )


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode()).hexdigest()


def _fail_message(fate: Fate) -> str:
    if fate.fail_step is not None:
        return f"step {fate.fail_step} failed"
    return "the machine died" if fate.die_after is not None else ""


def _row(machine: Machine) -> tuple[Any, ...]:
    """Return the values of a machine in the order of its columns."""
    return tuple(getattr(machine, column) for column in Machine.__slots__)
