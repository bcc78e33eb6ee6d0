"""Which processes train together, and waiting for them."""

import json
import socket
import threading

import pytest

from cascade_keras import cluster
from cascade_keras.cluster import Cluster
from cascade_keras.errors import InputError

WORKERS = ["127.0.0.1:7000", "b:7001"]


def config(workers=WORKERS, kind="worker", index=0, **jobs):
    return {"cluster": {"worker": workers, **jobs}, "task": {"type": kind, "index": index}}


@pytest.mark.parametrize(
    ("given", "addresses", "index"),
    [
        (config(), WORKERS, 0),
        (config(index=1), WORKERS, 1),
        (config(chief=["c:1"], index=1), ["c:1", *WORKERS], 2),
        (config(chief=["c:1"], kind="chief"), ["c:1", *WORKERS], 0),
        (config(["[::1]:80"]), ["[::1]:80"], 0),
        (config(evaluator=["e:1"]), WORKERS, 0),
    ],
)
def test_tf_config_is_read_as_tensorflow_reads_it(given, addresses, index):
    found = cluster.of_environment({"TF_CONFIG": json.dumps(given)})
    assert found == Cluster(tuple(addresses), index) and found.is_chief == (index == 0)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("", "needs TF_CONFIG on each worker"),
        ("{", "must be such as"),
        ("[]", "must be such as"),
        ({"cluster": {"worker": ["a:1"]}}, "must be such as"),
        (config(index=2), r"worker 2; there are worker 0\.\.1"),
        (config(kind="evaluator"), "evaluator 0"),
        (config(ps=["p:1"]), "'ps'"),
        (config(["a", "b:1"]), "write host:port"),
        (config(["a:1", "a:1"]), "twice"),
        (config(chief=["a:1", "b:1"]), "2 chiefs"),
    ],
)
def test_what_is_no_cluster_is_refused(given, message):
    text = given if isinstance(given, str) else json.dumps(given)
    with pytest.raises(InputError, match=message):
        cluster.of_environment({"TF_CONFIG": text})


def free_ports(count):
    sockets = [socket.socket() for _ in range(count)]
    for each in sockets:
        each.bind(("127.0.0.1", 0))
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    return tuple(f"127.0.0.1:{port}" for port in ports)


def test_workers_meet_and_do_not_wait_for_ever(monkeypatch):
    monkeypatch.setattr(cluster, "_PATIENCE", 0.0)
    both = free_ports(2)
    said = []
    with pytest.raises(InputError, match=r"worker 1 .* did not answer for 0\.3 s") as refused:
        cluster.meet(Cluster(both, 0), 0.3, said.append)
    assert refused.value.setting == "worker_timeout"
    assert "waiting for worker 1" in said[0] and len(said) == 1
    met = threading.Barrier(2)

    def work(index):
        cluster.meet(Cluster(both, index), 60, said.append)
        # As TensorFlow's server, which takes the place of what has answered.
        with socket.create_server(("127.0.0.1", int(both[index].rpartition(":")[2]))):
            met.wait(60)

    threads = [threading.Thread(target=work, args=(index,)) for index in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(120)
    assert not met.broken and not any(thread.is_alive() for thread in threads)
    with (
        socket.create_server(("127.0.0.1", int(both[0].rpartition(":")[2]))),
        pytest.raises(InputError, match="cannot be used"),
    ):
        cluster.meet(Cluster(both, 0), 1, said.append)
