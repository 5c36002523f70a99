"""Processes find each other, or each of them says who is missing. Threads stand for processes: no JAX is involved."""

import socket
import threading
import time

import pytest

from mmjax.parallel import distributed, roll_call
from mmjax.parallel.roll_call import Membership

HOST = socket.gethostname()


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def call(members, timeout=1.0):
    """What each member's roll call ended with: None, or its error."""
    ends = {}

    def one(index, member):
        try:
            ends[index] = roll_call.hold(member, timeout)
        except (OSError, ValueError) as error:  # TimeoutError and ConnectionError are OSErrors
            ends[index] = error

    threads = [threading.Thread(target=one, args=item) for item in enumerate(members)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return [ends[index] for index in range(len(members))]


def members(count, ids, **fields):
    address = f"127.0.0.1:{free_port()}"
    return [Membership(address, count, index, **fields) for index in ids]


def test_all_present_go_on_and_the_port_is_free_again():
    group = members(4, [2, 0, 3, 1])
    assert call(group, 10.0) == [None] * 4
    socket.create_server(("", group[0].address[1])).close()


def test_everyone_present_hears_who_is_late_and_on_which_host():
    started = time.monotonic()
    ends = call(members(4, [0, 2], hosts=("pod",) * 4))
    assert time.monotonic() - started < 5
    for end in ends:
        assert isinstance(end, TimeoutError)
        assert "still missing: process 1 on pod, process 3 on pod; present: process 0 on" in str(end)
        assert f"process 2 on {HOST}" in str(end)


def test_an_unreachable_coordinator_is_named():
    (end,) = call(members(2, [1]))
    assert isinstance(end, ConnectionError)
    assert "process 1 on" in str(end)
    assert "cannot reach the coordinator 127.0.0.1:" in str(end)
    assert "this address means this machine itself" in str(end)
    (end,) = call([Membership("no-such-host.invalid:8476", 2, 1)])
    assert "cannot reach the coordinator no-such-host.invalid:8476" in str(end)


def test_a_loopback_coordinator_is_refused_where_the_run_spans_hosts():
    (end,) = call([Membership("127.0.0.1:8476", 2, 1, hosts=("a", "b"))])
    assert isinstance(end, ValueError)
    assert "means this machine itself, but process 0 runs on a" in str(end)


@pytest.mark.parametrize(
    ("ids", "counts", "message"),
    [
        ([0, 1, 1], [3, 3, 3], "both call as process 1"),
        ([0, 1], [2, 3], "as process 1 of 3, but process 0 expects 2 processes"),
    ],
)
def test_contradicting_processes_are_told(ids, counts, message):
    address = f"127.0.0.1:{free_port()}"
    ends = call([Membership(address, count, index) for index, count in zip(ids, counts, strict=True)], 3.0)
    assert len(ends) == len(ids)
    for end in ends:
        assert message in str(end)


def test_a_stray_connection_does_not_count_as_a_process():
    group = members(2, [0, 1])
    threading.Timer(0.2, lambda: socket.create_connection(group[0].address).close()).start()
    zero = threading.Thread(target=roll_call.hold, args=(group[0], 10.0))
    zero.start()
    time.sleep(0.5)
    assert zero.is_alive()
    roll_call.hold(group[1], 10.0)
    zero.join(5)
    assert not zero.is_alive()


def test_a_port_in_use_is_one_sentence():
    with socket.create_server(("", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(ValueError, match=f"process 0 cannot listen at port {port}"):
            roll_call.hold(Membership(f"127.0.0.1:{port}", 2, 0), 1.0)


def test_flags_win_over_variables_and_an_empty_environment_is_one_process():
    variables = {"MMJAX_COORDINATOR": "h:1", "MMJAX_NUM_PROCESSES": "4", "MMJAX_PROCESS_ID": "3"}
    assert distributed.membership(environment=variables) == Membership("h:1", 4, 3)
    assert distributed.membership("g:2", process_id=0, environment=variables) == Membership("g:2", 4, 0)
    assert distributed.membership(environment={}) is None


@pytest.mark.parametrize(
    ("arguments", "environment", "message"),
    [
        ({"coordinator": "h:1"}, {}, r"add --num-processes \(or MMJAX_NUM_PROCESSES\) and --process-id"),
        ({"coordinator": "h:1", "num_processes": 2, "process_id": 2}, {}, "process_id must be from 0 to .* = 1, got 2"),
        ({}, {"MMJAX_PROCESS_ID": "first"}, "MMJAX_PROCESS_ID must be a whole number, got 'first'"),
    ],
)
def test_half_a_description_says_what_is_missing(arguments, environment, message):
    with pytest.raises(ValueError, match=message):
        distributed.membership(**arguments, environment=environment)


def test_a_coordinator_without_a_port_is_refused():
    with pytest.raises(ValueError, match="coordinator must be HOST:PORT, such as .*, got 'node7'"):
        roll_call.hold(Membership("node7", 2, 1), 1.0)


def test_slurm_tells_coordinator_place_and_hosts(monkeypatch):
    variables = {
        "SLURM_JOB_ID": "4097",
        "SLURM_STEP_NODELIST": "node[07-08]",
        "SLURM_NTASKS": "4",
        "SLURM_PROCID": "2",
        "SLURM_LOCALID": "0",
    }
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    member = distributed.membership()
    assert (member.coordinator, member.num_processes, member.process_id) == (f"node07:{65535 - 2**12 + 2}", 4, 2)
    assert member.hosts == ("node07", "node07", "node08", "node08")


def test_slurm_host_lists_unfold():
    assert distributed.slurm_hosts("node[01-03,7],login") == ["node01", "node02", "node03", "node7", "login"]
    assert distributed.slurm_hosts("a1,b[10-11]") == ["a1", "b10", "b11"]
