"""The changelog can be made from its fragments, and every one of them is found."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
NEWS = ROOT / "news"
LONGEST = 400


def settings() -> dict[str, object]:
    found: dict[str, object] = tomllib.loads((ROOT / "towncrier.toml").read_text())["tool"]["towncrier"]
    return found


def test_every_fragment_has_a_name_a_known_type_and_a_sentence() -> None:
    kinds = settings()["type"]
    assert isinstance(kinds, list)
    types = {one["directory"] for one in kinds}
    for file in NEWS.iterdir():
        if file.name == "README.md":
            continue
        name, kind, ending = file.name.split(".")
        assert kind in types, f"{file.name}: type must be one of {sorted(types)}"
        assert ending == "md"
        assert name == name.lower()
        text = file.read_text()
        assert text.endswith(".\n"), f"{file.name} is no sentence"
        assert len(text) <= LONGEST, f"{file.name}: more than {LONGEST} characters are a page of the documentation"


def test_a_release_has_its_place_in_the_changelog() -> None:
    found = settings()
    assert (ROOT / str(found["directory"])).is_dir()
    changelog = (ROOT / str(found["filename"])).read_text()
    assert changelog.count(str(found["start_string"])) == 1
