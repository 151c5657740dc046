"""What is asked of every set of programs that we build from Go modules."""

import re
from collections.abc import Mapping
from pathlib import Path

from vmpool.dev.build import Recipe

BROKEN_GO = '#!/bin/sh\n[ "$1" = version ] && echo "go version go9.9.9" && exit 0\necho "no such module" >&2; exit 1\n'


def assert_pinned(recipe: Recipe) -> None:
    """Every program is a tool of its go.mod, and its module is pinned by a sum."""
    go_mod = (recipe.module / "go.mod").read_text()
    sums = (recipe.module / "go.sum").read_text()
    for target in recipe.targets:
        assert re.search(rf"^(tool |\t){re.escape(target.package)}$", go_mod, re.MULTILINE)
        module = target.package.split("/cmd/")[0]
        (version,) = re.findall(rf"^\s*{re.escape(module)} (v\S+)", go_mod, re.MULTILINE)
        assert f"{module} {version} h1:" in sums


def broken_go(folder: Path) -> Mapping[str, str]:
    """Return an environment with an empty cache, whose ``go`` builds nothing and says ``no such module``."""
    programs = folder / "bin"
    programs.mkdir()
    (programs / "go").write_text(BROKEN_GO)
    (programs / "go").chmod(0o755)
    return {"PATH": f"{programs}:/usr/bin:/bin", "XDG_CACHE_HOME": str(folder / "cache")}
