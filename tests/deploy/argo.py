"""Argo CD as far as it runs scripts: its Lua, what it lends them, and what it makes of what they return.

From ``util/lua/lua.go`` and ``util/lua/oslib_safe.go`` of Argo CD: only ``package``, the base library, ``table`` and
``os`` with two functions are there; ``obj`` and ``actionParams`` are given; an empty table comes back as a list.
"""

import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from vmpool.api.keys import GROUP
from vmpool.cli import argocd

Json = dict[str, Any]

ROOT = Path(__file__).parents[2]
LENT = ("package", "table", "os", "require", "error", "ipairs", "pairs", "tonumber", "tostring", "type", "next")
CLOSED = """
local lent, kept = {...}, {}
for _, name in ipairs(lent) do kept[name] = true end
local safe = {time = os.time, date = os.date}
for name in pairs(package.loaded) do package.loaded[name] = nil end
package.loaded.os, package.path, package.cpath = safe, "", ""
os = safe
table = {insert = table.insert, remove = table.remove, concat = table.concat, sort = table.sort}
getmetatable("").__index = nil
for name in pairs(_G) do if not kept[name] and name ~= "_G" then _G[name] = nil end end
"""
HEALTHS = {"Unknown", "Progressing", "Suspended", "Healthy", "Degraded", "Missing"}


class Scripts:
    """The ConfigMap as Argo CD reads it."""

    def __init__(self, data: dict[str, str]) -> None:
        self.data = data

    def health(self, found: Json) -> Json:
        """Status and message of an object."""
        group = found["apiVersion"].split("/")[0]
        told: Json = run(self.data[f"resource.customizations.health.{group}_{found['kind']}"], found)
        assert set(told) == {"status", "message"}, told
        assert told["status"] in HEALTHS, told
        assert isinstance(told["message"], str)
        assert told["message"], "a health without a sentence helps nobody"
        return told

    def kinds_with_actions(self) -> list[str]:
        """Kinds that have actions."""
        head = f"resource.customizations.actions.{GROUP}_"
        return [key.removeprefix(head) for key in self.data if key.startswith(head)]

    def _actions(self, kind: str) -> Json:
        return dict(yaml.safe_load(self.data[f"resource.customizations.actions.{GROUP}_{kind}"]))

    def defined(self, kind: str) -> list[str]:
        """The actions that are defined."""
        return [each["name"] for each in self._actions(kind)["definitions"]]

    def offered(self, found: Json) -> dict[str, Json]:
        """The actions that are offered for an object, by name."""
        told = run(self._actions(found["kind"])["discovery.lua"], found)
        return {} if told == [] else told

    def enabled(self, found: Json) -> set[str]:
        """Those of them that can be had now."""
        return {name for name, told in self.offered(found).items() if not told.get("disabled")}

    def patch(self, found: Json, action: str, **params: str) -> Json:
        """The merge patch that an action sends; empty when it changes nothing.

        Raises LuaError when the script refuses.
        """
        (script,) = [
            each["action.lua"] for each in self._actions(found["kind"])["definitions"] if each["name"] == action
        ]
        return merge_patch(found, cleaned(run(script, found, params), found))


def load() -> Scripts:
    """The ConfigMap of the repository; skips the test where Lua is not installed."""
    lua51()
    return Scripts(yaml.safe_load((ROOT / argocd.MADE).read_text())["data"])


def lua51() -> Any:
    """The Lua that Argo CD's is one of; skips the test where it is not installed."""
    return pytest.importorskip("lupa.lua51", reason="needs lupa: Argo CD's scripts are Lua")


def run(script: str, found: Json, params: dict[str, str] | None = None) -> Any:
    """Run a script as Argo CD does; return what it returns, as JSON."""
    # No way out of Lua, and nothing lent but what Argo CD lends.
    lua = lua51().LuaRuntime(register_eval=False, register_builtins=False, unpack_returned_tuples=True)
    script_of = lua.eval("loadstring")
    lua.execute(CLOSED, *LENT)
    lua.globals().obj = decoded(lua, found)
    lua.globals().actionParams = decoded(lua, params or {})
    compiled = script_of(script)
    assert not isinstance(compiled, tuple), f"no Lua: {compiled}"
    returned = compiled()
    assert lua51().lua_type(returned) == "table", f"Argo CD expects a table, not {returned!r}"
    return encoded(returned)


def decoded(lua: Any, value: Any) -> Any:
    """``decodeValue``: JSON as Lua."""
    if isinstance(value, dict):
        made = lua.table()
        for key, each in value.items():
            made[key] = decoded(lua, each)
        return made
    if isinstance(value, list | tuple):
        return lua.table(*(decoded(lua, each) for each in value))
    return value


def encoded(value: Any) -> Any:
    """``luajson.Encode``: Lua as JSON; a table without entries is a list."""
    if lua51().lua_type(value) != "table":
        return int(value) if isinstance(value, float) and math.isfinite(value) and value == int(value) else value
    keys = list(value.keys())
    if all(isinstance(key, int | float) for key in keys):
        assert sorted(keys) == list(range(1, len(keys) + 1)), "a list with holes"
        return [encoded(value[key]) for key in range(1, len(keys) + 1)]
    assert all(isinstance(key, str) for key in keys), f"keys of both sorts: {keys}"
    return {key: encoded(value[key]) for key in keys}


def cleaned(new: Any, old: Any) -> Any:
    """``cleanReturnedObj``: an empty list that was an empty table before is one again."""
    if isinstance(new, dict) and isinstance(old, dict):
        return {key: cleaned(each, old[key]) if key in old else each for key, each in new.items()}
    if new == [] and isinstance(old, dict):
        return old
    if isinstance(new, list) and isinstance(old, list):
        return [cleaned(each, old[place]) if place < len(old) else each for place, each in enumerate(new)]
    return new


def merge_patch(old: Json, new: Json) -> Json:
    """The merge patch from one object to another (RFC 7386)."""
    made: Json = {key: None for key in old if key not in new and old[key] is not None}
    for key, value in new.items():
        before = old.get(key)
        if isinstance(value, dict) and isinstance(before, dict):
            made |= {key: inner} if (inner := merge_patch(before, value)) else {}
        elif value != before:
            made[key] = value
    return made
