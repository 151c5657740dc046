"""Rate limits: bounded, exact within a period, harmless to the slow and steady, and by the client that was proven."""

import ipaddress
from collections import defaultdict

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vmpool.gateway.limits import Limits, client_address, networks

PERIOD = 60.0
pauses = st.lists(st.floats(0, 90), min_size=1, max_size=60)


def limits(address: int = 3, creation: int = 2, entries: int = 100) -> Limits:
    return Limits({"address": address, "token": 5, "creation": creation, "deletion": 4}, PERIOD, entries)


@given(pauses, st.integers(1, 10))
def test_a_period_that_begins_with_a_request_lets_in_exactly_the_limit(pauses: list[float], limit: int) -> None:
    held = limits(address=limit)
    now, began, let_in = 0.0, None, 0
    for pause in pauses:
        now += pause
        if began is None or now - began >= PERIOD:
            began, let_in = now, 0
        verdict = held.count(["address"], "one", now)
        assert verdict.allowed is (let_in < limit)
        let_in += verdict.allowed
        assert verdict.remaining == limit - let_in
        assert verdict.reset_seconds == pytest.approx(began + PERIOD - now)
        assert 0 <= verdict.reset_seconds <= PERIOD


@given(st.integers(1, 20), st.integers(10, 200), st.floats(1.0, 3.0))
def test_a_steady_client_below_the_limit_is_never_refused(limit: int, requests: int, slack: float) -> None:
    held = limits(address=limit)
    step = PERIOD / limit * slack * 1.000001
    assert all(held.count(["address"], "steady", step * number).allowed for number in range(requests))


def test_knocking_on_does_not_put_off_the_end() -> None:
    held = limits(address=1)
    assert held.count(["address"], "one", 0).allowed
    assert not any(held.count(["address"], "one", second).allowed for second in range(1, 60))
    assert held.count(["address"], "one", 60).allowed


def test_what_one_limit_refuses_is_counted_by_none() -> None:
    held = limits(address=10, creation=1)
    assert held.count(["address", "creation"], "one", 0).allowed
    for _ in range(5):
        verdict = held.count(["address", "creation"], "one", 1)
        assert (verdict.allowed, verdict.kind, verdict.limit, verdict.remaining) == (False, "creation", 1, 0)
    assert held.count(["address"], "one", 2).remaining == 8


def test_clients_do_not_share() -> None:
    held = limits(address=1)
    assert held.count(["address"], "one", 0).allowed
    assert held.count(["address"], "other", 0).allowed
    assert not held.count(["address"], "one", 0).allowed


@given(st.lists(st.tuples(st.integers(0, 30), st.floats(0, 5)), max_size=80), st.integers(2, 10))
def test_memory_is_bounded_and_whoever_was_seen_last_is_kept(steps: list[tuple[int, float]], entries: int) -> None:
    held = limits(address=5, entries=entries)
    now, let_in = 0.0, defaultdict(int)
    recent: list[int] = []
    for client, pause in steps:
        now += pause
        recent = [*(one for one in recent if one != client), client][-entries:]
        let_in[client] += held.count(["address"], str(client), now).allowed
        assert len(held) <= entries
    if now < PERIOD and steps and all(let_in[client] <= 5 for client in recent):
        last = recent[-1]
        again = held.count(["address"], str(last), now)
        assert again.allowed or again.remaining == 0


def test_entries_above_the_bound_are_forgotten_oldest_first() -> None:
    held = limits(address=1, entries=2)
    for client in ("a", "b", "a", "c"):
        held.count(["address"], client, 0)
    assert not held.count(["address"], "a", 0).allowed, "seen after b, so still known"
    assert held.count(["address"], "b", 0).allowed, "forgotten"


def test_networks_are_read_and_mistakes_named() -> None:
    assert networks(" 10.0.0.0/8, fd00::/8 ,192.0.2.1,") == (
        ipaddress.ip_network("10.0.0.0/8"),
        ipaddress.ip_network("fd00::/8"),
        ipaddress.ip_network("192.0.2.1/32"),
    )
    assert networks("") == ()
    with pytest.raises(ValueError, match="trusted_proxies: 'no network'"):
        networks("10.0.0.0/8,no network")


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("10.0.0.1", "203.0.113.9", "203.0.113.9"),
        ("10.0.0.1", "198.51.100.7, 203.0.113.9", "203.0.113.9"),  # the first was made up by the client
        ("10.0.0.1", "203.0.113.9, 10.0.0.2", "203.0.113.9"),  # two proxies of ours
        ("203.0.113.9", "198.51.100.7", "203.0.113.9"),  # no proxy of ours says so
        ("10.0.0.1", "", "10.0.0.1"),
        ("10.0.0.1", "unknown", "10.0.0.1"),
        ("10.0.0.1", "203.0.113.9, evil\n", "10.0.0.1"),
        ("10.0.0.1", "10.0.0.3", "10.0.0.3"),
        ("::ffff:10.0.0.1", "2001:db8::1", "2001:db8::1"),
        ("", "203.0.113.9", ""),
    ],
)
def test_only_trusted_proxies_are_believed(peer: str, forwarded: str, client: str) -> None:
    assert client_address(peer, forwarded, networks("10.0.0.0/8")) == client


@given(st.text(), st.text())
def test_no_header_breaks_it(peer: str, forwarded: str) -> None:
    found = client_address(peer, forwarded, networks("0.0.0.0/0,::/0"))
    assert found == peer or ipaddress.ip_address(found)
