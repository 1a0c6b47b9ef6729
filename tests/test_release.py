"""Facts about a release that occur in two places agree: versions and their dates, requirements, supported Pythons."""

import re
from pathlib import Path

import pytest

import gpurnn

tomllib = pytest.importorskip("tomllib")

ROOT = Path(__file__).parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def pages(name):
    return (ROOT / name).read_text()


def at_least(requirements):
    """The names and minimum versions in requirements of the form name>=version."""
    return dict(re.match(r"([\w-]+) ?>=([\d.]+)$", requirement).groups() for requirement in requirements)


def supported():
    """The first two columns of the table in docs/compatibility.md."""
    return dict(re.findall(r"^\| ([^|]+?) \| ([^|]+?) \|$", pages("docs/compatibility.md"), re.MULTILINE))


def test_every_file_has_the_version_and_its_date():
    version = PROJECT["project"]["version"]
    assert gpurnn.__version__ == version
    assert f"\nversion: {version}\n" in pages("CITATION.cff")
    assert f"version = {{{version}}}" in pages("docs/cite.md")
    latest, date = re.search(r"^## (\S+) - (\d{4}-\d\d-\d\d)$", pages("CHANGELOG.md"), re.MULTILINE).groups()
    assert latest == version
    assert f'version: "{version}"' in pages("conda/recipe/recipe.yaml")
    assert f"\ndate-released: {date}\n" in pages("CITATION.cff")
    assert f"year    = {{{date[:4]}}}" in pages("docs/cite.md")


def test_the_site_documents_every_public_name():
    listed = "".join(page.read_text() for page in (ROOT / "docs" / "api").glob("*.md"))
    stubs = "".join(stub.read_text() for stub in (ROOT / "gpurnn").rglob("__init__.pyi"))
    public = re.findall(r"^from \.[\w.]+ import (\w+) as", stubs, re.MULTILINE)
    assert public
    assert set(public) <= set(re.findall(r"^   (\w+)$", listed, re.MULTILINE))


def test_the_conda_recipe_requires_what_the_wheel_does():
    recipe = pages("conda/recipe/recipe.yaml")
    run = re.search(r"\n  run:\n((?:    - .*\n)+)", recipe)[1]
    wheel = at_least(PROJECT["project"]["dependencies"])
    python = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert at_least(re.findall(r"- (.*)", run)) == {"python": python} | wheel
    host = re.search(r"\n  host:\n((?:    - .*\n)+)", recipe)[1]
    build = at_least(PROJECT["build-system"]["requires"])
    assert at_least(line for line in re.findall(r"- (.*)", host) if line != "pip") == {"python": python} | build


def test_the_page_on_compatibility_says_what_an_installation_demands():
    table, project = supported(), PROJECT["project"]
    oldest = project["requires-python"].removeprefix(">=")
    assert table["Python"].startswith(f"{oldest} and newer")
    assert table["NumPy"].startswith(f"{at_least(project['dependencies'])['numpy']} and newer")
    (cupy,) = project["optional-dependencies"]["cuda12"]
    assert table["CuPy"].startswith(f"{cupy.partition('>=')[2]} and newer")
    classifiers = [line.rpartition(" ")[2] for line in project["classifiers"] if ":: Python :: 3." in line]
    assert classifiers[0] == oldest
    assert table["Python"].endswith(f"tested on {oldest} and {classifiers[-1]}")
    assert PROJECT["tool"]["ruff"]["target-version"] == f"py{oldest.replace('.', '')}"
    assert PROJECT["tool"]["mypy"]["python_version"] == oldest
    assert PROJECT["tool"]["cibuildwheel"]["build"] == f"cp{oldest.replace('.', '')}-*"


def test_a_release_is_tested_on_the_oldest_and_the_newest_python():
    workflow = pages(".github/workflows/release.yml")
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    assert f"matrix.versions == 'oldest' && '{oldest}'" in workflow
