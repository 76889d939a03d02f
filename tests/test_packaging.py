"""What is published: one version, extras that exist, pins of all that is asked for, a changelog and a citation."""

import re
import tomllib
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ruamel.yaml import YAML

import caryatid

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
EXTRAS: dict[str, list[str]] = PROJECT["project"]["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if line and not line.startswith("#")
]


def test_the_version_stands_in_one_place() -> None:
    assert "version" not in PROJECT["project"]
    assert PROJECT["project"]["dynamic"] == ["version"]
    assert PROJECT["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "caryatid.__version__"}
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == caryatid.__version__


def test_the_citation_has_what_the_format_asks_for() -> None:
    citation = YAML(typ="safe").load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["cff-version"] == "1.2.0"
    assert citation["type"] == "software"
    assert citation["license"] == PROJECT["project"]["license"]
    assert citation["message"]
    assert citation["title"]
    assert all(
        set(author) <= {"name", "given-names", "family-names", "orcid"} for author in citation["authors"]
    )
    assert citation["authors"]


@pytest.mark.parametrize("asked", [*PROJECT["project"]["dependencies"], *chain(*EXTRAS.values())])
def test_what_is_asked_for_has_a_pin_that_satisfies_it(asked: str) -> None:
    wanted = Requirement(asked)
    pins = [pin for pin in PINS if canonicalize_name(pin.name) == canonicalize_name(wanted.name)]
    assert len(pins) == 1
    (specifier,) = pins[0].specifier
    assert specifier.operator == "=="
    assert wanted.specifier.contains(specifier.version)


def test_the_extras_that_texts_name_exist() -> None:
    texts = [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "src").rglob("*.py"),
        ROOT / "Makefile",
    ]
    named = {
        extra
        for path in texts
        for listed in re.findall(r"caryatid\[([\w,-]+)\]", path.read_text(encoding="utf-8"))
        for extra in listed.split(",")
    }
    assert {"judges", "ray", "slurm", "inspect", "data"} <= named
    assert named <= set(EXTRAS)


def test_pythons_of_the_metadata_are_allowed() -> None:
    found = [
        c.rpartition(" ")[2]
        for c in PROJECT["project"]["classifiers"]
        if c.startswith("Programming Language")
    ]
    named = [number for number in found if re.fullmatch(r"3\.\d+", number)]
    assert named == ["3.11", "3.12", "3.13"]
    assert all(SpecifierSet(PROJECT["project"]["requires-python"]).contains(number) for number in named)


def test_the_changelog_keeps_its_form() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# Changelog"
    versions = [line for line in lines if line.startswith("## ")]
    assert versions[0] == "## [Unreleased]"
    for version in versions[1:]:
        assert re.fullmatch(r"## \[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d", version)
    kinds = {line.removeprefix("### ") for line in lines if line.startswith("### ")}
    assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}
