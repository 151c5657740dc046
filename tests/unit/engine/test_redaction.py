"""Whatever a plug-in says: what we know its far side by is not shown to anybody."""

import traceback

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.engine.test_lane import call, lane, raises, returns
from vmpool.engine.redaction import LEAST, LEAST_LINE, REDACTED, PluginBroken, Redaction
from vmpool.providers.base import Deletion, Machine, MachineState, Provider
from vmpool.providers.errors import InvalidTemplate, ProviderError, Unavailable

KEY = "canary-key-5e9f"
secrets = st.text(alphabet="abcXYZ019-/+=", min_size=LEAST, max_size=40)


def machine(message: str) -> Machine:
    return Machine("m-1", "vm-1", MachineState.FAILED, message=message)


@given(st.lists(secrets, max_size=4), st.text(alphabet="defQ !,", min_size=1, max_size=20))
def test_no_value_is_left_wherever_it_stands(values: list[str], around: str) -> None:
    clean = Redaction(values).text(around.join(["", *values, ""]))

    assert clean == around.join(["", *[REDACTED] * len(values), ""])


def test_every_long_line_of_a_value_is_a_secret_and_short_values_are_none() -> None:
    line = "M" * LEAST_LINE
    redaction = Redaction([f"-----\n{line}\nshort\n", "admin", " padded-key \n"])

    assert redaction.text(f"got {line} short admin padded-key") == f"got {REDACTED} short admin {REDACTED}"


async def test_an_error_and_what_it_came_from_leave_the_lane_without_the_secret() -> None:
    made = lane()
    made.redaction = Redaction([KEY])
    error = Unavailable(f"refused: Bearer {KEY}")
    error.__cause__ = OSError("the line broke")
    error.__cause__.__context__ = ValueError(f"header {KEY}")

    with pytest.raises(Unavailable) as caught:
        await call(made, raises(error))

    assert caught.value.message == f"refused: Bearer {REDACTED}"
    told = "".join(traceback.format_exception(caught.value))
    assert KEY not in told
    assert "the line broke" in told, "what is harmless still tells where it came from"


async def test_what_a_machine_says_leaves_the_lane_without_the_secret_and_facts_stay_facts() -> None:
    made = lane()
    made.redaction = Redaction([KEY, Deletion.GONE.value * 2])

    assert await call(made, returns(f"ledger/{KEY}")) == f"ledger/{KEY}", "an identity is compared with the one before"
    assert await call(made, returns(Deletion.GONE)) is Deletion.GONE
    assert await call(made, returns(machine(f"bad {KEY}"))) == machine(f"bad {REDACTED}")
    assert await call(made, returns([machine(""), machine(KEY)])) == [machine(""), machine(REDACTED)]
    assert await call(made, returns(None)) is None


async def test_a_mistake_of_a_plug_in_that_tells_a_value_is_told_without_it() -> None:
    made = lane()
    made.redaction = Redaction([KEY])

    with pytest.raises(PluginBroken) as caught:
        await call(made, raises(ValueError(f"bad address http://u:{KEY}@cloud")))
    told = "".join(traceback.format_exception(caught.value))
    assert KEY not in told
    assert "ValueError: bad address" in told
    with pytest.raises(KeyError):
        await call(made, raises(KeyError("nothing to hide")))


async def test_an_answer_is_cleaned_of_the_secret_it_was_asked_with() -> None:
    made = lane()
    made.redaction = Redaction([KEY])

    async def slow(_: Provider) -> None:
        made.redaction = Redaction(["the-next-key"])
        raise Unavailable(f"not with {KEY}")

    with pytest.raises(Unavailable, match="not with \\*\\*\\*"):
        await call(made, slow)


def test_a_value_is_known_in_base64_and_in_a_url() -> None:
    redaction = Redaction(["pass/word+1"])

    assert redaction.text("cGFzcy93b3JkKzE= pass%2Fword%2B1") == f"{REDACTED} {REDACTED}"


def test_without_a_secret_nothing_is_changed() -> None:
    error: ProviderError = InvalidTemplate("no such image")
    error.__cause__ = KeyError("image")
    Redaction().error(error)

    assert error.message == "no such image"
    assert isinstance(error.__cause__, KeyError)
