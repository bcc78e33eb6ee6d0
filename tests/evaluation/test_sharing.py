"""Evaluations that workers share: whose batches, who waits for whom, the report of one process."""

import contextlib
import types

import numpy as np
import pytest
from support.files import tree
from test_suites import COUNT as IMAGES_OF_OWN
from test_suites import OWN, SMALL, plain, rounded
from test_tasks import CONFIG, IMAGES, LABELS, N, Squares

from cascade_keras import Evaluation, EvaluationSettings
from cascade_keras.errors import InputError
from cascade_keras.evaluation import pictures, report, sharing, tasks
from cascade_keras.evaluation.report import Report
from cascade_keras.evaluation.sharing import Parts, Sharing, owners
from cascade_keras.evaluation.stores import DiskArrays
from cascade_keras.sources import load_source
from cascade_keras.workers import Crew, counted, of_text


class Told:
    """What is filled with a task."""

    key, shape, dtype, missing, content = "pairs--told", (1,), "int32", -1, None
    indices = np.arange(N)[::-1]


class Pairs(Squares):
    """A task that fills two arrays, of costly batches."""

    further, cost = (Told(),), 9_000.0

    def start(self, networks):
        step = super().start(networks)

        def both(images, labels, first):
            found = step(images, labels, first)
            return [found, found[:1] + 100]

        return both


def make(follows=False):
    """What an evaluation of three tasks is, and of a fourth that may follow."""
    planned = [Squares("a", -1), Pairs("pairs", float("nan")), Squares("b", -1)]
    following = Squares("c", -1)
    following.cost = 10_000.0

    def follow(view):
        for task in planned:  # all of it has to be there
            assert not tasks.missing_batches(task, view)
        measuring.plan.following = [following] if follows else []

    measuring = types.SimpleNamespace(
        plan=types.SimpleNamespace(tasks=planned, following=[], clock=tasks.Clock()),
        networks=None, shown=(IMAGES, LABELS), may_follow=follows, follow=follow,
    )  # fmt: skip
    return measuring, [*planned, following]


def share(path, worker, follows=False, say=print, before=None, told=None, joins=True):
    """Be a worker; return what it says is left, and which batches of which tasks it computed."""
    measuring, every = make(follows)
    work = Sharing(measuring, of_text(worker))
    crew = Crew(path, of_text(worker))
    if before:
        before(every)

    def progress(done):
        if told is not None:
            told.append((done, work.work))

    with crew.joined(path) if joins else contextlib.nullcontext():
        sentence = work.run(Parts(DiskArrays(path), crew), crew, progress, say)
    return sentence, [(task.key, first) for task in every for first in task.batches]


BATCHES = [(key, first) for key in ("a", "pairs", "b") for first in range(0, N, 5)]
FOLLOWING = [("c", first) for first in range(0, N, 5)]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The arrays that one process fills."""
    path = tmp_path_factory.mktemp("alone")
    tasks.run(make()[1], None, DiskArrays(path), IMAGES, LABELS)
    return tree(path)


def collected(path):
    spent = Parts(DiskArrays(path), Crew(path)).collect()
    Crew(path).forget()
    return tree(path), spent


# Whose.


def test_each_batch_has_one_worker_and_all_as_much_to_do():
    planned, _ = make()
    found = owners(planned.plan.tasks, 2)
    assert sorted(found) == sorted(BATCHES) and found == owners(make()[0].plan.tasks, 2)
    pairs = [found["pairs", first] for first in range(0, N, 5)]
    assert pairs == [0, 1, 0, 1, 0]  # 45,000 gradients each but for the last, 27,000
    # Short tasks are not worth being begun by two.
    short = owners([Squares("a"), Squares("b")], 2)
    assert short == {("a", f): 0 for f in range(0, N, 5)} | {("b", f): 1 for f in range(0, N, 5)}
    costly = Squares("c")
    costly.cost = 600  # 13,800 in all, so that there are two parts
    assert [owners([costly], 9)["c", first] for first in range(0, N, 5)] == [0, 0, 0, 1, 1]
    alone = owners(planned.plan.tasks, 1)
    assert set(alone.values()) == {0}
    many = owners(planned.plan.tasks, 9_999)
    assert len({many["pairs", first] for first in range(0, N, 5)}) == 5 and max(many.values()) < 15


def test_what_keeps_its_images_is_not_shared():
    task = Pairs("kept")
    task.whole = True
    assert len(set(owners([task, Pairs("other")], 3).values())) == 3
    assert len({owners([task, Pairs("other")], 3)["kept", f] for f in range(0, N, 5)}) == 1


# Computed by several.


@pytest.mark.parametrize("order", [[0, 1], [2, 0, 1], [3, 20, 0, 2, 1, 4]], ids=len)
def test_workers_fill_the_arrays_of_one_process_and_nothing_twice(order, alone, tmp_path):
    count, seen = max(order) + 1, []
    for index in order if count < 10 else range(count):
        told = []
        sentence, computed = share(tmp_path, f"{index}/{count}", told=told)
        seen += computed
        assert told[-1][0] == told[-1][1] and told[0][0] == 0
        missing = len(BATCHES) - len(seen)
        assert sentence.startswith(
            counted(missing, "batch", "batches") + " missing" if missing else ""
        )
    assert sorted(seen) == sorted(BATCHES)
    found, spent = collected(tmp_path)
    assert found == {name: held for name, held in alone.items() if name.name != "c.npy"}
    assert spent == {"crafting": 0, "classifying": 0}


def test_killed_workers_are_gone_on_with_by_others(alone, tmp_path):
    killed = []

    def dies(every):
        killed.extend(every)
        every[1].dies = 15

    with pytest.raises(KeyboardInterrupt):
        share(tmp_path, "1/2", before=dies)
    (tmp_path / ".workers" / ".partial-1-00000000-part-a--0.npz").touch()
    seen = [(task.key, first) for task in killed for first in task.batches]
    assert ("pairs", 5) in seen and ("pairs", 15) not in seen
    for worker in ("1/3", "0/3"):
        sentence, computed = share(tmp_path, worker)
        seen += computed
    assert "2/3" in sentence
    _, every = make()  # and at last by one process
    collected(tmp_path)
    tasks.run(every, None, DiskArrays(tmp_path), IMAGES, LABELS)
    seen += [(task.key, first) for task in every for first in task.batches]
    assert sorted(seen) == sorted(BATCHES + FOLLOWING) and tree(tmp_path) == alone


def test_what_follows_is_computed_once_all_are_there(alone, tmp_path, monkeypatch):
    """A worker that is done waits for one at work; then each takes what the other does not."""
    said, seen, third = [], [], []

    def sleep(seconds):
        """Another ends its share, which the first has been waiting for."""
        monkeypatch.setattr(sharing.time, "sleep", lambda seconds: pytest.fail("waits again"))
        seen.extend(share(tmp_path, "1/2", True, before=look_in, joins=False)[1])

    def look_in(every):
        """And a third comes by as the other computes the first batch of what follows."""
        start = every[-1].start

        def start_and_look(networks):
            step = start(networks)

            def looked(*batch):
                if not third:
                    third.extend(share(tmp_path, "0/2", True, joins=False))
                return step(*batch)

            return looked

        every[-1].start = start_and_look

    monkeypatch.setattr(sharing.time, "sleep", sleep)
    with Crew(tmp_path, of_text("1/2")).joined(tmp_path):
        sentence, own = share(tmp_path, "0/2", True, said.append)
    assert said == ["waits for what workers are computing, as attacks may follow: 1/2"]
    found, computed = third
    assert found.startswith("of attacks that follow 1 batch is missing; other workers")
    assert sentence == "" and sorted(own + seen + computed) == sorted(BATCHES + FOLLOWING)
    assert [key for key, _ in computed] == ["c"] * 4 and ("c", 10) in seen
    assert collected(tmp_path)[0] == alone


def test_nobody_waits_for_a_worker_that_is_not_at_work(tmp_path, monkeypatch):
    monkeypatch.setattr(sharing.time, "sleep", lambda seconds: pytest.fail("waits"))
    sentence, _ = share(tmp_path, "1/3", follows=True)
    assert "; the same command with --worker=0/3 and so on, or without --worker" in sentence
    with Crew(tmp_path, of_text("0/3")).joined(tmp_path):  # but 2/3 is not
        sentence, computed = share(tmp_path, "1/3", follows=True)
    assert ", at work), 2/3 (" in sentence and computed == []
    share(tmp_path, "2/3", follows=True)
    with Crew(tmp_path, of_text("0/3")).joined(tmp_path):  # and nothing follows
        sentence, computed = share(tmp_path, "1/3")
    assert sentence.endswith(", at work)") and computed == []


def test_of_two_that_begin_a_report_at_once_the_second_has_to_want_the_same(tmp_path, monkeypatch):
    write = report.write_json

    def after_another(file, content, **options):
        write(file, {**content, "seed": CONFIG["seed"] + seed})
        write(file, content, **options)

    monkeypatch.setattr(report, "write_json", after_another)
    seed = 0
    with Report(tmp_path / "same").opened(CONFIG, of_text("0/2")):
        seed = 1
        with (
            pytest.raises(InputError, match=r"^seed: .* was made with"),
            Report(tmp_path / "other").opened(CONFIG, of_text("0/2")),
        ):
            pass


@pytest.mark.parametrize("harm", ["cut", "text", "shape", "type"])
def test_a_damaged_batch_is_refused_by_name(harm, tmp_path):
    share(tmp_path, "0/2")
    file = sorted((tmp_path / ".workers").glob("part-pairs--*.npz"))[0]
    with np.load(file) as held:
        arrays = dict(held)
    if harm == "cut":
        file.write_bytes(file.read_bytes()[:-30])
    else:
        changed = {
            "text": {"header": np.array("{}")},
            "shape": {"0": arrays["0"][:1]},
            "type": {"1": arrays["1"].astype("int64")},
        }
        np.savez(file, **{**arrays, **changed[harm]})
    with pytest.raises(InputError, match=rf"^output: {file} is damaged; remove it to compute"):
        collected(tmp_path)


# Evaluations.


def evaluation(path, worker=None, images_dir=None, networks=(plain,), **changes):
    asked = {
        "attack": ["step_fgsm"], "epsilon": [4, 12], "num_images": IMAGES_OF_OWN, "batch_size": 12,
        "diagnosis_images": 0, **changes,
    }  # fmt: skip
    settings = EvaluationSettings(
        target=["x"], output=str(path / "report"), worker=worker, images_dir=images_dir, **asked
    )
    names = {function: function.__name__ for function in networks}
    targets = [load_source(f, name=name, weights_hash=name) for f, name in names.items()]
    return Evaluation(settings, targets=targets, dataset=OWN)


def files(path):
    return {name: held for name, held in tree(path).items() if name.name != "seconds.json"}


def test_two_workers_end_with_the_report_of_one_process(tmp_path, monkeypatch):
    monkeypatch.setattr(pictures, "draw_accuracies", lambda *_: None)
    whole = evaluation(tmp_path / "one").run()
    place = tmp_path / "two"
    first, second = (evaluation(place, worker) for worker in ("0/2", "1/2"))
    assert first.run() is None and first.left.endswith("makes what nobody is at work on")
    assert not (place / "report" / "report.json").exists()
    second.report.compare(config := second.measuring.plan.config())
    with (
        pytest.raises(InputError, match=r"^seed: .* was made with 0, now it is 1"),
        second.report.opened(config | {"seed": 1}, of_text("1/2")),
    ):
        pass
    with pytest.raises(InputError, match=r"^batch_size: auto would be another number for each"):
        evaluation(tmp_path / "three", "1/2", batch_size="auto")

    def meanwhile(done):
        for worker, message in (
            ("1/2", "output: .* worker 1/2 is at work already"),
            ("0/3", "output: .* worker 1/2 is at work, one of 2"),
            (None, "output: .* is in use by another process"),
        ):
            with (
                pytest.raises(InputError, match=message),
                second.report.opened(config | {"versions": {}}, of_text(worker)),
            ):
                pass

    assert second.run(meanwhile) == whole and second.left == ""
    assert files(place) == files(tmp_path / "one")
    assert not (place / "report" / "predictions" / ".workers").exists()
    assert first.work + second.work == second.measuring.plan.work
    assert second.seconds.crafting > 0


ALL = {
    "attack": ["step_ll", "autoattack", "cw_linf"], "autoattack_iterations": SMALL["iterations"],
    "queries": SMALL["queries"], "cw_images": 2, "cw_iterations": 5, "diagnosis_images": 20,
    "pgd_steps": 3, "pgd_restarts": 1, "confusion": True, "examples": 1,
    "networks": (plain, rounded),
}  # fmt: skip


@pytest.fixture(scope="module")
def all_of_one(tmp_path_factory):
    """The directory of one process, and what its report holds."""
    place = tmp_path_factory.mktemp("one")
    return place, evaluation(place, images_dir=str(place / "images"), **ALL).run()


@pytest.mark.long
@pytest.mark.parametrize("order", [["1/2", "0/2"], ["0/4", None]], ids=str)
def test_all_attacks_by_workers_end_with_the_report_of_one_process(order, all_of_one, tmp_path):
    """With what follows the diagnosis, and minimal epsilons that begin at AutoAttack's images."""
    one, report = all_of_one
    # Attacks whose images are kept are not divided.
    images = str(tmp_path / "images") if None in order else None
    for worker in order:
        found = evaluation(tmp_path, worker, images, **ALL).run()
    assert found == report and [record for record in report["stages"] if "went_on" in record]
    expected = {k: v for k, v in files(one).items() if images or k.parts[0] != "images"}
    assert files(tmp_path) == expected
