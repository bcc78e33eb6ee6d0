"""Doing the plan: in order, stopped and gone on with, one job or several at a time."""

import errno
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import time

import pytest
from support.files import ROOT
from support.reproductions import Programs, write_run

from cascade_keras.cli import reproduce
from cascade_keras.errors import InputError, TrainingDiverged
from cascade_keras.reproduction import pages
from cascade_keras.reproduction import reproduction as module
from cascade_keras.reproduction.outcomes import Outcome
from cascade_keras.reproduction.plan import Plan
from cascade_keras.reproduction.reproduction import Reproduction
from cascade_keras.reproduction.settings import ReproductionSettings


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """Stand-ins for all programs, and for what writes pages, in a folder of their own."""
    monkeypatch.chdir(tmp_path)
    found = Programs()
    monkeypatch.setattr(module, "_forget_graphs", lambda: None)  # of which there are none
    for name in module.RUNNERS:
        monkeypatch.setitem(module.RUNNERS, name, found)

    def write(job, plan):
        found = {need: plan.now(need) for need in job.needs}
        made = {
            need: each.words() if isinstance(each, Outcome) else json.loads(each.result.read_text())
            for need, each in found.items()
            if isinstance(each, Outcome) or each.done
        }
        job.result.write_text(json.dumps(made))
        return job.result

    monkeypatch.setattr(pages, "write", write)
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


# What fails, and what diverges.

MEASURED = [f"table8-{call}-s0" for call in ("one_step", "iterative")]
TABLE_8 = ["init-B-s0", "R20-s0", "R20_K-s0", "R20_P-s0", *MEASURED]


def sources_of(job):
    return [path.rpartition("/")[2] for path in job.settings.source]


def test_a_job_that_fails_leaves_the_others(programs):
    programs.errors = {
        "R20_K-s0": InputError("is too large", "batch_size"),
        "table9-iterative-s0": RuntimeError("a bug\nof two lines"),
    }
    one, _ = run(table=[8, 9])
    found = one.run()
    # What needs no lost network is done, the rest of the others.
    assert programs.ran[:4] == TABLE_8[:4] and {*MEASURED, "R20_P2-s0"} < {*programs.ran}
    assert [path.name for path in found.pages] == ["table8.json", "table9.json"]
    assert [(each.job, each.words()) for each in found.failed] == [
        ("R20_K-s0", "failed: batch_size: is too large"),
        ("table9-iterative-s0", "failed: a bug"),
    ]
    assert found.failed[0].command == list(one.plan.job("R20_K-s0").command)
    log = pathlib.Path("reproduction", found.failed[1].log).read_text()
    assert "RuntimeError: a bug" in log and "Traceback" in log
    assert found.diverged == found.left_out == ()
    reduced = one.plan.now("table8-one_step-s0")
    assert sources_of(reduced) == [name for name in TABLE_8[1:4] if name != "R20_K-s0"]
    assert reduced.settings.target == tuple(
        path for path in one.plan.job(reduced.name).settings.target if "R20_K-s0" not in path
    )
    assert reduced.done and not one.plan.job("table8-one_step-s0").done
    assert not any(page.stamp.exists() for page in one.plan.pages)
    # Once more: those that failed, and nothing of the others.
    programs.ran = []
    run(table=[8, 9])[0].run()
    assert programs.ran == ["R20_K-s0", "table9-iterative-s0"]
    programs.ran, programs.errors = [], {}
    mended, _ = run(table=[8, 9])
    assert mended.run().failed == ()
    assert programs.ran[0] == "R20_K-s0" and len(programs.ran) == 5
    assert all(page.stamp.exists() for page in mended.plan.pages)
    run("whole", table=[8, 9])[0].run()
    for name in ("table8.json", "table9.json"):
        text = pathlib.Path("reproduction", name).read_text()
        assert text == pathlib.Path("whole", name).read_text().replace("whole/", "reproduction/")


def test_what_needs_a_network_that_failed_is_left_out(programs):
    programs.errors["R20_P-s0"] = MemoryError("none left")
    one, said = run(table=[3], depth=20)
    found = one.run()
    assert [each.words() for each in found.failed] == ["failed: none left"]
    # Whose cascade images come from it.
    assert found.left_out == ("bank-R20_P-s0", "R20_K-C-s0", "R20_P-C-s0")
    assert "R20_P-C-s0 is not done: needs R20_P-s0, which failed: none left" in said
    assert {"R20_K-s0", "R20_P-E-s0", "table3-one_step-s0"} < {*programs.ran}
    assert {*found.left_out}.isdisjoint(programs.ran)


def test_what_is_wrong_with_the_machine_ends_all(programs):
    for error in (InputError("not there", "data_dir"), OSError(errno.ENOSPC, "full")):
        programs.ran, programs.errors = [], {"R20-s0": error}
        one, _ = run(table=[8])
        with pytest.raises(type(error)):
            one.run()
        assert programs.ran[-1] == "R20-s0" and not pathlib.Path("reproduction/outcomes").exists()


def test_a_training_that_diverges_is_a_result(programs):
    lost = "R20_P-lambda0.3-s0"
    programs.errors[lost] = TrainingDiverged("the loss is nan at step 7", 7)
    one, said = run(figure=[5])
    found = one.run()
    assert [(each.job, each.words()) for each in found.diverged] == [(lost, "diverged at step 7")]
    assert found.failed == ()
    assert f"{lost}: diverged at step 7: the loss is nan at step 7" in said
    drawn = one.plan.now("figure5-s0")
    assert drawn.done and lost not in str(drawn.settings.model)
    assert len(drawn.settings.model) == len(one.plan.job("figure5-s0").settings.model) - 1
    # It is neither tried again nor drawn again, and the same is said of it.
    programs.ran = []
    again, said = run(figure=[5])
    assert again.run().diverged == found.diverged and programs.ran == []
    assert said[0].startswith("reproduction: 1 jobs to do")
    # Until that is asked for.
    programs.errors = {}
    asked, _ = run(figure=[5], retry_diverged=True)
    assert asked.run().diverged == () and programs.ran == [lost, "figure5-s0"]
    programs.ran = []
    assert run(figure=[5])[0].run().diverged == () and programs.ran == []


def test_too_few_networks_are_not_measured(programs):
    names = ["R20_P-s0", "R20-s0", "R20_K-s0"]
    programs.errors = {name: TrainingDiverged("nan", step) for step, name in enumerate(names, 1)}
    one, _ = run(table=[8], figure=[6])
    found = one.run()
    assert [each.step for each in found.diverged] == [2, 3, 1]
    assert {"table8-one_step-s0", "table8-iterative-s0", "figure6-20-s0"} <= {*found.left_out}
    assert not {*found.left_out} & {*programs.ran}
    page = json.loads(pathlib.Path("reproduction/table8.json").read_text())
    assert page["table8-one_step-s0"].startswith("needs R20")


def test_the_program_lists_what_failed(programs, capsys):
    programs.errors = {"R20_K-s0": InputError("is too large", "batch_size"),
                       "R20_P-s0": TrainingDiverged("nan", 3)}  # fmt: skip
    assert reproduce.main(["reproduce", "--table=8"]) == 1
    assert capsys.readouterr().out.endswith(
        "R20_P-s0 diverged at step 3; --retry_diverged trains it once more\n"
        "R20_K-s0 failed: batch_size: is too large\n"
        "  bin/train --recipe=R20_K --runs_dir=reproduction/runs --noexport --eval_attacks=none "
        "--tensorboard=scalars\n"
        "  log: reproduction/logs/R20_K-s0.log\n"
        "failed: 1 jobs; the same command tries them again\n"
    )
    programs.errors.popitem()
    programs.errors.clear()
    assert reproduce.main(["reproduce", "--table=8"]) == 0


def test_two_scales_do_not_meet_in_one_folder(programs):
    """Stamps of the one do not vouch for reports of the other."""
    run(table=[8])[0].run()
    first = json.loads(pathlib.Path("reproduction/table8.json").read_text())
    other = ReproductionSettings(table=[8], scale=0.2)
    with pytest.raises(InputError, match="was trained with steps 9400, here it is 18800"):
        Reproduction(other, say=print).run()
    pathlib.Path("reproduction/runs").rename("elsewhere")
    Reproduction(other, say=print).run()
    second = json.loads(pathlib.Path("reproduction/table8.json").read_text())
    assert programs.ran == TABLE_8 * 2
    # Of the first scale all is there still; its networks are not needed for its page.
    assert [job.kind for job in run(table=[8])[0].plan.left()] == ["page"]
    run(table=[8])[0].run()
    assert json.loads(pathlib.Path("reproduction/table8.json").read_text()) == first != second
    # So it is of reports of other images.
    pathlib.Path("reproduction/runs").rename("other")
    pathlib.Path("elsewhere").rename("reproduction/runs")
    programs.ran = []
    for count, ran in ((50, 2), (None, 2), (50, 2), (51, 4)):
        run(table=[8], num_images=count)[0].run()
        assert programs.ran == MEASURED * (ran // 2)


# One job alone, as workflow engines call it.


def only(*flags):
    return reproduce.main(["reproduce", "--table=8", *flags])


def test_one_job_alone(programs, capsys):
    assert only("--only=R20_P-s0") == 2
    assert "--only: R20_P-s0 needs init-B-s0, which is not done" in capsys.readouterr().err
    assert only("--only=R20_X-s0") == 2
    assert "--only: there is no job R20_X-s0; --dry_run lists them" in capsys.readouterr().err
    assert only("--only=R20-s0", "--retry_diverged") == 2
    assert "--retry_diverged: is of all jobs" in capsys.readouterr().err
    for name in (*TABLE_8, "table8"):
        assert only(f"--only={name}") == 0
    assert programs.ran == TABLE_8
    plan = Plan(ReproductionSettings(table=[8]))
    assert [job.kind for job in plan.left()] == ["page"] and plan.pages[0].stamp.exists()


def test_one_job_alone_that_fails_or_diverges(programs, capsys):
    programs.errors = {"R20_K-s0": ValueError("no"), "R20_P-s0": TrainingDiverged("nan", 3)}
    assert [only(f"--only={name}") for name in TABLE_8[:4]] == [0, 0, 1, 0]
    assert "R20_K-s0 failed: no\n" in capsys.readouterr().out
    # A page of what is there; then, the failed one mended, all but what diverged.
    assert only("--only=table8") == 1
    programs.errors.pop("R20_K-s0")
    assert [only(f"--only={name}") for name in TABLE_8] == [0] * 6
    assert programs.ran.count("R20_P-s0") == 1 and programs.ran.count("R20_K-s0") == 2
    plan = Plan(ReproductionSettings(table=[8]))
    assert not plan.lacks(plan.job("table8"))
    assert [job.kind for job in plan.left()] == ["page"]


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
    status = 2 if "--data_dir" in fail.read_text() else 1
    if "another" in fail.read_text():
        fail.unlink()
    sys.exit(status)
"""


@pytest.fixture
def children(programs, monkeypatch):
    def start(job, settings, log):
        fail = pathlib.Path("fail")
        if not (fail.exists() and fail.read_text().startswith(f"{job.name} ")):
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


def test_what_no_job_can_do_without_ends_all(children):
    pathlib.Path("fail").write_text("R20-s0 train: --data_dir: not there")
    one, _ = run(table=[1], jobs=2)
    with pytest.raises(InputError, match=r"R20-s0 ended with 2, see .*R20-s0\.log: train: --data"):
        one.run()
    assert "table1-one_step-s0" not in children.ran


def test_one_of_several_that_fails_leaves_the_others(children):
    pathlib.Path("fail").write_text("R20-s0 Killed")
    one, _ = run(table=[1], jobs=2)
    found = one.run()
    assert [path.name for path in found.pages] == ["table1.json"]
    (failed,) = found.failed
    assert failed.job == "R20-s0" and failed.log == "logs/R20-s0.log"
    assert re.search(r"failed: ended with 1, see .*R20-s0\.log: Killed", failed.words())
    assert "R20-s0" not in sources_of(one.plan.now("table1-one_step-s0"))
    assert "table1-one_step-s0" in children.ran
    pathlib.Path("fail").unlink()
    assert run(table=[1], jobs=2)[0].run().failed == ()
    assert run(table=[1])[0].plan.pages[0].stamp.exists()


def test_the_program_of_one_job():
    settings = ReproductionSettings(table=[8], data_dir="nowhere", all=True, seeds=[1])
    assert settings.doing("R20-s1") == (
        "reproduce", "--table=8", "--all", "--seeds=1", "--data_dir=nowhere", "--only=R20-s1",
    )  # fmt: skip


def test_a_run_that_is_still_in_use_is_waited_for(children):
    pathlib.Path("fail").write_text("R20-s0 train: --name: R20-s0 is in use by another process")
    one, said = run(table=[8], jobs=2)
    assert [path.name for path in one.run().pages] == ["table8.json"]
    assert pathlib.Path("events").read_text().count("+R20-s0\n") == 2
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
