"""What was last seen of each VM's machine. Memory only: after a restart everything is looked at again."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from datetime import datetime, timedelta

from vmpool.api import keys
from vmpool.api.vm import MAX_ADDRESSES
from vmpool.plan.snapshot import NOTHING_SEEN, VM, Failed, Sight
from vmpool.providers.base import Machine, MachineState

TAG_PAUSE = timedelta(minutes=1)
TAG_PAUSE_LONGEST = timedelta(hours=6)
"""Between two tries to put a claim's tag on a machine: some providers never show one."""


class Sights(Mapping[str, Sight]):
    """Sights by PooledVM uid. Bounded by the number of PooledVMs: ``keep`` drops those of objects that are gone."""

    def __init__(self) -> None:
        self._by_uid: dict[str, Sight] = {}

    def __getitem__(self, uid: str) -> Sight:
        return self._by_uid[uid]

    def __iter__(self) -> Iterator[str]:
        return iter(self._by_uid)

    def __len__(self) -> int:
        return len(self._by_uid)

    def of(self, uid: str) -> Sight:
        """Return the sight of this uid, empty when nothing was seen."""
        return self._by_uid.get(uid, NOTHING_SEEN)

    def _change(self, uid: str, **changes: object) -> None:
        self._by_uid[uid] = replace(self.of(uid), **changes)  # type: ignore[arg-type]

    def saw(self, uid: str, machine: Machine, now: datetime) -> None:
        """The provider showed the machine: no doubt about its existence is left."""
        self._change(
            uid,
            looked_at=now,
            state=str(machine.state),
            addresses=machine.addresses[:MAX_ADDRESSES],
            message=machine.message,
            misses=0,
            missed_at=None,
            unlisted=False,
            namesake=False,
            claim_tag=machine.tags.get(keys.TAG_CLAIM, ""),
        )

    def made(self, uid: str, machine: Machine, now: datetime) -> None:
        """The provider has made the machine: its id is kept until it is written."""
        self.saw(uid, machine, now)
        self._change(uid, machine_id=machine.id)

    def tagging(self, uid: str, now: datetime) -> None:
        """The claim's tag is about to be put on the machine: whatever comes of it, the next try waits, ever longer."""
        tries = self.of(uid).tag_tries
        self._change(uid, tag_at=now + min(TAG_PAUSE * 2 ** min(tries, 16), TAG_PAUSE_LONGEST), tag_tries=tries + 1)

    def missed(self, uid: str, now: datetime) -> None:
        """The provider did not find it by id, or by token where no id is known."""
        self._change(uid, misses=self.of(uid).misses + 1, missed_at=now)

    def deleting(self, uid: str, now: datetime) -> None:
        """The provider has begun to delete it."""
        before = self.of(uid)
        self._change(
            uid,
            looked_at=now,
            state=str(MachineState.DELETING),
            misses=0,
            missed_at=None,
            deletion_asked_at=before.deletion_asked_at or now,
        )

    def probed(self, uid: str, *, ok: bool, now: datetime) -> None:
        """A TCP probe was answered or not."""
        failures = 0 if ok else self.of(uid).probe_failures + 1
        self._change(uid, probed_at=now, probe_ok=ok, probe_failures=failures)

    def failed(self, uid: str, failure: Failed) -> None:
        """A step will not be tried again."""
        self._change(uid, failure=failure)

    def listed(
        self, vms: Iterable[VM], machines: Mapping[str, Machine], tokens: Mapping[str, Machine], began: datetime
    ) -> bool:
        """Apply a complete listing, by id and by token; say whether it told anything that a plan may wait for.

        Only VMs that existed when it began may be missed by it.
        """
        news = False
        for vm in vms:
            known = vm.machine_id or vm.adopt
            # Once its id is written down no other machine stands for it, whatever token that one has: a second one, of
            # a cloud that makes one for each try, is not what somebody was given.
            machine = machines.get(known) if known else tokens.get(vm.uid)
            namesake = bool(known) and vm.uid in tokens
            sight = self.of(vm.uid)
            if machine is None:
                if vm.created_at < began and (vm.machine_id or sight.misses):
                    # Missing again is news as well: when a listing began is part of the proof.
                    news = True
                    if (sight.unlisted, sight.namesake) != (True, namesake):
                        self._change(vm.uid, unlisted=True, namesake=namesake)
            elif sight.looked_at is None or sight.looked_at < began:
                news = self._see_listed(vm.uid, sight, machine, began) or news
        return news

    def _see_listed(self, uid: str, sight: Sight, machine: Machine, began: datetime) -> bool:
        # An unchanged idle machine keeps its sight: ten thousand of them are listed all day long.
        known = (sight.state, sight.addresses, sight.claim_tag) == (
            machine.state,
            machine.addresses[:MAX_ADDRESSES],
            machine.tags.get(keys.TAG_CLAIM, ""),
        )
        if known and not sight.misses and not sight.unlisted:
            return False
        self.saw(uid, machine, began)
        return True

    def keep(self, uids: Iterable[str]) -> None:
        """Drop what belongs to no object any more."""
        alive = set(uids)
        for uid in [uid for uid in self._by_uid if uid not in alive]:
            del self._by_uid[uid]

    def begin_anew(self, uid: str) -> None:
        """A new attempt begins: no verdict stands any more, and everything is to be looked at again."""
        self._by_uid.pop(uid, None)

    def drop(self, uid: str) -> None:
        """Forget one: its object is gone."""
        self._by_uid.pop(uid, None)
