"""The suite that every provider plug-in passes: the protocol of ``base``, as pytest cases.

A plug-in's own test module subclasses ``ProviderConformance`` and gives it a fixture named ``harness``::

    class TestMyCloud(ProviderConformance):
        @pytest.fixture
        async def harness(self) -> AsyncIterator[Harness]:
            ...  # open a session; yield; remove whatever is left; close

Only tests import this module, so it may import pytest. Methods of ``Harness`` that answer None or False say
"this far side cannot do that"; the case is then skipped with a reason, never passed silently.
"""

# ruff: noqa: D102 - the name of a case is its documentation

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import Protocol, TypeVar

import pytest

from vmpool.api import keys
from vmpool.providers.base import Deletion, HasConsole, Machine, MachineRequest, MachineState, Provider
from vmpool.providers.errors import (
    CredentialsRefused,
    InvalidTemplate,
    MachineNotFound,
    ProviderError,
    Unavailable,
)

T = TypeVar("T")

CONCURRENT_ENSURES = 5
POLL_SECONDS = 0.02
POLL_MAX_SECONDS = 0.5


class Harness(Protocol):
    """What a plug-in's tests tell the suite about one far side."""

    @property
    def provider(self) -> Provider:
        """An open session; the harness closes it."""

    @property
    def install_id(self) -> str:
        """The install id of ``provider``."""

    @property
    def listing_size(self) -> int:
        """How many machines the listing case makes: more than one page of them, where there are pages."""

    @property
    def deadline(self) -> float:
        """Seconds within which a machine is deleted, and a new one shows in listings."""

    def request(self, token: str, name: str) -> MachineRequest:
        """Return a valid request, with our three tags."""

    def invalid_template_request(self) -> MachineRequest | None:
        """Return a request with an image that does not exist, or None when there are no images."""

    async def new_session(self) -> Provider:
        """Open another session at the same far side, with the same install id; the suite closes it."""

    async def other_far_side(self) -> Provider | None:
        """Open a session at another identity; the suite closes it."""

    async def break_credentials(self) -> Provider | None:
        """Open a session that the far side refuses; the suite closes it."""

    async def unreachable(self) -> Provider | None:
        """Open a session to a place where nobody answers; the suite closes it."""

    async def make_foreign(self) -> str | None:
        """Make a machine without our install tag, past the plug-in; return its id. The harness removes it."""

    async def exists(self, machine_id: str) -> bool:
        """Ask the far side, past the plug-in, whether this machine is there."""

    async def leftovers(self) -> list[str]:
        """Name everything of ours that the far side still has: machines, disks, network leases."""

    async def lose_next_reply(self) -> bool:
        """Arrange that the next create takes effect and its reply is lost; False when that is impossible."""


class ProviderConformance:
    """The cases. Each makes its own machines; the harness removes what a case leaves."""

    pytestmark = pytest.mark.asyncio

    async def test_ensure_twice_is_one_machine(self, harness: Harness) -> None:
        want = _fresh(harness)
        first = await harness.provider.ensure(want)
        second = await harness.provider.ensure(want)
        assert second.id == first.id
        assert await _living(harness, want.token) == {first.id}

    async def test_concurrent_ensures_are_one_machine(self, harness: Harness) -> None:
        want = _fresh(harness)
        made = await asyncio.gather(*(harness.provider.ensure(want) for _ in range(CONCURRENT_ENSURES)))
        assert len({machine.id for machine in made}) == 1
        assert await _living(harness, want.token) == {made[0].id}

    async def test_lost_reply_then_retry_is_one_machine(self, harness: Harness) -> None:
        want = _fresh(harness)
        if not await harness.lose_next_reply():
            pytest.skip("replies cannot be lost here")
        with suppress(Unavailable):  # a plug-in may also look the machine up itself and succeed
            await harness.provider.ensure(want)
        machine = await harness.provider.ensure(want)
        assert await _living(harness, want.token) == {machine.id}

    async def test_cancelled_ensure_then_retry_is_one_machine(self, harness: Harness) -> None:
        want = _fresh(harness)
        task = asyncio.ensure_future(harness.provider.ensure(want))
        for _ in range(20):  # let it get some way into its I/O, without a clock
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        machine = await harness.provider.ensure(want)
        assert await _living(harness, want.token) == {machine.id}

    async def test_ensure_shows_what_was_asked(self, harness: Harness) -> None:
        want = _fresh(harness)
        made = await harness.provider.ensure(want)
        assert 0 < len(made.id) <= 253
        assert made.name == want.name
        assert made.token == want.token
        _assert_tags(made, want.tags)
        assert made.state in {MachineState.CREATING, MachineState.RUNNING}

    async def test_a_console_can_be_read_and_belongs_to_one_machine(self, harness: Harness) -> None:
        """What was printed is bounded and fit for a terminal; an unknown machine is not found."""
        provider = harness.provider
        if not isinstance(provider, HasConsole):
            pytest.skip("it shows no console")
        made = await provider.ensure(_fresh(harness))
        text = await provider.console(made.id)
        assert len(text) <= 4096
        assert all(one.isprintable() or one in "\n\t" for one in text)
        with pytest.raises(MachineNotFound):
            await provider.console("no-such-machine")

    async def test_get_and_find_show_the_machine(self, harness: Harness) -> None:
        want = _fresh(harness)
        made = await harness.provider.ensure(want)
        got = await harness.provider.get(made.id)
        found = await _until(lambda: harness.provider.find(want.token), harness, "find by token")
        assert (got.id, got.name, got.token) == (made.id, want.name, want.token)
        assert (found.id, found.name, found.token) == (made.id, want.name, want.token)

    async def test_find_of_an_unknown_token_is_none(self, harness: Harness) -> None:
        assert await harness.provider.find(str(uuid.uuid4())) is None

    async def test_check_accepts_a_valid_request_and_makes_nothing(self, harness: Harness) -> None:
        want = _fresh(harness)
        await harness.provider.check(want)
        assert await harness.provider.find(want.token) is None
        assert await harness.leftovers() == []

    async def test_delete_until_gone_leaves_nothing(self, harness: Harness) -> None:
        want = _fresh(harness)
        machine = await harness.provider.ensure(want)
        await _delete(harness, machine.id)
        with pytest.raises(MachineNotFound):
            await harness.provider.get(machine.id)
        assert await harness.provider.find(want.token) is None
        assert machine.id not in await _listed(harness.provider)
        assert await harness.provider.delete(machine.id) is Deletion.GONE
        with pytest.raises(MachineNotFound):
            await harness.provider.adopt(machine.id, want.tags)
        assert not await harness.exists(machine.id)
        assert await harness.leftovers() == []

    async def test_unknown_ids(self, harness: Harness) -> None:
        unknown = str(uuid.uuid4())
        with pytest.raises(MachineNotFound):
            await harness.provider.get(unknown)
        with pytest.raises(MachineNotFound):
            await harness.provider.adopt(unknown, {keys.TAG_INSTALL: harness.install_id})
        assert await harness.provider.delete(unknown) is Deletion.GONE

    async def test_ids_are_never_reused(self, harness: Harness) -> None:
        want = _fresh(harness)
        first = await harness.provider.ensure(want)
        await _delete(harness, first.id)
        token = str(uuid.uuid4())
        again = replace(want, token=token, tags={**want.tags, keys.TAG_UID: token})
        second = await harness.provider.ensure(again)
        assert second.id != first.id

    async def test_adopt_puts_tags_and_lists_the_machine(self, harness: Harness) -> None:
        foreign = await harness.make_foreign()
        if foreign is None:
            pytest.skip("foreign machines cannot be made here")
        want = _fresh(harness)
        adopted = await harness.provider.adopt(foreign, want.tags)
        assert adopted.id == foreign
        _assert_tags(adopted, want.tags)
        _assert_tags(await harness.provider.get(foreign), want.tags)
        assert foreign in await _listed(harness.provider)
        again = await harness.provider.adopt(foreign, {keys.TAG_CLAIM: "someone"})
        _assert_tags(again, {**want.tags, keys.TAG_CLAIM: "someone"})

    async def test_foreign_machines_are_left_alone(self, harness: Harness) -> None:
        foreign = await harness.make_foreign()
        if foreign is None:
            pytest.skip("foreign machines cannot be made here")
        assert foreign not in await _listed(harness.provider)
        with pytest.raises(MachineNotFound):
            await harness.provider.get(foreign)
        with pytest.raises(MachineNotFound):
            await harness.provider.delete(foreign)
        assert await harness.exists(foreign)

    async def test_identity_is_stable_over_sessions(self, harness: Harness) -> None:
        identity = await harness.provider.identity()
        assert 0 < len(identity) <= 253
        async with _closing(await harness.new_session()) as other:
            assert await other.identity() == identity

    async def test_another_far_side_has_another_identity(self, harness: Harness) -> None:
        async with _closing(_needed(await harness.other_far_side(), "there is only one far side")) as other:
            assert await other.identity() != await harness.provider.identity()

    async def test_listing_is_complete(self, harness: Harness) -> None:
        wants = [_fresh(harness) for _ in range(harness.listing_size)]
        made = {(await harness.provider.ensure(want)).id for want in wants}

        async def complete() -> bool:
            return made <= await _listed(harness.provider)

        await _until(complete, harness, "a complete listing")
        listing = [machine async for machine in harness.provider.machines()]
        assert len({machine.id for machine in listing}) == len(listing), "a machine was listed twice"
        tokens = {machine.id: machine.token for machine in listing}
        assert {tokens[machine_id] for machine_id in made} == {want.token for want in wants}

    async def test_tags_survive_a_new_session(self, harness: Harness) -> None:
        want = _fresh(harness)
        made = await harness.provider.ensure(want)
        async with _closing(await harness.new_session()) as other:
            _assert_tags(await other.get(made.id), want.tags)
            assert (await other.ensure(want)).id == made.id

    async def test_refused_credentials_are_typed(self, harness: Harness) -> None:
        machine = await harness.provider.ensure(_fresh(harness))
        refused = _needed(await harness.break_credentials(), "credentials cannot be broken here")
        async with _closing(refused):
            for name, call in _every_call(refused, machine.id, _fresh(harness)):
                assert isinstance(await _error(call), CredentialsRefused), name

    async def test_unreachable_is_typed(self, harness: Harness) -> None:
        unreachable = _needed(await harness.unreachable(), "the far side cannot be out of reach")
        async with _closing(unreachable):
            for name, call in _every_call(unreachable, str(uuid.uuid4()), _fresh(harness)):
                assert isinstance(await _error(call), Unavailable), name

    async def test_unknown_image_is_terminal(self, harness: Harness) -> None:
        want = harness.invalid_template_request()
        if want is None:
            pytest.skip("there are no images here")
        with pytest.raises(InvalidTemplate) as caught:
            await harness.provider.ensure(want)
        assert caught.value.terminal
        assert want.image in caught.value.message
        assert await harness.provider.find(want.token) is None
        assert await harness.leftovers() == []

    async def test_close_is_repeatable(self, harness: Harness) -> None:
        used = await harness.new_session()
        await used.identity()
        unused = await harness.new_session()
        for session in (used, unused):
            await session.close()
            await session.close()


def _fresh(harness: Harness) -> MachineRequest:
    return harness.request(str(uuid.uuid4()), f"conf-{uuid.uuid4().hex[:8]}")


def _needed(provider: Provider | None, otherwise: str) -> Provider:
    if provider is None:
        pytest.skip(otherwise)
    return provider


def _assert_tags(machine: Machine, tags: Mapping[str, str]) -> None:
    assert {key: machine.tags.get(key) for key in tags} == dict(tags)


def _every_call(
    provider: Provider, machine_id: str, want: MachineRequest
) -> list[tuple[str, Callable[[], Awaitable[object]]]]:
    """Every method that asks the far side; ``check`` is missing because it may be a no-op."""
    return [
        ("identity", provider.identity),
        ("ensure", lambda: provider.ensure(want)),
        ("get", lambda: provider.get(machine_id)),
        ("find", lambda: provider.find(want.token)),
        ("machines", lambda: _listed(provider)),
        ("adopt", lambda: provider.adopt(machine_id, want.tags)),
        ("delete", lambda: provider.delete(machine_id)),
    ]


async def _error(call: Callable[[], Awaitable[object]]) -> ProviderError | None:
    try:
        await call()
    except ProviderError as error:
        return error
    return None


@asynccontextmanager
async def _closing(provider: Provider) -> AsyncIterator[Provider]:
    try:
        yield provider
    finally:
        await provider.close()


async def _listed(provider: Provider) -> set[str]:
    return {machine.id async for machine in provider.machines()}


async def _living(harness: Harness, token: str) -> set[str]:
    """Return the machines of this token that nobody deletes, once at least one shows in the listing."""

    async def look() -> set[str]:
        return {
            machine.id
            async for machine in harness.provider.machines()
            if machine.token == token and machine.state is not MachineState.DELETING
        }

    return await _until(look, harness, "the machine in the listing")


async def _delete(harness: Harness, machine_id: str) -> None:
    async def gone() -> bool:
        return await harness.provider.delete(machine_id) is Deletion.GONE

    await _until(gone, harness, f"deletion of {machine_id}")


async def _until(look: Callable[[], Awaitable[T | None]], harness: Harness, what: str) -> T:
    """Return the first truthy answer; the one place of this suite where time passes."""
    pause = POLL_SECONDS
    end = asyncio.get_running_loop().time() + harness.deadline
    while True:
        answer = await look()
        if answer:
            return answer
        assert asyncio.get_running_loop().time() < end, f"{what} took longer than {harness.deadline:g} s"
        await asyncio.sleep(pause)
        pause = min(pause * 1.3, POLL_MAX_SECONDS)
