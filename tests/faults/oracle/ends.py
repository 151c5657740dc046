"""Judges of the end, of what may only go forward, of secrets, of other pools, and of the process itself."""

import base64
import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson

from tests.faults.gate.plan import Action, Fault, Kind
from tests.faults.oracle.facts import Facts, Json, Object, Terms, Violation, is_deleting, is_live, phase_of

LOOKED_AFTER = ("vmpools", "vmproviders", "deadletterqueues", "purgepolicies", "healthpolicies")
"""Kinds whose status says which generation was last acted upon."""
DOUBTS = re.compile(r"^(LeaseLost|Condemned|FrameEnded): |; (LeaseLost|Condemned|FrameEnded): ")
"""What a process may end with."""
REFUSALS = re.compile(r"^(Conflict|Forbidden|Invalid|ServerError|OutcomeUnknown|Unreachable|Throttled|KubeError): ")
"""What the API server may say to the start's own write, the install id: then nothing is begun."""
LAST_WORDS = ("operator_ends", "watchdog_verdict")
"""What a process that ends by itself says; the second alone where its loop does not answer any more."""
CRASHES = ("Traceback (most recent call last)", "exception was never retrieved", "was never awaited")
"""What the log shows of an error that nobody has caught, at the beginning of a line or in it."""
SILENCE_SECONDS = 20.0
"""A stream that says nothing for less than that raises no doubt."""


def comes_to_rest(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I7: everything is as wanted in the end and stays so, soon after the last fault."""
    evidence = facts.evidence
    if evidence.failure:
        yield Violation("I7", "scenario", evidence.failure, evidence.ended)
        return
    if evidence.converged_after > terms.converge_seconds:
        what = f"it took {evidence.converged_after:.1f} s after the last fault"
        yield Violation("I7", "scenario", what, evidence.ended)
    for one in facts.objects.values():
        if not one.exists or is_deleting(one.last) or one.plural not in LOOKED_AFTER:
            continue
        meta, status = one.last["metadata"], one.last.get("status") or {}
        if status.get("observedGeneration", -1) != meta.get("generation", 1):
            what = f"generation {meta.get('generation')}, observed {status.get('observedGeneration', -1)}"
            yield Violation("I7", f"{one.plural}/{one.name}", what, one.versions[-1].number)
        if one.plural == "vmpools" and one.name not in terms.unfilled and not one.last["spec"].get("paused"):
            yield from _full(facts, one)


def _full(facts: Facts, pool: Object) -> Iterator[Violation]:
    vms = [vm.last for vm in facts.of("pooledvms") if vm.exists and vm.last["spec"]["poolUid"] == pool.uid]
    ready = sum(is_live(vm) and phase_of(vm) == "Ready" for vm in vms)
    status = pool.last.get("status") or {}
    wanted = pool.last["spec"].get("replicas", status.get("desiredReplicas", 0))
    if ready != wanted or sum(map(is_live, vms)) != wanted:
        what = f"{ready} VMs are Ready, {sum(map(is_live, vms)) - ready} on their way, {wanted} wanted"
        yield Violation("I7", pool.name, what, pool.versions[-1].number)
    if status.get("readyReplicas", 0) != ready:
        what = f"it says that {status.get('readyReplicas', 0)} VMs are ready, and {ready} are"
        yield Violation("I7", pool.name, what, pool.versions[-1].number)
    conditions = {one["type"]: one["status"] for one in status.get("conditions") or ()}
    if conditions.get("Ready") != "True":
        yield Violation("I7", pool.name, "its condition Ready is not True", pool.versions[-1].number)


def only_forward(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I9: generations, attempts and retries never go back; a condition's time moves only with its status."""
    for one in facts.objects.values():
        subject = f"{one.plural}/{one.name}"
        for before, after in one.pairs():
            old, new = before.object, after.object
            for what in (*_backward(one.plural, old, new), *_untimely(old, new)):
                yield Violation("I9", subject, what, after.number)


def _backward(plural: str, old: Json, new: Json) -> Iterator[str]:
    was, now = old.get("status") or {}, new.get("status") or {}
    seen_before, seen = was.get("observedGeneration", -1), now.get("observedGeneration", -1)
    if seen < seen_before:
        yield f"observedGeneration went from {seen_before} to {seen}"
    if seen > new["metadata"].get("generation", seen):
        yield f"observedGeneration {seen} is of the future, the generation is {new['metadata']['generation']}"
    if plural != "pooledvms":
        return
    if was.get("machineId") and now.get("machineId") != was["machineId"]:
        yield f"its machine was {was['machineId']} and became {now.get('machineId')}"
    if old["spec"].get("retryCount") != new["spec"].get("retryCount"):
        yield "its retryCount changed"
    attempts = int(was.get("attempt") or 1), int(now.get("attempt") or 1)
    if attempts[1] < attempts[0]:
        yield f"its attempt went from {attempts[0]} to {attempts[1]}"
    if attempts[1] > attempts[0]:
        return
    tried = _retries(now)
    for name, count in _retries(was).items():
        if tried.get(name, 0) < count:
            yield f"step {name} had {count} retries and has {tried.get(name, 0)}"


def _retries(status: Json) -> dict[str, int]:
    return {step["name"]: int(step.get("retries") or 0) for step in status.get("steps") or ()}


def _untimely(old: Json, new: Json) -> Iterator[str]:
    was = {one["type"]: one for one in (old.get("status") or {}).get("conditions") or ()}
    for now in (new.get("status") or {}).get("conditions") or ():
        before = was.get(now["type"])
        if before is None:
            continue
        moved = before["lastTransitionTime"] != now["lastTransitionTime"]
        if moved and before["status"] == now["status"]:
            yield f"lastTransitionTime of {now['type']} moved, and its status is still {now['status']}"
        if now["lastTransitionTime"] < before["lastTransitionTime"]:
            yield f"lastTransitionTime of {now['type']} went back"


def no_secret(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I10: what was planted as a secret stands in no log, no version of any object and no request's body."""
    evidence = facts.evidence
    for number, canary in enumerate(evidence.canaries):
        spellings = (canary, base64.b64encode(canary.encode()).decode())
        subject = f"canary {number}"
        if _in(evidence.log, spellings):
            yield Violation("I10", subject, "it stands in the log")
        for version in facts.history:
            if _in(orjson.dumps(version.object).decode(), spellings):
                yield Violation("I10", subject, f"it stands in {version.plural}/{version.name}", version.number)
        for entry in facts.trace:
            if _in(json.dumps(entry.body), spellings):
                yield Violation("I10", subject, f"it stands in the body of {entry.signature}", entry.at)


def _in(text: str, words: tuple[str, ...]) -> bool:
    return any(word in text for word in words)


def bulkhead(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I11: once it is full, the control pool stays full and Ready, whatever becomes of the others."""
    if not terms.control_pool:
        return
    pools = {pool.uid for pool in facts.of("vmpools") if pool.name == terms.control_pool}
    if not pools:
        yield Violation("I11", terms.control_pool, "there is no such pool")
    vms: dict[str, Json] = {}
    full = False
    wanted, ready_says = 0, ""
    for version in facts.history:
        if version.uid in pools:
            wanted = int(version.object["spec"].get("replicas") or 0)
            conditions: list[Mapping[str, Any]] = (version.object.get("status") or {}).get("conditions") or []
            ready_says = next((one["status"] for one in conditions if one["type"] == "Ready"), "")
        elif version.plural == "pooledvms" and version.object["spec"]["poolUid"] in pools:
            vms.pop(version.uid, None)
            if version.event != "DELETED":
                vms[version.uid] = version.object
        else:
            continue
        ready = sum(phase_of(vm) == "Ready" and is_live(vm) for vm in vms.values())
        if full and (ready < wanted or ready_says != "True"):
            what = f"{ready} of {wanted} VMs are Ready, its condition Ready is {ready_says or 'not there'}"
            yield Violation("I11", terms.control_pool, what, version.number)
        full = full or (ready >= wanted > 0 and ready_says == "True")
    if pools and not full:
        yield Violation("I11", terms.control_pool, "it was never full")


# --- the process ------------------------------------------------------------------------------------------------


def lives_explained(facts: Facts, terms: Terms) -> Iterator[Violation]:
    """I12: a process ends when the plan kills it, or on a doubt that the plan explains; never otherwise."""
    evidence = facts.evidence
    kills = sum(entry.fault.startswith(Kind.KILL) for entry in facts.trace)
    ends = list(_told(evidence.log, "operator_ends"))
    verdicts = list(_told(evidence.log, "watchdog_verdict"))
    allowed = terms.exits + sum(map(may_raise_doubt, evidence.plan.faults))
    at_start = any("configmaps" in fault.trigger.signature for fault in evidence.plan.faults)
    for line in ends:
        told = str(line.get("error") or "")
        if not DOUBTS.search(told) and not (at_start and REFUSALS.match(told)):
            yield Violation("I12", "process", f"it ended with {line.get('error')}")
    doubts = _lives_in_doubt(evidence.log)
    if doubts > allowed:
        told = "; ".join(str(line.get("error") or line.get("why")) for line in (ends or verdicts))
        yield Violation("I12", "process", f"it ended {doubts} times on doubt, the plan explains {allowed}: {told}")
    if not 1 + kills <= evidence.lives <= 1 + kills + doubts:
        what = f"it had {evidence.lives} lives, with {kills} kills and {doubts} doubts"
        yield Violation("I12", "process", what)
    for text in evidence.log.splitlines():
        if not text.startswith("{") and any(word in text for word in CRASHES):
            yield Violation("I12", "process", f"nobody caught: {text[:200]}")


def _lives_in_doubt(log: str) -> int:
    """How many lives ended by themselves.

    A life may tell of it twice: its end may be held up too, and is then made from outside its loop.
    """
    count, counted = 0, False
    for line in log.splitlines():
        if '"operator_starts"' in line:
            counted = False
        elif not counted and any(f'"{event}"' in line for event in LAST_WORDS):
            count, counted = count + 1, True
    return count


def _told(log: str, event: str) -> Iterator[Mapping[str, Any]]:
    """The lines of a log that tell of an event."""
    for line in log.splitlines():
        if f'"{event}"' not in line:
            continue
        try:
            found = orjson.loads(line)
        except orjson.JSONDecodeError:
            continue
        if isinstance(found, dict) and event in found.values():
            yield found


def may_raise_doubt(fault: Fault) -> bool:
    """Whether a process may rightly end because of a fault: at most once for each.

    An ERROR that is no 410 ends kopf's watch; a stream that is silent for long is doubted; the lease may be lost when
    its calls are touched; kopf gives up when its own list or its login is refused; without an install id, which is read
    or made at the start, nothing is begun.
    """
    action, signature = fault.action, fault.trigger.signature
    if action.kind == Kind.ERROR:
        return action.status != 410
    if _is_silent(action):
        return True
    words = signature.split()
    if "leases" in signature or "configmaps" in signature:
        return action.kind != Kind.DUPLICATE
    refused = action.kind in {Kind.ANSWER, Kind.RESET, Kind.HANG, Kind.TRUNCATE}
    return refused and bool({"list", "watch", "get"} & set(words[:2]))


def _is_silent(action: Action) -> bool:
    long = (action.seconds or 0.0) >= SILENCE_SECONDS
    return action.kind in {Kind.FREEZE, Kind.FREEZE_EVENTS, Kind.HANG, Kind.DELAY} and long
