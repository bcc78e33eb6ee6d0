"""What docs/troubleshooting.md says that is seen is what the package says."""

import ast
import re

import pytest
from support.files import ROOT

PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
# What comes from elsewhere: pip, Python, the operating system.
NOT_OURS = ("No space left on device", "load_model")


def sayings():
    """What the package's code says, in words: its texts, those with values in them in pieces."""
    for path in sorted((ROOT / "cascade_keras").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.JoinedStr):
                pieces = [p.value if isinstance(p, ast.Constant) else " * " for p in node.values]
                yield words("".join(pieces))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield words(re.sub(r"\{[^}]*\}", " * ", node.value))


def words(text):
    return f" {' '.join(re.findall(r'[a-zA-Z_*]+', text))} "


def seen():
    """What the first columns of the tables, and the bold lines, quote."""
    firsts = re.findall(r"^\| (?!you see|the message|it says)(.*?) \|", PAGE, re.MULTILINE)
    bold = re.findall(r"^(?:- )?\*\*(.*?)\*\*", PAGE, re.MULTILINE)
    for text in firsts + bold:
        yield from (q for q in re.findall(r"`([^`]+)`", text) if not q.startswith(NOT_OURS))


SAYINGS = "\n".join(set(sayings()))


@pytest.mark.parametrize("quoted", [q for q in seen() if len(words(q).split()) > 2])
def test_a_message_is_one_of_the_packages(quoted):
    """Three words in a row at least; the rest of a message are the values in it."""
    said = words(quoted).split()
    runs = (f" {' '.join(said[i : i + 3])} " for i in range(len(said) - 2))
    assert any(run in SAYINGS for run in runs), quoted


def test_messages_are_found():
    assert len(list(seen())) > 25
