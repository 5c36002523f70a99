"""Two local processes over gloo: they start, they notice who is late or dead, and nothing waits for ever."""

import os
import signal
import socket
import subprocess
import sys
import time

import pytest

pytestmark = pytest.mark.multiprocess

MEMBER = """
import sys, time
import jax, jax.numpy as jnp, numpy as np
from mmjax.parallel import distributed, mesh as meshes
index, port, then = int(sys.argv[1]), sys.argv[2], sys.argv[3]
distributed.initialize(f"127.0.0.1:{port}", 2, index, timeout=20, heartbeat=10)
mesh = meshes.MeshShape(data=2, fsdp=-1).build()
rows = meshes.local_rows(mesh, 8)
local = np.arange(8, dtype=np.float32)[rows]
batch = jax.make_array_from_process_local_data(meshes.batch_sharding(mesh, 8), local)
total = jax.jit(lambda x: (x * x).sum(), out_shardings=jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec()))
print("rows", rows.start, rows.stop, "total", float(total(batch)), flush=True)
if then == "late" and index == 1:
    time.sleep(6)
    distributed.leave(3)
if then == "late":
    distributed.barrier("early", timeout=3)
if then == "killed":
    while True:
        total(batch).block_until_ready()
        time.sleep(0.05)
distributed.barrier("end", timeout=20)
"""


def free_port() -> int:
    with socket.create_server(("", 0)) as server:
        return server.getsockname()[1]


def start(index, port, then):
    return subprocess.Popen(
        [sys.executable, "-c", MEMBER, str(index), str(port), then],
        env=os.environ | {"JAX_PLATFORMS": "cpu", "XLA_FLAGS": "--xla_force_host_platform_device_count=2"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_two_processes_share_one_mesh_and_one_sum():
    port = free_port()
    both = [start(index, port, "end") for index in (0, 1)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] == [0, 0], ends
    # gloo prints a line of its own first
    assert [out.splitlines()[-1] for out, _ in ends] == ["rows 0 4 total 140.0", "rows 4 8 total 140.0"]


def test_a_barrier_names_the_process_that_does_not_come():
    port = free_port()
    both = [start(index, port, "late") for index in (0, 1)]
    ends = [process.communicate(timeout=60) for process in both]
    assert [process.returncode for process in both] != [0, 0]
    assert "TimeoutError: barrier 'early': missing after 3 s: process 1 on " in ends[0][1]


@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_peer_ends_the_other_within_its_heartbeat(victim):
    port = free_port()
    both = [start(index, port, "killed") for index in (0, 1)]
    for process in both:
        assert any(line.startswith("rows") for line in process.stdout)
    os.kill(both[victim].pid, signal.SIGKILL)
    killed = time.monotonic()
    _, errors = both[1 - victim].communicate(timeout=40)
    both[victim].communicate(timeout=5)
    assert both[1 - victim].returncode != 0, errors
    assert time.monotonic() - killed < 30
