"""Modules and functions that a user names by a text: what is found, and what goes wrong inside."""

import sys

import pytest

from cascade_keras import own_code
from cascade_keras.errors import InputError

MODULES = {
    "own_fine": "def make():\n    return 7\nclass Box:\n    make = staticmethod(make)\nseven = 7\n",
    "own_zero": "import json\n1 / 0\n",
    "own_syntax": "def make(:\n    pass\n",
    "own_exit": "raise SystemExit('usage')\n",
    "own_import": "import json\nimport own_nothing_there\n",
}
REFUSED = {
    "own_fine:seven": "seven in .*own_fine.py is no function",
    "own_fine:other": "own_fine.py has no other",
    "own_zero:make": r"ZeroDivisionError: division by zero, .*own_zero.py line 2\)",
    "own_syntax:make": r"SyntaxError: .*own_syntax.py line 1\)",
    "own_exit:make": r"SystemExit: usage, .*own_exit.py line 1\)",
    "own_import:make": r"No module named 'own_nothing_there', .*own_import.py line 2\)",
    "own_nothing:make": "no module 'own_nothing' in the current directory",
    "own_nothing.at.all:make": "no module 'own_nothing'",
    "own fine:make": "must have the form module:function",
    "own_fine": "must have the form module:function",
    "own_fine:": "must have the form module:function",
}


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place])
    for name, text in MODULES.items():
        (tmp_path / f"{name}.py").write_text(text)
    yield
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.mark.parametrize("text", ["own_fine:make", "own_fine:Box.make"])
def test_a_function_in_the_current_directory_is_found(text):
    assert own_code.names_function(text)
    assert own_code.function(text, "model")() == 7


@pytest.mark.parametrize("text", REFUSED)
def test_what_goes_wrong_is_one_line_with_its_place(text):
    with pytest.raises(InputError, match=REFUSED[text]) as error:
        own_code.function(text, "model")
    assert error.value.setting == "model" and len(str(error.value).splitlines()) == 1


def test_a_module_is_looked_for_without_running_it():
    own_code.check_module("own_zero", "import_")
    with pytest.raises(InputError, match="must be a module's name"):
        own_code.check_module("own-zero", "import_")
    with pytest.raises(InputError, match="line 2"):
        own_code.import_all(["own_fine", "own_zero"])


def test_what_a_function_raises_is_said_with_the_users_line(tmp_path):
    text = "import json\n\ndef make():\n    return json.loads('{')\n"
    (tmp_path / "own_fine.py").write_text(text)
    make = own_code.function("own_fine:make", "model")
    message = r"it fails \(JSONDecodeError: .*own_fine.py line 4\)"
    with pytest.raises(InputError, match=message), own_code.running("it fails", "model"):
        make()
