"""A real SLURM of two nodes on this one host: munged if none runs, slurmctld and two slurmd, on 127.0.0.1, as root."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path

import psutil

CONFIGURATION = Path("/etc/slurm/slurm.conf")  # no variable that names another place reaches srun inside a job
GPUS = CONFIGURATION.with_name("gres.conf")
MUNGE = Path("/run/munge")
MARK = "# Written by Conceptome's tests."
PROGRAMS = ("munged", "munge", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel", "sinfo")
CLUSTER = "conceptome"
NODES = ("n1", "n2")
CPUS, MEMORY_MB = 4, 8000


def why_not() -> str | None:
    """Say why SLURM cannot be started here; None where it can."""
    missing = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if missing:
        return f"SLURM is not installed here (no {', '.join(missing)}): apt-get install slurm-wlm munge"
    if os.getuid() != 0:
        return "SLURM can only be started by root"
    if not Path("/etc/munge/munge.key").exists():
        return "munge has no key: apt-get install munge makes one"
    if CONFIGURATION.exists() and not CONFIGURATION.read_text().startswith(MARK):
        return f"this host has a SLURM of its own ({CONFIGURATION})"
    if GPUS.exists() and not GPUS.read_text().startswith(MARK):
        return f"this host has a SLURM of its own ({GPUS})"
    return None


class SlurmHost:
    """Starts the daemons as children of this process, and stops exactly these.

    Parameters
    ----------
    folder
        For their state and logs.
    """

    def __init__(self, folder: Path):
        self.folder = folder
        self._daemons: list[subprocess.Popen] = []

    def start(self) -> None:
        """Start everything and wait until both nodes are idle."""
        for name in ("controller", *NODES):
            (self.folder / name).mkdir(parents=True)
        CONFIGURATION.parent.mkdir(exist_ok=True)
        CONFIGURATION.write_text(self._configuration())
        # With nothing behind it: SLURM lends it to whoever asks, and counts.
        GPUS.write_text(f"{MARK}\nNodeName={NODES[1]} Name=gpu File=/dev/null\n")
        if not _answers(["munge", "-n"]):
            MUNGE.mkdir(exist_ok=True)
            shutil.chown(MUNGE, "munge", "munge")
            self._daemon("munged", "--foreground", "--force", user="munge", group="munge")
            wait_for(lambda: _answers(["munge", "-n"]), 20, "munged does not answer")
        self._daemon("slurmctld", "-D", "-c")
        wait_for(lambda: _answers(["scontrol", "ping"]), 30, "slurmctld does not answer")
        for name in NODES:
            self._daemon("slurmd", "-D", "-N", name)
        wait_for(lambda: self.states() == dict.fromkeys(NODES, "idle"), 60, "the nodes do not become idle")

    def stop(self) -> None:
        """Cancel what is left in the queue and end the daemons, the last started first."""
        with suppress(OSError, subprocess.SubprocessError, AssertionError):
            left = self.queue()
            if left:
                self.ask("scancel", *left)
                wait_for(lambda: not self.queue(), 20, "the queue does not empty")
        for daemon in reversed(self._daemons):
            daemon.terminate()
            try:
                daemon.wait(timeout=20)
            except subprocess.TimeoutExpired:
                daemon.kill()
                daemon.wait()
        for process in _left_by_jobs():
            process.kill()
        CONFIGURATION.unlink(missing_ok=True)
        GPUS.unlink(missing_ok=True)

    def ask(self, *command: str) -> str:
        """Run one of SLURM's commands; gives what it prints."""
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment())
        assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
        return done.stdout

    def queue(self) -> dict[str, str]:
        """Job id → state of all that wait or run."""
        return dict(line.split("|") for line in self.ask("squeue", "-h", "-o", "%i|%T").split())

    def comments(self) -> dict[str, str]:
        """Job id → comment, which names the rule, of all that wait or run."""
        return dict(line.split("|", 1) for line in self.ask("squeue", "-h", "-o", "%i|%k").splitlines())

    def states(self) -> dict[str, str]:
        """Node → state."""
        return dict(line.split("|") for line in self.ask("sinfo", "-h", "-N", "-o", "%N|%T").split())

    def set_node(self, name: str, state: str) -> None:
        """Do what an administrator does: drain, down or resume."""
        reason = [] if state == "resume" else ["reason=test"]
        self.ask("scontrol", "update", f"nodename={name}", f"state={state}", *reason)

    def _daemon(self, name: str, *arguments: str, **options: str) -> None:
        program = shutil.which(name, path=_path())
        with (self.folder / f"{name}{len(self._daemons)}.log").open("w") as log:
            self._daemons.append(
                subprocess.Popen(
                    [program, *arguments],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment(),
                    **options,
                )
            )

    def _configuration(self) -> str:
        host = socket.gethostname().partition(".")[0]
        controller, *ports = free_ports(1 + len(NODES))
        nodes = "\n".join(
            f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY_MB}"
            + (" Gres=gpu:1" if name == NODES[1] else "")
            for name, port in zip(NODES, ports, strict=True)
        )
        return f"""{MARK}
ClusterName={CLUSTER}
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmUser=root
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
MpiDefault=none
AccountingStorageType=accounting_storage/none
# Without control groups: memory is looked at every second, and what has too much is killed.
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=task=1
JobAcctGatherParams=OverMemoryKill
GresTypes=gpu
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SlurmdParameters=config_overrides
MinJobAge=300
KillWait=5
# A node that was set down stays so until somebody says otherwise.
ReturnToService=0
SchedulerParameters=sched_interval=2,bf_interval=2
StateSaveLocation={self.folder}/controller
SlurmctldPidFile={self.folder}/controller.pid
SlurmdSpoolDir={self.folder}/%n
SlurmdPidFile={self.folder}/%n.pid
{nodes}
PartitionName=main Nodes={",".join(NODES)} Default=YES MaxTime=INFINITE State=UP
"""


def wait_for(condition: Callable[[], object], seconds: float, otherwise: str) -> None:
    """Wait until a condition holds; fail with a line when it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, otherwise
        time.sleep(0.2)


def free_ports(number: int) -> list[int]:
    """Ports of 127.0.0.1 that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """This process's variables, with the folders of system programs on the path."""
    return {**os.environ, **(extra or {}), "PATH": _path()}


def _left_by_jobs() -> list[psutil.Process]:
    """Processes that outlived their jobs: without control groups, what made a session of its own is not killed."""
    found = []
    for process in psutil.process_iter():
        with suppress(psutil.Error):
            if process.environ().get("SLURM_CLUSTER_NAME") == CLUSTER:
                found.append(process)
    return found


def _path() -> str:
    return os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])


def _answers(command: list[str]) -> bool:
    with suppress(OSError, subprocess.SubprocessError):
        return not subprocess.run(command, capture_output=True, timeout=20, env=environment()).returncode
    return False
