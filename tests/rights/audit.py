"""An API server that writes down what service accounts ask of it, and what it has written."""

import json
from pathlib import Path

import yaml

from tests.rights.grants import Request, request

POLICY = {
    "apiVersion": "audit.k8s.io/v1",
    "kind": "Policy",
    # A watch is written down when it begins: it may not end while we look.
    "omitStages": ["RequestReceived"],
    "rules": [
        {"level": "Metadata", "userGroups": ["system:serviceaccounts"]},
        {"level": "None"},
    ],
}
FILE = "audit.log"


class AuditLog:
    """The log of one API server, read as it grows."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._read = 0
        self._requests: list[Request] = []
        (folder / "policy.yaml").write_text(yaml.safe_dump(POLICY))

    @property
    def flags(self) -> tuple[str, ...]:
        """With what the API server is started. It waits until a line is written before it answers."""
        return (
            f"--audit-policy-file={self._folder / 'policy.yaml'}",
            f"--audit-log-path={self._folder / FILE}",
            "--audit-log-mode=blocking-strict",
            # One file, however long it gets.
            "--audit-log-maxsize=10000",
        )

    def requests(self, user: str) -> list[Request]:
        """Return all that a user has asked for up to now."""
        self._follow()
        return [one for one in self._requests if one.user == user]

    def _follow(self) -> None:
        with (self._folder / FILE).open("rb") as lines:
            lines.seek(self._read)
            for line in lines:
                if not line.endswith(b"\n"):
                    break
                self._read += len(line)
                found = request(json.loads(line))
                if found is not None:
                    self._requests.append(found)
