"""A keyring backend that keeps its passwords in a JSON file, for tests: `PYTHON_KEYRING_BACKEND` names it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from keyring import errors
from keyring.backend import KeyringBackend
from keyring.compat import properties

VARIABLE = "TESTS_KEYRING_FILE"
"""Names the file; without it the backend is not there."""


class FileKeyring(KeyringBackend):
    """Passwords in a file; a file whose content is no JSON is a keyring that fails."""

    @properties.classproperty
    def priority(cls) -> float:  # noqa: N805 - it is of the class
        if VARIABLE not in os.environ:
            raise RuntimeError("no file")
        return 5

    def get_password(self, service: str, username: str) -> str | None:
        found: str | None = self._passwords().get(f"{service}/{username}")
        return found

    def set_password(self, service: str, username: str, password: str) -> None:
        self._write({**self._passwords(), f"{service}/{username}": password})

    def delete_password(self, service: str, username: str) -> None:
        passwords = self._passwords()
        if passwords.pop(f"{service}/{username}", None) is None:
            raise errors.PasswordDeleteError("there is none")
        self._write(passwords)

    def _passwords(self) -> dict[str, str]:
        file = Path(os.environ[VARIABLE])
        found: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        return found

    def _write(self, passwords: dict[str, str]) -> None:
        Path(os.environ[VARIABLE]).write_text(json.dumps(passwords))
