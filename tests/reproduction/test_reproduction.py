"""Doing the plan: in order, stopped and gone on with, one job or several at a time."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest
from support.files import ROOT
from support.reproductions import Programs, write_run

from cascade_keras.cli import reproduce
from cascade_keras.errors import InputError
from cascade_keras.reproduction import reproduction as module
from cascade_keras.reproduction.reproduction import Reproduction
from cascade_keras.reproduction.settings import ReproductionSettings


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for all programs, and for what writes pages, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    found = Programs()
    for name in module.RUNNERS:
        monkeypatch.setitem(module.RUNNERS, name, found)

    def write(self, job):
        made = {need: json.loads(self.plan.job(need).result.read_text()) for need in job.needs}
        job.result.write_text(json.dumps(made))
        job.mark()
        return job.result

    monkeypatch.setattr(Reproduction, "write", write)
    return found


def run(output="reproduction", **options):
    settings = ReproductionSettings(output=output, scale=0.1, **options)
    said = []
    return Reproduction(settings, say=said.append), said


def test_each_job_is_done_once_and_in_order(programs):
    one, said = run(table=[1, 8], seeds=[0, 1])
    found = one.run()
    assert [path.name for path in found.pages] == ["table1.json", "table8.json"]
    assert found.stopped_by is None
    expected = [job.name for job in one.plan.jobs if job.kind != "page"]
    assert programs.ran == expected and len(set(expected)) == len(expected)
    assert said[0] == f"reproduction: {len(one.plan.jobs)} jobs to do, 0 done before or not needed"
    again, said = run(table=[1, 8], seeds=[0, 1])
    assert again.run().pages == found.pages and programs.ran == expected
    assert "2 jobs to do" in said[0]
    # One more seed, and a table that shares networks, take what is there.
    more, _ = run(table=[1, 9], seeds=[0])
    more.run()
    assert programs.ran[len(expected) :] == ["R20_P2-s0", "table9-one_step-s0",
                                             "table9-iterative-s0"]  # fmt: skip


def test_killed_at_each_job_it_ends_with_the_same(programs):
    whole, _ = run("whole", table=[8])
    whole.run()
    expected, count = list(programs.ran), len(programs.ran)
    for killed in range(count):
        programs.ran, programs.killed_in = [], killed
        output = f"killed{killed}"
        with pytest.raises(KeyboardInterrupt):
            run(output, table=[8])[0].run()
        assert programs.ran == expected[:killed]
        run(output, table=[8])[0].run()
        assert programs.ran == expected
        text = pathlib.Path(output, "table8.json").read_text()
        assert text.replace(output, "whole") == pathlib.Path("whole/table8.json").read_text()


def test_a_training_that_was_stopped_stops_all(programs, monkeypatch, capsys):
    def stopped(job, say):
        return signal.SIGTERM if job.name == "R20_K-s0" else programs(job, say)

    monkeypatch.setitem(module.RUNNERS, "train", stopped)
    assert reproduce.main(["reproduce", "--table=8"]) == 128 + signal.SIGTERM
    said = capsys.readouterr().out
    assert said.endswith("stopped in R20_K-s0; the same command goes on from there\n")
    assert programs.ran == ["init-B-s0", "R20-s0"]


def test_what_is_in_the_way_is_said_before_anything_is_done(programs):
    one, _ = run(table=[8])
    write_run(one.plan.job("R20_P-s0").settings.replace(learning_rate=1.0))
    with pytest.raises(InputError, match="trained with learning_rate 1"):
        one.run()
    assert programs.ran == []


def test_two_processes_do_not_work_in_one_folder(programs, tmp_path):
    one, _ = run(table=[8])
    pathlib.Path("reproduction").mkdir()
    code = (
        "import sys, pathlib; from cascade_keras.files import hold;"
        "held = hold(pathlib.Path('reproduction'), ''); print('held', flush=True); sys.stdin.read()"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE,
                          stdout=subprocess.PIPE, env=environment) as other:  # fmt: skip
        other.stdout.readline()
        with pytest.raises(InputError, match="reproduction is in use by another process"):
            one.run()
        other.stdin.close()
    assert programs.ran == []


# Several at a time: what is started is a short program that says when it began and ended.

CHILD = """
import pathlib, sys, time
name = sys.argv[1]
with open("events", "a") as events:
    events.write(f"+{name}\\n")
time.sleep(0.1)
with open("events", "a") as events:
    events.write(f"-{name}\\n")
fail = pathlib.Path("fail")
if fail.exists() and fail.read_text().startswith(name + " "):
    print(fail.read_text().partition(" ")[2])
    if "another" in fail.read_text():
        fail.unlink()
    sys.exit(2)
"""


@pytest.fixture
def children(programs, monkeypatch):
    def start(job, log):
        programs(job, print)
        with open(log, "ab") as file:
            return subprocess.Popen([sys.executable, "-c", CHILD, job.name], stdout=file)

    monkeypatch.setattr(module, "_start", start)
    monkeypatch.setattr(module, "_POLL_SECONDS", 0.01)
    return programs


def test_two_at_a_time_never_before_what_they_need(children):
    one, _ = run(table=[1], jobs=2)
    found = one.run()
    assert [path.name for path in found.pages] == ["table1.json"]
    running, most, ended = set(), 0, set()
    for event in pathlib.Path("events").read_text().splitlines():
        name = event[1:]
        if event[0] == "-":
            running.remove(name)
            ended.add(name)
            continue
        assert set(one.plan.job(name).needs) <= ended
        running.add(name)
        most = max(most, len(running))
    assert most == 2 and len(ended) == len(one.plan.jobs) - 1
    assert run(table=[1])[0].plan.left()[0].kind == "page"


def test_a_job_that_fails_ends_all_with_its_last_line(children):
    pathlib.Path("fail").write_text("R20-s0 train: --data_dir: not there")
    one, _ = run(table=[1], jobs=2)
    with pytest.raises(InputError, match=r"R20-s0 ended with 2, see .*R20-s0\.log: train: --data"):
        one.run()
    assert "table1-one_step-s0" not in children.ran


def test_a_run_that_is_still_in_use_is_waited_for(children):
    pathlib.Path("fail").write_text("R20-s0 train: --name: R20-s0 is in use by another process")
    one, said = run(table=[8], jobs=2)
    assert [path.name for path in one.run().pages] == ["table8.json"]
    assert children.ran.count("R20-s0") == 2
    assert any(line.startswith("R20-s0: done, ") for line in said)


def test_what_runs_is_ended_with_it(children, monkeypatch):
    started = []
    start = module._start
    monkeypatch.setattr(module, "_start", lambda *job: started.append(start(*job)) or started[-1])

    def interrupted(seconds):
        raise KeyboardInterrupt

    monkeypatch.setattr(module.time, "sleep", interrupted)
    one, _ = run(table=[1], jobs=2)
    with pytest.raises(KeyboardInterrupt):
        one.run()
    assert [child.returncode for child in started] == [-signal.SIGTERM] * 2


def test_programs_end_with_the_one_that_started_them(tmp_path):
    """A child is terminated when its parent is killed."""
    code = """
import subprocess, sys, time
from cascade_keras.reproduction import reproduction
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"],
                         preexec_fn=reproduction._dying_with_parent())
print(child.pid, flush=True)
time.sleep(60)
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    parent = subprocess.Popen(
        [sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment, text=True
    )
    child = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    for _ in range(200):
        if not pathlib.Path(f"/proc/{child}").exists() or _is_zombie(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child lives on")


def _is_zombie(pid):
    return ") Z" in pathlib.Path(f"/proc/{pid}/stat").read_text()
