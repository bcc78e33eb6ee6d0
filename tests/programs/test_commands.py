"""Every command line of README.md and docs/ is one that the programs understand, run or not."""

import ast
import dataclasses
import importlib
import inspect
import re
import shlex

import pytest
from support.files import ROOT

from cascade_keras.cli import flags
from cascade_keras.settings import Settings, flag_of

PROGRAMS = sorted(path.name for path in (ROOT / "bin").iterdir())
INSTALLED = {f"cascade-{name.replace('_', '-')}": name for name in PROGRAMS}
CALL = re.compile(
    rf"(?<![\w/.-])(?:bin/(?P<name>{'|'.join(PROGRAMS)})|(?P<installed>{'|'.join(INSTALLED)})"
    r"|python (?P<script>\S+\.py))(?![\w/-])"
)
ASSIGNED = re.compile(r'(?:^|\s)([A-Z_]+)=("[^"]*"|[^\s"]*)')
CODE = re.compile(r"^```\w*\n(.*?)^```$|`([^`\n]+)`", re.DOTALL | re.MULTILINE)
# What a shell, a queue or the reader puts a value in the place of, and a file that is to be there.
OPEN = re.compile(r"\$|\{\}|\bI/N\b|\.npz$")


def pages():
    yield from (ROOT / name for name in ("README.md", "SECURITY.md", "CONTRIBUTING.md"))
    for folder in ("docs", "examples", "benchmarks"):
        yield from sorted((ROOT / folder).rglob("*.md"))
        yield from sorted((ROOT / folder).glob("*.py"))


def code_of(path):
    """The pieces of code of a page; of a program the indented lines of what it says of itself."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        told = ast.get_docstring(ast.parse(text)) or ""
        return ["\n".join(line for line in told.splitlines() if line.startswith("    "))]
    return [block or span for block, span in CODE.findall(text)]


def commands_of(code):
    """Yield the programs that a piece of shell code calls, each with its arguments."""
    variables = {}
    for line in re.sub(r"\\\n\s*", " ", code).splitlines():
        for name, value in variables.items():
            line = re.sub(rf"\$(?:{name}\b|{{{name}}})", lambda _, value=value: value, line)
        assigned = ASSIGNED.findall(line)
        variables.update((name, value.strip('"')) for name, value in assigned)
        if any(CALL.search(value) for _, value in assigned):
            continue  # a command that is called by its variable
        line = re.sub(r"(^|\s)# .*", "", line)
        if "[bin/" in line:  # of a Kubernetes manifest
            line = line.replace(", ", " ").replace("]", "")
        for call in CALL.finditer(line):
            name = call["name"] or INSTALLED.get(call["installed"])
            yield name or call["script"], arguments(line[call.end() :])


def arguments(text):
    """The words up to the end of a command."""
    words = shlex.shlex(text, posix=True, punctuation_chars=True)
    words.whitespace_split = True
    found = []
    for word in words:
        if re.fullmatch(r"[();<>|&]+|\.\.\.", word):
            break
        found.append(word)
    return found


FOUND = {
    (str(path.relative_to(ROOT)), program, *words)
    for path in pages()
    if path.exists()
    for code in code_of(path)
    if CALL.search(code)
    for program, words in commands_of(code)
    if words
}
SHOWN = sorted(found for found in FOUND if found[1] in PROGRAMS)
SCRIPTS = sorted(FOUND.difference(SHOWN))


def asked_of(program):
    """A program's flags, as its ``main`` makes them, and the class of its settings."""
    module = importlib.import_module(f"cascade_keras.cli.{program}")
    made = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "run_program", lambda *args, **kwargs: made.append(args))
        module.main([program])
    classes = {
        found
        for found in vars(module).values()
        if inspect.isclass(found) and issubclass(found, Settings) and found is not Settings
    }
    return made[0][2], classes


def check(program, words):
    """Refuse a flag that does not exist, and a value that its flag does not take."""
    values, classes = asked_of(program)
    if "--help" in words:
        return
    # A text may name a flag without a value: `bin/craft --examples`.
    named = [word for word in words if re.fullmatch(r"--\w+", word) and word[2:] in values]
    told = [word for word in words if word not in named or values[word[2:]].boolean]
    rest = flags.parse(values, [program, *told])
    assert rest == [], f"{rest[0]} is no flag"
    for flag in values:
        if isinstance(values[flag].value, str) and OPEN.search(values[flag].value):
            values[flag].value = None
    for each in classes:
        if all(flag_of(field.name) in values for field in dataclasses.fields(each)):
            flags.read(values, each)


@pytest.mark.parametrize("shown", SHOWN, ids=" ".join)
def test_a_command_has_flags_that_exist_and_values_that_they_take(shown):
    _, program, *words = shown
    check(program, words)


@pytest.mark.parametrize("shown", SCRIPTS, ids=" ".join)
def test_a_script_is_there_and_knows_its_flags(shown):
    page, script, *words = shown
    places = [ROOT / script, (ROOT / page).parent / script, *ROOT.glob(f"benchmarks/xla/{script}")]
    (path, *_) = [place for place in places if place.exists()]
    known = "".join(file.read_text("utf-8") for file in path.parent.glob("*.py"))
    for word in words[: words.index("--") if "--" in words else None]:
        if word.startswith("--"):
            name = word[2:].partition("=")[0]
            assert re.search(rf'"(?:--)?{name}"', known), f"{path.name} has no --{name}"


@pytest.mark.parametrize(
    ("program", "words", "says"),
    [
        ("train", ["--dataste=digits"], "dataste"),
        ("train", ["--loss=pivots"], "must be one of"),
        ("evaluate", ["--attack=pgd", "reports/a"], "no flag"),
        ("craft", ["--epsilons=1-16"], "epsilons"),
    ],
)
def test_a_command_that_is_wrong_is_found(program, words, says):
    with pytest.raises(Exception, match=says):
        check(program, words)


def test_commands_are_found_as_a_shell_would_run_them():
    code = """
A=saved/a B=saved/b      # two networks
TRAIN="bin/train --loss=pivot \\
    --steps=5"
for SEED in 0 1; do
  $TRAIN --seed=$SEED --name=a-$SEED; bin/export --run=runs/a
done
seq 0 3 | xargs -I{} cascade-prepare-data --dataset='mnist' | tee --append log   # --not=this
/usr/bin/time -v bin/evaluate --target=$A+$B,${A}     # --nor=this
python examples/own_cnn.py --epochs=2 &
my/bin/train --none=of-ours
"""
    assert list(commands_of(code)) == [
        ("train", ["--loss=pivot", "--steps=5", "--seed=$SEED", "--name=a-$SEED"]),
        ("export", ["--run=runs/a"]),
        ("prepare_data", ["--dataset=mnist"]),
        ("evaluate", ["--target=saved/a+saved/b,saved/a"]),
        ("examples/own_cnn.py", ["--epochs=2"]),
    ]


def test_the_pages_have_commands():
    """Nothing would fail either if none were found."""
    assert len({page for page, *_ in SHOWN}) >= 12
    assert {program for _, program, *_ in SHOWN} >= {"train", "evaluate", "craft", "analyze"}
    assert len(SHOWN) > 50 and len(SCRIPTS) > 20
