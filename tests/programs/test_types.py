"""mypy looks at every module whose names the package offers."""

import pathlib
import tomllib

from support.files import ROOT

import cascade_keras

CONFIGURATION = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["tool"]["mypy"]


def test_the_home_of_every_name_is_looked_at():
    looked_at = {pathlib.PurePath(file) for file in CONFIGURATION["files"]}
    for name, home in cascade_keras._HOMES.items():
        if home:
            file = pathlib.PurePath("cascade_keras", *home.split(".")).with_suffix(".py")
            assert looked_at & {file, *file.parents}, f"{name} of {file}"


def test_what_is_looked_at_is_there():
    assert all((ROOT / file).exists() for file in CONFIGURATION["files"])
    modules = [module for row in CONFIGURATION["overrides"] for module in row["module"]]
    for module in (m.removesuffix(".*") for m in modules if m.startswith("cascade_keras")):
        place = ROOT / module.replace(".", "/")
        assert place.is_dir() or place.with_suffix(".py").exists(), module


def test_type_checkers_may_use_the_packages_hints():
    assert (ROOT / "cascade_keras" / "py.typed").exists()
    assert '"cascade_keras": ["py.typed", ' in (ROOT / "setup.py").read_text("utf-8")
    assert "mypy" in (ROOT / "Makefile").read_text("utf-8").partition("\nlint:")[2]
