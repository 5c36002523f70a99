"""Several processes, one run: who belongs to it, and meeting points that cannot hang.

    initialize()            on every host of a TPU slice, or in every task of `srun`: the environment says who is who
    initialize("10.0.0.1:8476", num_processes=2, process_id=0)                                       plain processes

A roll call (roll_call.py) comes before JAX starts. From then on JAX's heartbeats watch the peers: where one dies, the
others end after at most `heartbeat` seconds, whatever they wait for, and the checkpoints stay as they are.
"""

import json
import logging
import os
import re
import socket
import sys
from collections.abc import Mapping
from typing import Any

import jax

from mmjax.parallel import roll_call
from mmjax.parallel.roll_call import Membership

log = logging.getLogger(__name__)
VARIABLES = {
    "coordinator": "MMJAX_COORDINATOR",
    "num_processes": "MMJAX_NUM_PROCESSES",
    "process_id": "MMJAX_PROCESS_ID",
}
SHUTDOWN_SECONDS = 60  # how long a process that has ended waits for the others to end
SAID_SECONDS = 600  # how long a process waits for a word of process 0
_met: dict[str, int] = {}  # meeting point -> how often this process was there: JAX takes an id once


def initialize(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    timeout: float = 300.0,
    heartbeat: int = 60,
) -> None:
    """Joins the run that the arguments, the MMJAX_* variables, Slurm, Open MPI or the TPU slice describe, if any.

    Call it before the first use of a device. timeout: seconds until a late process or an unreachable coordinator is an
    error that names it; heartbeat: seconds until a silent peer counts as dead and this process ends.
    """
    member = membership(coordinator, num_processes, process_id, timeout=timeout)
    if member is None or member.num_processes == 1:
        return
    roll_call.hold(member, timeout)
    jax.distributed.initialize(
        member.coordinator,
        member.num_processes,
        member.process_id,
        local_device_ids=member.local_device_ids,
        cluster_detection_method="deactivate",
        initialization_timeout=60,  # all are here and start at the same moment
        heartbeat_timeout_seconds=heartbeat,
        shutdown_timeout_seconds=SHUTDOWN_SECONDS,
    )
    _client().key_value_set(f"mmjax/host/{member.process_id}", socket.gethostname())
    log.info("joined as process %d of %d at %s", member.process_id, member.num_processes, member.coordinator)


def membership(
    coordinator: str | None = None,
    num_processes: int | None = None,
    process_id: int | None = None,
    *,
    environment: Mapping[str, str] = os.environ,
    timeout: float = 300.0,
) -> Membership | None:
    """This process's place, from the arguments, else from the environment; None for a run of one process."""
    given = {"coordinator": coordinator, "num_processes": num_processes, "process_id": process_id}
    for field, variable in VARIABLES.items():
        text = environment.get(variable)
        if given[field] is None and text is not None:
            if field != "coordinator" and not text.isdigit():
                raise ValueError(f"{variable} must be a whole number, got {text!r}")
            given[field] = text if field == "coordinator" else int(text)
    missing = [field for field, value in given.items() if value is None]
    if missing and len(missing) < len(given):
        flags = " and ".join(f"--{field.replace('_', '-')} (or {VARIABLES[field]})" for field in missing)
        raise ValueError(f"a run of several processes needs a coordinator, their number and this one's id; add {flags}")
    member = _detect(environment, timeout) if missing else Membership(**given)
    if member and not 0 <= member.process_id < member.num_processes:
        raise ValueError(
            f"process_id must be from 0 to num_processes - 1 = {member.num_processes - 1}, got {member.process_id}"
        )
    return member


def _detect(environment: Mapping[str, str], timeout: float) -> Membership | None:
    """What JAX finds under Slurm, Open MPI and on TPU slices, with the hosts' names where they are told."""
    slurm = "SLURM_STEP_NODELIST" in environment and int(environment.get("SLURM_NTASKS", "1")) > 1
    mpi = int(environment.get("OMPI_COMM_WORLD_SIZE", "1")) > 1
    hosts = [host for host in environment.get("TPU_WORKER_HOSTNAMES", "").split(",") if host]
    if not (slurm or mpi or len(hosts) > 1 or os.path.exists("/dev/accel0") or os.path.exists("/dev/vfio/0")):
        return None
    from jax._src import clusters  # what jax.distributed.initialize() asks; the roll call needs the answer before it

    coordinator, count, index, devices = clusters.ClusterEnv.auto_detect_unset_distributed_params(
        None, None, None, None, None, int(timeout)
    )
    if None in (coordinator, count, index):
        return None
    if slurm:
        nodes = slurm_hosts(environment["SLURM_STEP_NODELIST"])
        hosts = [nodes[task * len(nodes) // count] for task in range(count)] if count % len(nodes) == 0 else []
    known = tuple(hosts) if len(hosts) == count else ()
    return Membership(coordinator, count, index, None if devices is None else tuple(devices), known)


def slurm_hosts(node_list: str) -> list[str]:
    """'node[01-03,7],login' -> ['node01', 'node02', 'node03', 'node7', 'login']."""
    hosts = []
    for prefix, ranges in re.findall(r"([^,\[\]]+)(?:\[([^\]]*)\])?", node_list):
        for part in ranges.split(","):
            first, _, last = part.partition("-")
            numbers = range(int(first), int(last or first) + 1) if first else []
            hosts += [f"{prefix}{number:0{len(first)}d}" for number in numbers] or [prefix]
    return hosts


def _client():
    from jax._src import distributed  # JAX offers barriers with a timeout on this object only

    return distributed.global_state.client


def barrier(name: str, timeout: float = 600.0) -> None:
    """Waits until every process is here; TimeoutError names those that are not. Nothing to do with one process."""
    if not jax.distributed.is_initialized():
        return
    _met[name] = _met.get(name, 0) + 1
    client, here = _client(), f"mmjax/here/{name}/{_met[name]}"
    client.key_value_set(f"{here}/{jax.process_index()}", "")
    try:
        client.wait_at_barrier(here, int(timeout * 1000))
    except jax.errors.JaxRuntimeError as error:
        present = {int(key.rsplit("/", 1)[1]) for key, _ in client.key_value_dir_get(here)}
        hosts = {int(key.rsplit("/", 1)[1]): host for key, host in client.key_value_dir_get("mmjax/host")}
        absent = [index for index in range(jax.process_count()) if index not in present]
        names = ", ".join(f"process {index} on {hosts.get(index, 'an unknown host')}" for index in absent)
        raise TimeoutError(f"barrier {name!r}: missing after {timeout:.0f} s: {names or error}") from error


def first_says(name: str, value: Any) -> Any:
    """Process 0's `value` (what JSON can hold), on every process; those after it wait for it."""
    if not jax.distributed.is_initialized():
        return value
    _met[name] = _met.get(name, 0) + 1
    client, key = _client(), f"mmjax/said/{name}/{_met[name]}"
    if jax.process_index() == 0:
        client.key_value_set(key, json.dumps(value))
        return value
    try:
        return json.loads(client.blocking_key_value_get(key, SAID_SECONDS * 1000))
    except jax.errors.JaxRuntimeError as error:
        hosts = dict(client.key_value_dir_get("mmjax/host"))
        raise TimeoutError(
            f"process 0 on {hosts.get('mmjax/host/0', 'an unknown host')} has not said {name!r} in {SAID_SECONDS} s"
        ) from error


def leave(code: int) -> None:
    """Ends a process that failed at once, if it has peers: its heartbeat stops, and those that wait for it end too."""
    if jax.distributed.is_initialized():
        logging.shutdown()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
