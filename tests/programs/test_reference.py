"""Every public name has a docstring and is in the reference; every page is where links say."""

import ast
import importlib
import importlib.util
import inspect
import os
import re
import subprocess
import sys

import pytest
from support.files import ROOT

import cascade_keras

PACKAGES = ("attacks", "data", "losses", "models", "evaluation", "runs", "figures", "zoo",
            "reproduction")  # fmt: skip
DIRECTIVE = re.compile(r"^::: ([\w.]+)\n((?: +.*\n)*)", re.MULTILINE)
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)\)")


def public(package):
    """The names that a package offers, modules left out, with where they are defined."""
    homes = importlib.import_module(package)._HOMES
    return {name: f"{package}.{home}" for name, home in homes.items() if home}


NAMES = [
    (package, name, home)
    for package in ("cascade_keras", *(f"cascade_keras.{p}" for p in PACKAGES))
    for name, home in public(package).items()
]


@pytest.mark.parametrize(("package", "name", "home"), NAMES)
def test_a_public_name_has_a_docstring(package, name, home):
    found = getattr(importlib.import_module(package), name)
    if inspect.isclass(found) or inspect.isfunction(found):
        told = found.__doc__ or ""
        # What dataclasses and Enum write by themselves is no docstring.
        assert told and not told.startswith(f"{name}("), name
        return
    # A constant has none; a comment above or behind it tells what it is.
    lines = inspect.getsource(importlib.import_module(home)).splitlines()
    (at,) = [i for i, line in enumerate(lines) if re.match(rf"{name}\b *[:=]", line)]
    assert lines[at - 1].startswith("# ") or "  # " in lines[at], f"{home}.{name} has no comment"


def test_every_public_name_is_in_the_reference():
    pages = "".join(page.read_text("utf-8") for page in sorted((ROOT / "docs/api").glob("*.md")))
    shown = {}
    for path, options in DIRECTIVE.findall(pages):
        assert path not in shown, f"{path} is in the reference twice"
        shown[path] = re.findall(r'"!\^(\w+?)\$?"', options)
    for package, name, home in NAMES:
        above = shown.get(package), shown.get(home)
        whole = any(out is not None and not _left_out(name, out) for out in above)
        assert f"{package}.{name}" in shown or f"cascade_keras.{name}" in shown or whole, (
            f"{package}.{name} is missing in docs/api"
        )
    modules = [name for name, home in cascade_keras._HOMES.items() if not home]
    for name in modules:  # what is in a module of the package's own names
        assert f"cascade_keras.{name}" in shown, f"cascade_keras.{name} is missing in docs/api"


def _left_out(name, patterns):
    return any(name.startswith(p) if p.endswith("_") else name == p for p in patterns)


def test_what_the_reference_shows_exists():
    for page in sorted((ROOT / "docs/api").glob("*.md")):
        for path, _ in DIRECTIVE.findall(page.read_text("utf-8")):
            owner, _, name = path.rpartition(".")
            assert hasattr(importlib.import_module(owner), name) or importlib.import_module(path)


def _pages():
    names = "README.md", "SECURITY.md", "CHANGELOG.md", "CONTRIBUTING.md"
    yield from (ROOT / name for name in names)
    for folder in ("docs", "examples", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.md"))


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in _pages()])
def test_links_between_pages_lead_somewhere(page):
    text = (ROOT / page).read_text("utf-8")
    for link in LINK.findall(re.sub(r"(?s)```.*?```|`[^`\n]*`", "", text)):
        place = link.partition("#")[0]
        if place and "://" not in place:
            assert ((ROOT / page).parent / place).exists(), f"{page} links to {link}"


def test_a_sites_links_that_lead_nowhere_are_found(tmp_path):
    (tmp_path / "api").mkdir()
    (tmp_path / "index.html").write_text(
        '<h1 id="top">a</h1><a href="#top"></a><a href="#none"></a><a href="api/"></a>'
        '<a href="api/index.html#b"></a><a href="api/#c"></a><img src="none.png">'
        '<a href="https://example.org/none"></a><a href="data.json#any"></a>'
    )
    (tmp_path / "api" / "index.html").write_text('<a name="b" href="../index.html"></a>')
    (tmp_path / "404.html").write_text('<a href="/anywhere"></a>')
    (tmp_path / "data.json").write_text("{}")
    program = [sys.executable, str(ROOT / "docs" / "check_links.py"), str(tmp_path)]
    done = subprocess.run(program, capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stdout.split("\n") == [
        "index.html: #none", "index.html: api/#c", "index.html: none.png", ""
    ]  # fmt: skip


def test_every_page_of_docs_is_in_the_navigation():
    navigation = (ROOT / "mkdocs.yml").read_text("utf-8").partition("\nnav:")[2]
    named = set(re.findall(r"[\w/]+\.md", navigation))
    pages = {str(p.relative_to(ROOT / "docs")) for p in (ROOT / "docs").rglob("*.md")}
    assert pages <= named
    notebooks = {f"examples/{p.stem}.md" for p in (ROOT / "examples").glob("*.ipynb")}
    assert notebooks <= named


def test_each_example_is_told_of():
    index = (ROOT / "examples" / "README.md").read_text("utf-8")
    for path in (ROOT / "examples").iterdir():
        if path.suffix in (".py", ".ipynb"):
            assert f"]({path.name})" in index, f"{path.name} is missing in examples/README.md"


def test_docs_are_made_of_what_setup_declares():
    """The extra is bounded above: MkDocs and its plugins change what they call strict."""
    calls = ast.walk(ast.parse((ROOT / "setup.py").read_text("utf-8")))
    (extras,) = [k.value for c in calls if isinstance(c, ast.Call) for k in c.keywords
                 if k.arg == "extras_require"]  # fmt: skip
    docs = ast.literal_eval(extras)["docs"]
    assert all(re.fullmatch(r"[\w\[\]-]+>=[\d.]+,<[\d.]+", requirement) for requirement in docs)
    makefile = (ROOT / "Makefile").read_text("utf-8")
    assert re.search(r"^docs:.*\n\t.*mkdocs build --strict", makefile, re.MULTILINE)


@pytest.mark.skipif(not importlib.util.find_spec("griffe"), reason="needs the extra docs")
def test_the_reference_knows_what_is_known_only_when_imported():
    program = """
import griffe, build_site
package = griffe.load("cascade_keras", extensions=griffe.load_extensions(build_site.Imported))
trainer = package["AdversarialTrainer"]
assert {"max_epsilon", "seed"} <= {p.name for p in trainer.parameters}
assert package["TrainingSettings.batch_size"].docstring.value.startswith("m, clean and")
assert package["attacks.pgd"].canonical_path == "cascade_keras.attacks.projected.pgd"
for name, member in {**package.members, **package["attacks"].members}.items():
    if member.is_alias and not name.startswith("_") and not member.final_target.is_module:
        assert member.docstring, name
"""
    path = os.pathsep.join([str(ROOT / "docs"), str(ROOT)])
    command = [sys.executable, "-c", program]
    done = subprocess.run(
        command, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
