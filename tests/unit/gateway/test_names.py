"""Which pools a name means: its owner's choice, aliases, namesakes, and what a caller may claim from."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.gateway.frames import Keeper, gateway_of
from tests.unit.gateway.things import put_pool, stored
from tests.waiting import until
from vmpool.engine.facts import pool_facts
from vmpool.gateway.answers import Refusal, unavailable
from vmpool.gateway.auth.caller import ANONYMOUS, Caller
from vmpool.gateway.context import Gateway
from vmpool.gateway.names import REVIEWS_AT_ONCE, meant
from vmpool.plan import names
from vmpool.plan.names import candidates, hands_out, in_turn, qualified_name, shown_names, split
from vmpool.plan.snapshot import PoolFacts

SPEC = {"template": {"image": "one"}, "providers": [{"name": "a"}]}


def pool(name: str, namespace: str = "ci", year: int = 2026, *, deleting: bool = False, **spec: Any) -> PoolFacts:
    meta: dict[str, Any] = {"creationTimestamp": f"{year}-01-01T00:00:00Z"}
    if deleting:
        meta["deletionTimestamp"] = "2027-01-01T00:00:00Z"
    return pool_facts(
        stored({"metadata": {"name": name}, "spec": {**SPEC, **spec}}, f"{namespace}/{name}", namespace, **meta)
    )


def weighted(name: str, weight: int | None) -> PoolFacts:
    return pool(name, aliases=["any"], **({} if weight is None else {"claims": {"weight": weight}}))


def uids(pools: Sequence[PoolFacts]) -> list[str]:
    return [one.uid for one in pools]


def test_a_pool_is_found_by_its_name_its_qualified_name_and_its_aliases() -> None:
    pools = [pool("web", aliases=["any", "old"]), pool("db")]
    for name in ("web", "ci_web", "any", "old"):
        assert uids(candidates(pools, name)) == ["ci/web"], name
    assert candidates(pools, "nowhere") == []


def test_a_rest_name_takes_the_place_of_the_name() -> None:
    pools = [pool("web", restName="debian-12-x86_64")]
    assert uids(candidates(pools, "debian-12-x86_64")) == ["ci/web"]
    assert candidates(pools, "web") == []
    assert uids(candidates(pools, "ci_web")) == ["ci/web"]


def test_namesakes_are_all_meant_oldest_first_and_those_being_deleted_last() -> None:
    pools = [
        pool("web", "b", 2025),
        pool("web", "c", 2024),
        pool("web", "a", 2026),
        pool("web", "d", 2020, deleting=True),
    ]
    assert uids(candidates(pools, "web")) == ["c/web", "b/web", "a/web", "d/web"]


def test_pools_of_one_age_are_in_alphabetical_order() -> None:
    assert uids(candidates([pool("web", "b"), pool("web", "a")], "web")) == ["a/web", "b/web"]


def test_nobodys_choice_of_a_name_hides_a_qualified_name() -> None:
    pools = [pool("web"), pool("evil", "evil", 2000, restName="ci_web", aliases=["ci_web"])]
    assert uids(candidates(pools, "ci_web")) == ["ci/web"]
    assert shown_names(pools)["evil/evil"] == "evil_evil"


def test_a_pool_that_is_called_by_a_name_and_has_it_as_an_alias_counts_once() -> None:
    assert uids(candidates([pool("web", aliases=["web"])], "web")) == ["ci/web"]


@pytest.mark.parametrize("word", sorted(names.RESERVED))
def test_words_of_the_answers_are_no_names(word: str) -> None:
    pools = [pool(word.replace("_", "-"), restName=word, aliases=[word])]
    assert candidates(pools, word) == []
    assert shown_names(pools) == {pools[0].uid: qualified_name(pools[0])}


def test_the_younger_of_two_namesakes_is_shown_by_its_qualified_name() -> None:
    pools = [pool("web", "young", 2026), pool("web", "old", 2025), pool("db", "old")]
    assert shown_names(pools) == {"young/web": "young_web", "old/web": "web", "old/db": "db"}


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["web", "db", "a_web", "ok"])), unique=True))
def test_shown_names_are_unique_and_lead_back(made: list[tuple[str, str]]) -> None:
    pools = [pool(f"p{number}", namespace, restName=name) for number, (namespace, name) in enumerate(made)]
    shown = shown_names(pools)
    assert len(set(shown.values())) == len(pools)
    for one in pools:
        assert candidates(pools, shown[one.uid])[0].uid == one.uid


def test_paused_and_deleted_pools_are_known_but_hand_out_nothing() -> None:
    assert hands_out(pool("web"))
    for one in (pool("web", paused=True), pool("web", deleting=True)):
        assert not hands_out(one)
        assert candidates([one], "web") == [one]


@given(st.lists(st.integers(0, 5), min_size=1, max_size=6), st.floats(0, 1, exclude_max=True))
def test_an_order_has_every_pool_once_and_a_first_with_a_share(weights: list[int], roll: float) -> None:
    pools = [weighted(f"p{number}", weight) for number, weight in enumerate(weights)]
    order = in_turn(pools, roll)
    assert sorted(uids(order)) == sorted(uids(pools))
    if sum(weights) and len(weights) > 1:
        assert order[0].spec.claims.weight


def test_weights_are_shares_of_the_rolls() -> None:
    rolls = [number / 400 for number in range(400)]
    heavy = split([weighted("a", 3), weighted("b", 1), weighted("c", 0)], rolls)
    assert heavy == {"ci/a": 300, "ci/b": 100}


@pytest.mark.parametrize("weights", [(3, None), (None, None), (0, 0)])
def test_all_are_equal_unless_every_one_has_a_weight(weights: tuple[int | None, ...]) -> None:
    rolls = [number / 100 for number in range(100)]
    pools = [weighted(f"p{number}", weight) for number, weight in enumerate(weights)]
    assert Counter(in_turn(pools, roll)[0].uid for roll in rolls) == {"ci/p0": 50, "ci/p1": 50}


# --- what a gateway and a caller see ------------------------------------------------------------------------------


class Choosy(Keeper):
    """Lets everybody claim from some pools."""

    allowed: frozenset[str] = frozenset()

    async def may_claim(self, caller: Caller, pool: PoolFacts) -> bool:
        return pool.uid in self.allowed


@pytest.fixture
async def gateway() -> AsyncIterator[Gateway]:
    made, _ = gateway_of()
    yield made
    await made.client.close()


async def seen(gateway: Gateway, name: str, *allowed: str) -> list[str]:
    keeper = Choosy({}, False)
    keeper.allowed = frozenset(allowed)
    gateway.gatekeeper = keeper
    return uids(await meant(gateway, ANONYMOUS, name))


async def test_a_bare_name_is_the_oldest_pool_that_the_caller_may_claim_from(gateway: Gateway) -> None:
    for number, namespace in enumerate(("x", "y", "z")):
        put_pool(gateway, "web", namespace, created=f"202{number}-01-01T00:00:00Z")
    assert await seen(gateway, "web", "x/web", "y/web", "z/web") == ["x/web"]
    assert await seen(gateway, "web", "y/web", "z/web") == ["y/web"]
    assert await seen(gateway, "y_web", "x/web", "z/web") == []
    assert await seen(gateway, "web") == []


async def test_an_alias_is_every_pool_that_the_caller_may_claim_from(gateway: Gateway) -> None:
    for name in ("a", "b", "c"):
        put_pool(gateway, name, aliases=["any"])
    put_pool(gateway, "any")
    assert await seen(gateway, "any", "ci/any", "ci/a", "ci/c") == ["ci/any", "ci/a", "ci/c"]
    assert await seen(gateway, "any", "ci/b") == ["ci/b"]


class Slow(Keeper):
    """Answers when so many have asked as may ask at once; of pools named ``broken`` nobody can say."""

    asking = most = 0
    together = 1

    async def may_claim(self, caller: Caller, pool: PoolFacts) -> bool:
        self.asking += 1
        self.most = max(self.most, self.asking)
        # All who may ask have asked by then.
        await asyncio.sleep(0)
        await until(lambda: self.most >= self.together)
        self.asking -= 1
        if pool.name == "broken":
            raise unavailable("nobody can say", 1)
        return pool.name != "denied"


async def test_the_api_server_is_asked_about_several_pools_at_once(gateway: Gateway) -> None:
    for number in range(2 * REVIEWS_AT_ONCE + 1):
        put_pool(gateway, f"p{number:02}", aliases=["any"])
    keeper = Slow({}, False)
    keeper.together = REVIEWS_AT_ONCE
    gateway.gatekeeper = keeper
    found = await meant(gateway, ANONYMOUS, "any")
    assert uids(found) == [f"ci/p{number:02}" for number in range(2 * REVIEWS_AT_ONCE + 1)]
    assert keeper.most == REVIEWS_AT_ONCE


async def test_what_nobody_can_say_counts_only_where_it_is_needed(gateway: Gateway) -> None:
    gateway.gatekeeper = Slow({}, False)
    for year, name in enumerate(("denied", "good", "broken")):
        put_pool(gateway, name, created=f"202{year}-01-01T00:00:00Z", restName="web", aliases=[f"any-{name}", "any"])
    assert uids(await meant(gateway, ANONYMOUS, "web")) == ["ci/good"]
    for name in ("any", "any-broken"):
        with pytest.raises(Refusal):
            await meant(gateway, ANONYMOUS, name)


async def test_the_directory_follows_the_pools(gateway: Gateway) -> None:
    directory = gateway.directory
    assert directory.all_shown() == []
    raw = put_pool(gateway, "web")
    assert directory.all_shown() == ["web"]
    changed = {**raw, "spec": {**raw["spec"], "restName": "new", "paused": True}}
    changed["metadata"] = {**raw["metadata"], "resourceVersion": "1000000"}
    gateway.pools.saw(changed)
    assert directory.all_shown() == ["new"]
    assert directory.meaning("web").pools == ()
    assert directory.meaning("new").own[0].spec.paused
    gateway.pools.saw_deleted("ci/web")
    assert directory.all_shown() == []
    assert directory.shown("ci/web", "gone") == "gone"


async def test_the_directory_shows_pools_as_they_are_now_though_their_names_stay(gateway: Gateway) -> None:
    raw = put_pool(gateway, "web")
    assert not gateway.directory.meaning("web").own[0].spec.paused
    changed = {**raw, "spec": {**raw["spec"], "paused": True}}
    changed["metadata"] = {**raw["metadata"], "resourceVersion": "1000001"}
    gateway.pools.saw(changed)
    assert gateway.directory.meaning("web").own[0].spec.paused


async def test_pools_being_deleted_are_not_listed(gateway: Gateway) -> None:
    raw = put_pool(gateway, "web")
    gone = {**raw, "metadata": {**raw["metadata"], "resourceVersion": "1000002", "finalizers": ["x"]}}
    gone["metadata"]["deletionTimestamp"] = "2027-01-01T00:00:00Z"
    gateway.pools.saw(gone)
    assert gateway.directory.all_shown() == []
    assert gateway.directory.meaning("web").own[0].deleting
