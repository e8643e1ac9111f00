"""Cells as jobs of a cluster: SLURM, or processes of this machine that are treated like one, through submitit.

The command that submits the jobs waits for them and writes down their records. It needs no GPU of its own: missing
teachers are a job as well. Stopped, its jobs are cancelled; killed, they go on, and the same command finds them again.
All machines must see the checkout, the folder of the table and the store of teachers under the same paths.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
from omegaconf import OmegaConf

from kdkit._files import sha256_json, write_json
from kdkit.errors import ConfigError, KdkitError, did_you_mean

if TYPE_CHECKING:
    from kdkit._run.cells import Cell

__all__ = ["CLUSTERS", "JOBS", "Launcher", "launcher_of", "run_in_jobs"]

CLUSTERS = ("slurm", "local")

JOBS = 32
"""Jobs at a time unless ``workers`` says another number; the others wait here, not in the queue of the cluster."""

_POLL = 1.0
"""Seconds between two looks at the jobs; submitit asks SLURM itself about once a minute."""

_DEFAULTS: dict[str, dict[str, Any]] = {
    "slurm": {"timeout_min": 24 * 60, "cpus_per_task": 8, "gpus_per_node": 1},
    "local": {"timeout_min": 24 * 60},
}
_FIXED = ("nodes", "tasks_per_node")


@dataclass(frozen=True, slots=True)
class Launcher:
    """Where jobs go.

    Attributes:
        cluster: "slurm" or "local".
        parameters: of ``submitit.AutoExecutor.update_parameters``.
    """

    cluster: str
    parameters: Mapping[str, Any]

    def described(self) -> str:
        """For people: cluster and parameters."""
        told = ", ".join(f"{name}={value}" for name, value in self.parameters.items() if value is not None)
        return f"{self.cluster} ({told})"

    def executor(self, folder: Path) -> Any:
        """Submits jobs whose files are in ``folder``.

        Raises:
            ConfigError: if submitit or SLURM is not there, or does not know a parameter.
        """
        try:
            import submitit
        except ImportError as error:
            raise ConfigError(
                f"launcher={self.cluster} needs submitit, which is not installed; pip install 'kdkit[launchers]'"
            ) from error
        if self.cluster == "slurm" and not submitit.SlurmExecutor.affinity() > 0:
            raise ConfigError(
                "launcher=slurm needs SLURM's commands (srun) on this machine; call it on a login node of the "
                "cluster, or use launcher=local, or workers=N without a launcher"
            )
        automatic = submitit.AutoExecutor(folder=folder, cluster=self.cluster)
        try:
            automatic.update_parameters(**self.parameters)
        except (NameError, ValueError, TypeError, AssertionError) as error:
            told = " ".join(str(error).split())
            raise ConfigError(f"launcher={self.cluster} was given parameters that submitit refuses: {told}") from error
        return automatic


def launcher_of(own: Mapping[str, str]) -> Launcher | None:
    """From ``launcher=slurm launcher.timeout_min=600``.

    Raises:
        ConfigError: for an unknown launcher, or a setting of none.
    """
    given = {key.partition(".")[2]: text for key, text in own.items() if key.startswith("launcher.")}
    if "launcher" not in own:
        if given:
            raise ConfigError(f"launcher.{next(iter(given))} needs a launcher; add launcher={' or '.join(CLUSTERS)}")
        return None
    cluster = own["launcher"]
    if cluster not in CLUSTERS:
        raise ConfigError(
            f"launcher must be {' or '.join(CLUSTERS)}, got {cluster!r}{did_you_mean(cluster, CLUSTERS)}; "
            "without one, workers=N runs N cells at a time on this machine"
        )
    for name in _FIXED:
        if given.get(name, "1") != "1":
            raise ConfigError(f"launcher.{name} must be 1, got {given[name]}; a cell is one process on one machine")
    values = OmegaConf.to_container(OmegaConf.from_dotlist([f"{key}={text}" for key, text in given.items()]))
    assert isinstance(values, dict)
    return Launcher(cluster, {**_DEFAULTS[cluster], **{str(key): value for key, value in values.items()}})


# ---- jobs ----------------------------------------------------------------------------------------------------------


class _Jobs:
    """The jobs of a folder, remembered by name so that a killed command finds them again."""

    def __init__(self, launcher: Launcher, folder: Path) -> None:
        self.folder, self.cluster = folder / "jobs", launcher.cluster
        self.executor: Any = launcher.executor(self.folder)
        self.path = self.folder / "jobs.json"
        self.known: dict[str, list[str]] = json.loads(self.path.read_text()) if self.path.is_file() else {}

    def start(self, name: str, digest: str, run: Callable[..., Any], *arguments: Any) -> Any:
        """The job of this name that is waiting or running or has a result, or a new one."""
        job = self.earlier(name)
        if job is None or self.known[name][1] != digest or (self.ended(job) and not job.paths.result_pickle.is_file()):
            job = self.executor.submit(run, *arguments)
            self.known[name] = [job.job_id, digest]
            write_json(self.path, self.known)
        return job

    def refuse_others(self, digests: Mapping[str, str]) -> None:
        """Jobs of an earlier command that still run with other settings would write into the same folders.

        Raises:
            ConfigError: about the first.
        """
        for name, digest in digests.items():
            job = self.earlier(name)
            if job is not None and self.known[name][1] != digest and not self.ended(job):
                raise ConfigError(
                    f"job {job.job_id} of an earlier command runs {name} with other settings; cancel it, or choose "
                    "another folder with out=..."
                )

    def earlier(self, name: str) -> Any:
        """The job that an earlier command started under this name, if any."""
        if name not in self.known:
            return None
        import submitit

        kind = submitit.SlurmJob if self.cluster == "slurm" else submitit.LocalJob
        return kind(folder=self.folder, job_id=self.known[name][0])

    def ended(self, job: Any) -> bool:
        """Whether there is nothing to wait for; submitit does not know local jobs of an earlier command."""
        if job.paths.result_pickle.is_file():
            return True
        return bool(job.done()) and (self.cluster != "local" or _local_process(job) is None)

    def cancel(self, job: Any) -> None:
        """End it, waiting or running."""
        process = _local_process(job) if self.cluster == "local" else None
        if process is None:
            job.cancel(check=False)
        else:
            process.send_signal(signal.SIGINT)

    def forget(self, name: str) -> None:
        """Its result is taken: the next job of this name is a new one, and may get an old number."""
        job = self.earlier(name)
        job.paths.result_pickle.unlink(missing_ok=True)
        del self.known[name]
        write_json(self.path, self.known)


def _local_process(job: Any) -> psutil.Process | None:
    """The process of a local job, by whichever command it was started."""
    try:
        process = psutil.Process(int(job.job_id))
        ours = process.status() != psutil.STATUS_ZOMBIE and any("submitit" in word for word in process.cmdline())
    except psutil.Error:
        return None
    return process if ours else None


def _outcome(job: Any, what: str) -> Any:
    """What the job returned.

    Raises:
        KdkitError: if it ended without, as jobs do that take too long or too much memory.
    """
    import submitit

    try:
        return job.result()
    except submitit.core.utils.FailedJobError as error:
        trace = [line for line in str(error).split("-" * 22)[1].splitlines() if line.strip()]
        said = trace[-1].strip() if trace else "no reason"
        raise KdkitError(f"job {job.job_id} ({what}) failed: {said}; its output is in {job.paths.stderr}") from error
    except submitit.core.utils.UncompletedJobError as error:
        raise KdkitError(
            f"job {job.job_id} ({what}) ended without a result, state {job.state}; its output is in "
            f"{job.paths.stderr}, and launcher.timeout_min and launcher.mem_gb are what jobs mostly lack"
        ) from error


def run_in_jobs(
    launcher: Launcher,
    folder: Path,
    cells: Sequence[Cell],
    at_a_time: int,
    run: Callable[[Cell], dict[str, Any]],
    lost: Callable[[Cell, KdkitError], dict[str, Any]],
    first: Callable[[], None],
) -> Iterator[dict[str, Any]]:
    """Records of the cells as their jobs end.

    Args:
        launcher: where jobs go.
        folder: of the table; ``jobs`` in it gets scripts, output and results of the jobs.
        cells: what is run.
        at_a_time: jobs that wait or run at most.
        run: makes the record of a cell, in its job.
        lost: makes the record of a cell whose job ended without one.
        first: what is done before, in a job of its own.

    Raises:
        ConfigError: if there is nowhere to submit to.
        KdkitError: if the job of ``first`` ended without a result.
    """
    jobs = _Jobs(launcher, folder)
    digests = {cell.folder: sha256_json(cell.settings) for cell in cells}
    jobs.refuse_others(digests)
    running: dict[str, tuple[Cell | None, Any]] = {}
    try:
        before = jobs.earlier("first")  # of a command that was killed, maybe for other teachers
        while before is not None and not jobs.ended(before):
            time.sleep(_POLL)
        if before is not None:
            jobs.forget("first")
        running["first"] = None, jobs.start("first", "", first)
        try:
            _outcome(running["first"][1], "missing teachers")
        finally:
            jobs.forget("first")
        running.clear()
        waiting = iter(cells)
        while True:
            while len(running) < at_a_time and (cell := next(waiting, None)) is not None:
                running[cell.folder] = cell, jobs.start(cell.folder, digests[cell.folder], run, cell)
            if not running:
                return
            ended = [name for name, (_, job) in running.items() if jobs.ended(job)]
            for name in ended:
                cell, job = running.pop(name)
                assert cell is not None
                try:
                    record = _outcome(job, cell.name)
                except KdkitError as error:
                    record = lost(cell, error)
                yield record
                jobs.forget(name)
            if not ended:
                time.sleep(_POLL)
    except BaseException:
        for _, job in running.values():
            jobs.cancel(job)
        raise
