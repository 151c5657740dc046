"""Decide what the queue of VMClaims does next: who is handed VMs, who waits and why, who has ended.

Level-based like every plan. A claim with an effect in flight is left alone; what it is about to get stays counted.
"""

import heapq
from collections import Counter
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from functools import partial

from vmpool.api.claim import EXACT_POSITIONS
from vmpool.plan import claimstatus as status_of
from vmpool.plan.demand import Want, claim_size, filled, spread, stalled, waits, wants
from vmpool.plan.follow import DEADLINE_EXCEEDED, follow, wakes_of
from vmpool.plan.judge import Judgement, judge
from vmpool.plan.lifecycle import ClaimPhase
from vmpool.plan.queue import (
    Asker,
    Bind,
    Check,
    ClaimAction,
    QueueSnapshot,
    Review,
    SetStatus,
    Why,
    asker,
)
from vmpool.plan.snapshot import BEGINNING, VM, PoolFacts, VMClaim

UNTOLD = Why("Retrying", "the last try came to nothing; it is tried again by itself")
NOT_BESIDE = Why("NotItsTurn", "waits until another claim of several VMs of the same pool has got its own")

Aliases = Mapping[tuple[str, str], tuple[PoolFacts, ...]]


@dataclass(frozen=True, slots=True)
class QueuePlan:
    """What to do now, what the claims still lack, and when to look again."""

    actions: tuple[ClaimAction, ...] = ()
    demand: Mapping[str, int] = field(default_factory=dict)
    """How many VMs claims that are not Bound lack, by the pool's uid; those that are being bound included."""
    begun: Mapping[str, Mapping[int, str]] = field(default_factory=dict)
    """Of those being bound: the pool's uid by slot, by the claim's uid."""
    waiting: Mapping[str, int] = field(default_factory=dict)
    """How many claims wait, by the pool's uid; a claim that waits for several pools counts at each."""
    recovered: tuple[str, ...] = ()
    """uids of claims that can be served although a check once found that they cannot: it has to be made anew."""
    settled: Mapping[str, datetime | None] = field(default_factory=dict)
    """Claims that wait no more and for which there is nothing to do before that time, or news of them; by uid."""
    wake_at: datetime | None = None


@dataclass(frozen=True, slots=True)
class Waiting:
    """A claim that could be served, and what it still lacks."""

    claim: VMClaim
    who: Asker
    wants: tuple[Want, ...]
    begun: bool = False
    """It has some of its VMs already: it takes whatever there is, and comes first."""
    flying: bool = False
    """An effect on it is in flight: it keeps its place and what waits for it, and nothing else is begun."""
    order: int = 0
    """Tells claims of the same second apart."""

    @property
    def several(self) -> bool:
        """Whether it must not be begun beside another one."""
        return claim_size(self.claim) > 1

    @property
    def pools(self) -> dict[str, PoolFacts]:
        """The pools that may serve it, by uid."""
        return {pool.uid: pool for want in self.wants for pool in want.pools}


def plan_claims(seen: QueueSnapshot, now: datetime) -> QueuePlan:
    """Return what brings the queue forward, within the room for effects; binding comes first."""
    work = _Work(seen, now)
    aliases = seen.aliases()
    for claim in seen.claims:
        held = seen.held.get(claim.uid, ())
        if claim.uid in seen.busy:
            if claim.phase == ClaimPhase.PENDING:
                work.flying(claim, held, aliases)
        elif claim.phase == ClaimPhase.PENDING and not claim.deleting:
            _pending(work, claim, held, aliases)
        else:
            note = seen.note(claim)
            action = follow(claim, held, seen.pools, now, note)
            work.add(action)
            times = [moment for moment in wakes_of(claim, note) if moment > now]
            work.wakes += times
            if action is None:
                work.settled[claim.uid] = min(times, default=None)
    _serve(work)
    return QueuePlan(
        actions=tuple(work.actions()),
        demand=work.demand(),
        begun=work.begun,
        waiting=work.waiting_at,
        recovered=tuple(work.recovered),
        settled=work.settled,
        wake_at=min((moment for moment in work.wakes if moment > now), default=None),
    )


class _Work:
    """A plan in the making."""

    def __init__(self, seen: QueueSnapshot, now: datetime) -> None:
        self.seen = seen
        self.now = now
        self._stuck = {pool.uid for pool in seen.pools.values() if pool.spec.paused or stalled(pool)}
        self._judged: dict[Hashable, Judgement] = {}
        self._words: dict[Hashable, Why] = {}
        self.binds: list[ClaimAction] = []
        self.others: list[ClaimAction] = []
        self.writes: list[ClaimAction] = []
        self.line: list[Waiting] = []
        self.lacks: list[Want] = []
        self.begun: dict[str, dict[int, str]] = {}
        self.together: set[str] = set()
        """uids of pools in which a claim of several VMs is in binding."""
        self.waiting_at: Counter[str] = Counter()
        self.recovered: list[str] = []
        self.settled: dict[str, datetime | None] = {}
        self.wakes: list[datetime] = []

    def actions(self) -> Iterator[ClaimAction]:
        """Yield what there is room for: what hands out VMs, what ends or moves something, then what only tells."""
        every = (*self.binds, *self.others, *self.writes)
        return iter(every[: max(0, self.seen.room)])

    def demand(self) -> dict[str, int]:
        """What is lacked by pool: what is in binding where it is bound, the rest as it is spread."""
        made = Counter(spread(self.lacks))
        for places in self.begun.values():
            made.update(places.values())
        return dict(made)

    def add(self, action: ClaimAction | None) -> None:
        """Add what neither hands out VMs nor only tells something."""
        if action is not None:
            self.others.append(action)

    def lack(self, lacking: Iterable[Want], besides: Collection[int] = ()) -> None:
        """Count what is lacked, but for some slots."""
        if not besides:
            self.lacks += lacking
            return
        for want in lacking:
            slots = tuple(slot for slot in want.slots if slot not in besides)
            if slots:
                self.lacks.append(Want(want.request, slots, want.pools))

    def flying(self, claim: VMClaim, held: Sequence[VM], aliases: Aliases) -> None:
        """Count what a claim with an effect in flight still lacks."""
        have = filled(claim, held)
        places = {slot: uid for slot, uid in self.seen.begun.get(claim.uid, {}).items() if slot not in have}
        if places:
            self.begun[claim.uid] = places
            if claim_size(claim) > 1:
                self.together |= set(places.values())
        if self.seen.trust is None:
            self.unjudged(claim, held, aliases)
            return
        who = asker(claim, self.seen.trust, self.seen.home)
        judged = self.judge(claim, who, held, aliases)
        valid = judged.failure is None and not judged.unanswered
        note = self.seen.note(claim)
        rests = note.retry_at is not None and self.now < note.retry_at
        if valid and judged.wants and not places and not claim.deleting and not rests:
            self.line.append(Waiting(claim, who, judged.wants, bool(have), flying=True, order=note.order))
        elif valid or waits(claim) or have:
            self.lack(judged.wants, places)

    def judge(self, claim: VMClaim, who: Asker, held: Sequence[VM], aliases: Aliases) -> Judgement:
        """Judge a claim; those that ask for the same as another one, and have nothing yet, share its judgement."""
        if held:
            return judge(claim, who, self.seen, aliases, held)
        spec = claim.spec
        asked = tuple((one.namespace, one.pool, one.alias, one.count) for one in spec.requests)
        verdicts = tuple(self.seen.note(claim).verdicts.items())
        key = (claim.namespace, who, spec.lifetime, asked, verdicts)
        judged = self._judged.get(key)
        if judged is None:
            judged = self._judged[key] = judge(claim, who, self.seen, aliases, held)
        return judged

    def stuck(self, want: Want) -> bool:
        """Whether no pool makes or hands out anything for it until a human has done something."""
        return all(pool.uid in self._stuck for pool in want.pools)

    def why(self, lacking: Sequence[Want], short: Sequence[Want], place: int) -> Why:
        """Say why a claim waits: behind the first ones nothing that comes and goes with every VM.

        Or one VM that is given back would have every claim that waits written anew.
        """
        near = place <= EXACT_POSITIONS
        if near and not short:
            return NOT_BESIDE
        about = next(filter(self.stuck, lacking), (short if near else lacking)[0])
        key = (near, about.request.alias, about.request.count, *(pool.uid for pool in about.pools))
        # As many words as there are kinds of requests, not as there are claims.
        word = self._words.get(key)
        if word is None:
            word = self._words[key] = status_of.short_of(about, near=near)
        return word

    def place(self, lacking: Iterable[Want]) -> int:
        """Count a claim that waits; return its place, from 1: the last among those of its pools."""
        pools = tuple({pool.uid for want in lacking for pool in want.pools})
        place = max((self.waiting_at[uid] for uid in pools), default=0) + 1
        for uid in pools:
            self.waiting_at[uid] += 1
        return place

    def unjudged(self, claim: VMClaim, held: Sequence[VM], aliases: Aliases) -> None:
        """Count a claim that cannot be judged now as what is written on it."""
        if waits(claim):
            self.lack(wants(claim, held, self.seen.pools, aliases), self.begun.get(claim.uid, ()))


def _pending(work: _Work, claim: VMClaim, held: Sequence[VM], aliases: Aliases) -> None:
    seen, now, note = work.seen, work.now, work.seen.note(claim)
    have = filled(claim, held)
    if len(have) == claim_size(claim):
        work.add(SetStatus(claim, status_of.bound_status(claim, have, now)))
        return
    deadline: timedelta | None = claim.spec.deadline
    if deadline is not None:
        if now >= claim.created_at + deadline:
            late = f"it did not get its VMs within {deadline.total_seconds():g} s (spec.deadline)"
            _fail(work, claim, Why(DEADLINE_EXCEEDED, f"{late}: make another claim, or give it more time"))
            return
        work.wakes.append(claim.created_at + deadline)
    if seen.trust is None:
        work.unjudged(claim, held, aliases)
        return
    who = asker(claim, seen.trust, seen.home)
    judged = work.judge(claim, who, held, aliases)
    valid = judged.failure is None and not judged.unanswered
    if judged.failure is not None and note.checked:
        _fail(work, claim, judged.failure)
        return
    if valid and note.checked:
        work.recovered.append(claim.uid)
    one = Waiting(claim, who, judged.wants, bool(have), order=note.order)
    if note.retry_at is not None and now < note.retry_at:
        work.wakes.append(note.retry_at)
        if valid or waits(claim) or have:
            work.lack(judged.wants)
        if have and one.several:
            work.together |= set(one.pools)
        why = note.trouble or UNTOLD
        _tell(work, claim, lambda _: why, judged.wants)
    elif valid:
        work.line.append(one)
    else:
        if waits(claim) or have:
            work.lack(judged.wants)
        failing = judged.failure is not None
        work.add(Check(claim, who) if failing else Review(claim, who, judged.unanswered))


def _fail(work: _Work, claim: VMClaim, why: Why) -> None:
    """Give a claim up by one word, which is refused if another leader has made it Bound; then what it holds ends."""
    work.add(SetStatus(claim, status_of.failed_status(claim, why, work.now)))


# --- serving -------------------------------------------------------------------------------------------


def turns(line: Iterable[Waiting], served: Mapping[str, datetime]) -> Iterator[Waiting]:
    """Yield the claims in the order of the queue.

    What was begun first; then by priority; within a priority the namespace that was served longest ago, and of its
    claims the oldest. Every turn counts as served.
    """
    last: dict[str, tuple[int, float]] = {}
    by_priority: dict[tuple[bool, int], dict[str, list[Waiting]]] = {}
    for one in line:
        group = by_priority.setdefault((not one.begun, -one.claim.spec.priority), {})
        group.setdefault(one.claim.namespace, []).append(one)
    turn = 0
    for key in sorted(by_priority):
        group = by_priority[key]
        for queue in group.values():
            queue.sort(key=_age, reverse=True)
        heap = []
        for namespace, queue in group.items():
            since = last.get(namespace, (0, served.get(namespace, BEGINNING).timestamp()))
            heap.append((since, _age(queue[-1]), namespace))
        heapq.heapify(heap)
        while heap:
            _, _, namespace = heapq.heappop(heap)
            queue = group[namespace]
            turn += 1
            last[namespace] = (1, float(turn))
            yield queue.pop()
            if queue:
                heapq.heappush(heap, (last[namespace], _age(queue[-1]), namespace))


def _age(one: Waiting) -> tuple[float, int, str]:
    return (one.claim.created_at.timestamp(), one.order, one.claim.uid)


def _serve(work: _Work) -> None:
    """Go along the queue, hand out what is ready, and keep back what the head at each pool still lacks."""
    seen = work.seen
    left = {
        pool.uid: seen.ready.get(pool.uid, 0) if not (pool.spec.paused or pool.deleting) else 0
        for pool in seen.pools.values()
    }
    headed: set[str] = set()
    for one in turns(work.line, seen.served):
        places = _places(one, left)
        slots = {slot for slot, _ in places}
        short = [want for want in one.wants if not slots.issuperset(want.slots)]
        beside = bool(work.together) and one.several and not one.begun and not work.together.isdisjoint(one.pools)
        served = not one.flying and ((not short and not beside) or (one.begun and bool(places)))
        held_up = {pool.uid for want in short for pool in want.pools}
        if beside:
            held_up |= work.together & set(one.pools)
        # Of those that wait for the same pool only the first keeps VMs back, and none that waits for a human.
        heads = headed.isdisjoint(held_up) and not any(map(work.stuck, short))
        if served or heads:
            for _, pool in places:
                left[pool.uid] -= 1
        if heads:
            headed |= held_up
        if served:
            _hand_out(work, one, places)
            continue
        work.lack(one.wants)
        if one.flying:
            work.place(one.wants)
        else:
            _tell(work, one.claim, partial(work.why, one.wants, short), one.wants)


def _hand_out(work: _Work, one: Waiting, places: Sequence[tuple[int, PoolFacts]]) -> None:
    if one.several:
        work.together |= set(one.pools)
    if len(work.binds) >= work.seen.room:
        # It is served as soon as an effect ends: not worth a word.
        work.lack(one.wants)
        return
    work.binds.append(Bind(one.claim, tuple(places), one.who))
    work.begun[one.claim.uid] = {slot: pool.uid for slot, pool in places}
    work.lack(one.wants, work.begun[one.claim.uid])


def _places(one: Waiting, left: Mapping[str, int]) -> list[tuple[int, PoolFacts]]:
    """Choose a pool with something ready for as many slots as possible; of an alias the one with most."""
    used: Counter[str] = Counter()
    places: list[tuple[int, PoolFacts]] = []
    wants = one.wants if len(one.wants) == 1 else sorted(one.wants, key=lambda want: len(want.pools))
    for want in wants:
        for slot in want.slots:
            pool = max(want.pools, key=lambda pool: (left.get(pool.uid, 0) - used[pool.uid], pool.name))
            if left.get(pool.uid, 0) <= used[pool.uid]:
                break
            used[pool.uid] += 1
            places.append((slot, pool))
    return places


def _tell(work: _Work, claim: VMClaim, why: Callable[[int], Why], lacking: Iterable[Want]) -> None:
    """Write down that a claim waits, where it stands among those that wait for the same pools, and why."""
    place = work.place(lacking)
    reason = why(place)
    if status_of.tells(claim, reason, place):
        return
    status = status_of.waiting_status(claim, reason, place, work.now)
    written = work.seen.note(claim).written_at
    if written is not None and status_of.may_wait(claim.status, status) and work.now < written + work.seen.pause:
        work.wakes.append(written + work.seen.pause)
        return
    work.writes.append(SetStatus(claim, status))
