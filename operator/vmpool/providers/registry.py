"""Find plug-ins: entry points of the group ``vmpool.providers``, loaded when a VMProvider first asks for them."""

from collections.abc import Mapping
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from pydantic import BaseModel, ValidationError

from vmpool.providers.base import Plugin, Provider, Session, config_error
from vmpool.providers.errors import InvalidConfig

GROUP = "vmpool.providers"


class UnknownType(InvalidConfig):
    """No plug-in of this name is installed."""

    reason = "UnknownType"


def installed() -> Mapping[str, EntryPoint]:
    """Return the installed plug-ins by name."""
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def plugin(name: str) -> Plugin:
    """Return the plug-in of this name.

    Raises UnknownType when there is none, InvalidConfig when it cannot be loaded.
    """
    found = installed()
    if name not in found:
        raise UnknownType(f"spec.type {name!r} is not one of: {', '.join(sorted(found)) or 'none installed'}")
    try:
        made: Plugin = found[name].load()()
    except ImportError as error:
        raise InvalidConfig(f"plug-in {name} cannot be loaded: {error}") from error
    return made


def parse_config(chosen: Plugin, config: Mapping[str, Any]) -> BaseModel:
    """Return the plug-in's settings.

    Raises InvalidConfig that names the field, the value and what is allowed.
    """
    try:
        return chosen.Config.model_validate(dict(config))
    except ValidationError as error:
        raise InvalidConfig(config_error("spec.config", list(error.errors(include_url=False)))) from error


def open_provider(name: str, config: Mapping[str, Any], secret: Mapping[str, str], install_id: str) -> Provider:
    """Return a session with the far side; opens no connection yet.

    Raises InvalidConfig (or UnknownType) when it cannot be.
    """
    chosen = plugin(name)
    return chosen.open(Session(parse_config(chosen, config), secret, install_id))
