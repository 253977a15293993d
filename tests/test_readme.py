"""The README says what is so."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest

from nbllm.config import ConfigManager
from nbllm.magics.arguments import cell_parser, parse
from nbllm.magics.commands import COMMANDS
from nbllm.providers import registry
from nbllm.settings import PROJECT_MAY_SET, TYPES

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def test_the_two_commands_are_there_word_for_word() -> None:
    """A newcomer and CI run the same two lines."""
    assert "    pip install -c binder/constraints.txt '.[all]' && nbllm demo\n" in README
    second = "pip install -c binder/constraints.txt -e '.[all,test]' && pytest"
    assert f"    {second}\n" in README
    ci = (ROOT / ".ci" / "run").read_text()
    install, run = second.split(" && ")
    assert install.removeprefix("pip install ") in ci
    assert run in ci


def test_its_commands_and_options_exist() -> None:
    """Each `%llm` command and each `%%llm` line of the README is one that the magics take."""
    for name in re.findall(r"`%llm (\w+)", README):
        assert name in COMMANDS
    for line in re.findall(r"`%%llm([^`]*)`", README):
        if "--help" not in line:
            parse(cell_parser(), line)


def test_its_providers_variables_and_extras_exist() -> None:
    """The tables name what is registered."""
    rows = re.findall(r"^\| `([\w-]+)` +\|", README, re.MULTILINE)
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert set(rows) == set(registry()) | (set(extras) - {"test"})
    for spec in registry().values():
        assert all(variable in README for variable in spec.key_variables)


def test_its_configuration_can_be_read(tmp_path: Path) -> None:
    """The example is valid, and what it marks is what a project may set."""
    (block,) = re.findall(r"```toml\n(.*?)```", README, re.DOTALL)
    file = tmp_path / "config.toml"
    file.write_text(block)
    config = ConfigManager(user_file=file)
    assert config.settings("openai").base_url == "http://localhost:8000/v1"
    for line in block.splitlines():
        name = line.partition(" =")[0]
        if name in TYPES:
            assert ("# *" in line) == (name in PROJECT_MAY_SET), line


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#:]+)\)", README))
def test_its_links_lead_somewhere(link: str) -> None:
    """A link within the repository names a file that is there."""
    assert (ROOT / link).exists()
