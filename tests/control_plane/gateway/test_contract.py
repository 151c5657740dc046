"""Every endpoint from the table, asked of real gateways on a real API server; no operator runs."""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.api import Api
from tests.control_plane.gateway.scene import Scene
from tests.control_plane.gateway.stagehand import Stagehand
from tests.control_plane.gateway.table import ALICE, BOB, PASSWORDS, STATIC, Row, differences, table
from tests.control_plane.gateway.users import two_gateways
from tests.gateways import Gateway
from tests.rest import rest_client
from vmpool.dev.plane import ControlPlane

pytestmark = pytest.mark.control_plane

DIFFERENCES = Path(__file__).parents[3] / "docs" / "vmpooler-differences.md"
CASES = [pytest.param(row, on, id=f"{row.name}-{on}") for row in table() for on in row.on]


@pytest.fixture(scope="module")
def served(
    plane: ControlPlane, shared_namespace: str, crds_installed: None, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, Gateway]]:
    """Both gateways."""
    with two_gateways(plane, shared_namespace, tmp_path_factory.mktemp("gateways")) as gateways:
        yield gateways


@pytest.fixture(scope="module")
def known_tokens() -> dict[str, str]:
    """A token of each user, made by the first test that needs one."""
    return {}


@pytest.mark.parametrize(("row", "on"), CASES)
async def test_answers_as_the_table_says(
    row: Row, on: str, served: dict[str, Gateway], known_tokens: dict[str, str], api: Api, shared_namespace: str
) -> None:
    await served[on].ready()
    async with rest_client(served[on].url) as rest:
        if on == STATIC and not known_tokens:
            known_tokens.update({user: await rest.new_token(user, PASSWORDS[user]) for user in (ALICE, BOB)})
        hand = Stagehand(rest, Scene(api, shared_namespace), known_tokens if on == STATIC else {})
        await hand.prepare(row)
        await hand.judge(row, await hand.send(row))


def test_names_of_rows_are_unique() -> None:
    names = [row.name for row in table()]
    assert len(names) == len(set(names)), sorted(name for name in names if names.count(name) > 1)


def test_every_difference_is_documented() -> None:
    told = re.sub(r"\s+", " ", DIFFERENCES.read_text())
    missing = {name: words for name, words in differences().items() if words not in told}
    assert not missing, missing
