"""The roll call: every process says that it is there before JAX starts, and hears who is not.

JAX aborts the process, without a name, where a peer is late or the coordinator cannot be reached. So the processes meet
first on the coordinator's port: each sends one line with its number and host name, and process 0 answers all of them
with "ok" or with one sentence that says what is wrong. Nothing here knows JAX.
"""

import dataclasses
import ipaddress
import logging
import re
import socket
import time
from collections.abc import Mapping

log = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class Membership:
    """This process's place in a run of several."""

    coordinator: str  # host:port of process 0, as every other process reaches it
    num_processes: int
    process_id: int
    local_device_ids: tuple[int, ...] | None = None  # the devices that are this process's; all that it sees where None
    hosts: tuple[str, ...] = ()  # host of each process, where the environment tells

    @property
    def address(self) -> tuple[str, int]:
        host, _, port = self.coordinator.rpartition(":")
        if not host or not port.isdigit():
            raise ValueError(f"coordinator must be HOST:PORT, such as 10.0.0.1:8476, got {self.coordinator!r}")
        return host.strip("[]"), int(port)

    @property
    def is_loopback(self) -> bool:
        """Whether the coordinator's name means this machine itself."""
        try:
            return ipaddress.ip_address(socket.gethostbyname(self.address[0])).is_loopback
        except OSError:  # it does not resolve (yet): the call says so if it stays like that
            return False

    def name(self, process_id: int) -> str:
        return f"process {process_id}" + (f" on {self.hosts[process_id]}" if self.hosts else "")


def hold(member: Membership, timeout: float) -> None:
    """Returns once all processes have called.

    After `timeout` seconds: TimeoutError with the same sentence in every process that did call, ConnectionError where
    process 0 cannot be reached.
    """
    if len(set(member.hosts)) > 1 and member.process_id and member.is_loopback:
        raise ValueError(
            f"coordinator {member.coordinator} means this machine itself, but process 0 runs on {member.hosts[0]}; "
            "give the address of process 0 that the other hosts can reach"
        )
    (_call if member.process_id else _answer)(member, timeout)


def _answer(member: Membership, timeout: float) -> None:
    """Process 0: hears every other process, then answers all of them at once."""
    try:
        server = socket.create_server(("", member.address[1]), backlog=member.num_processes)
    except OSError as error:
        raise ValueError(
            f"process 0 cannot listen at port {member.address[1]} ({error}); choose another port for the coordinator"
        ) from error
    calls, connections, problem = {}, [], ""  # calls: process -> host name
    deadline = time.monotonic() + timeout
    with server:
        while len(calls) < member.num_processes - 1 and not problem:
            server.settimeout(max(deadline - time.monotonic(), 0.01))
            try:
                connection = server.accept()[0]
            except TimeoutError:
                problem = _lateness(member, calls, timeout)
                break
            connection.settimeout(5.0)
            if heard := re.fullmatch(r"mmjax (\d+) (\d+) (\S+)\n", _line(connection)):
                problem = _enter(member, calls, int(heard[1]), int(heard[2]), heard[3])
                connections.append(connection)
            else:  # a health probe or a port scan
                connection.close()
        for connection in connections:
            _dismiss(connection, problem or "ok")
    if problem:
        raise TimeoutError(problem)


def _enter(member: Membership, calls: dict[int, str], index: int, count: int, host: str) -> str:
    """Notes a call; returns what is wrong with it, if anything."""
    if count != member.num_processes or not 0 < index < count:
        return f"{host} calls as process {index} of {count}, but process 0 expects {member.num_processes} processes"
    if index in calls:
        return f"{calls[index]} and {host} both call as process {index}; each process needs its own --process-id"
    calls[index] = host
    return ""


def _dismiss(connection: socket.socket, answer: str) -> None:
    with connection:
        try:
            connection.sendall(answer.encode() + b"\n")
        except OSError:
            log.warning("a process hung up during the roll call; JAX waits for it to come back")
        _line(connection)  # let the caller hang up first: who hangs up keeps the port busy, and JAX needs ours at once


def _lateness(member: Membership, calls: Mapping[int, str], timeout: float) -> str:
    late = [member.name(index) for index in range(1, member.num_processes) if index not in calls]
    more = f" and {len(late) - 8} more" if len(late) > 8 else ""
    here = [f"process {index} on {calls[index]}" for index in sorted(calls)][:8]
    hint = "; this coordinator address cannot be reached from other hosts" if member.is_loopback else ""
    return (
        f"after {timeout:.0f} s still missing: {', '.join(late[:8])}{more}; present: "
        f"{', '.join([f'process 0 on {socket.gethostname()}', *here])}; coordinator {member.coordinator}{hint}"
    )


def _call(member: Membership, timeout: float) -> None:
    """Any other process: calls process 0 until it answers."""
    deadline, reason = time.monotonic() + timeout, "no answer"
    while (left := deadline - time.monotonic()) > 0:
        try:
            connection = socket.create_connection(member.address, timeout=min(left, 5.0))
        except OSError as error:  # process 0 may still be starting
            reason = str(error)
            time.sleep(min(left, 0.2))
            continue
        with connection:
            connection.sendall(f"mmjax {member.process_id} {member.num_processes} {socket.gethostname()}\n".encode())
            connection.settimeout(timeout + 5.0)  # process 0 may have begun to wait later than this process
            answer = _line(connection).strip()
        if answer == "ok":
            return
        if answer.isprintable() and " " in answer:
            raise TimeoutError(answer)
        reason = "it hung up without an answer; does another program use the port?"
        time.sleep(min(left, 0.5))
    hint = "; this address means this machine itself, give one that all hosts can reach" if member.is_loopback else ""
    raise ConnectionError(
        f"process {member.process_id} on {socket.gethostname()} cannot reach the coordinator {member.coordinator} "
        f"after {timeout:.0f} s ({reason}); is process 0 running there, and is the port open?{hint}"
    )


def _line(connection: socket.socket) -> str:
    """One line of at most 1,000 characters; what came so far where the other side is silent or hangs up."""
    text = b""
    try:
        while not text.endswith(b"\n") and len(text) < 1000 and (more := connection.recv(256)):
            text += more
    except OSError as error:
        log.debug("the connection ended after %r: %s", text, error)
    return text.decode(errors="replace")
