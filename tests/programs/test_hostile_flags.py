"""No flag takes what its type forbids: see support/hostile.py; tests/sweeps/flags.py says more."""

import pytest
from support import hostile


@pytest.mark.parametrize("program", hostile.PROGRAMS)
def test_every_flag_refuses_in_one_line_what_its_type_forbids(program, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    cases = list(hostile.cases(program))
    assert len(cases) >= 10 * len({case.flag for case in cases})
    problems = {case.name: hostile.run(case, tmp_path) for case in cases}
    assert {name: problem for name, problem in problems.items() if problem} == {}
