"""SLURM: an array of identical jobs, each of which claims runs from the sweep's folder until none is left.

The folder must be one that all nodes see. Jobs that end early, by their time limit too, cost their unfinished runs,
which the others take over; the same command submits again for what is left.
"""

import importlib.util
import logging
import shutil
import time
from collections.abc import Callable, Generator, Mapping
from typing import Any

from mad.config import Run
from mad.engine.base import POLL, Claim, Engine, Event, Unusable, Work, build, positive_or_none, registry, whole
from mad.engine.execute import execute
from mad.records import Record, Store
from mad.registry import unknown

CLUSTERS = ("slurm", "local")

log = logging.getLogger(__name__)


@registry.register("slurm")
class Slurm(Engine):
    """A SLURM job array of claim workers.

    Args:
        work, retries, retry_on, timeout: see Engine and the engine `local`, which each job uses.
        jobs: how many there are at once.
        minutes: time limit of a job.
        parameters: of the submission, as submitit names them: {slurm_partition: gpu, gpus_per_node: 1,
            cpus_per_task: 8, mem_gb: 32}.
        cluster: "slurm"; "local" runs the jobs as processes of this machine, to try it out.
    """

    claims = False

    def __init__(
        self,
        work: Work | None = None,
        *,
        jobs: int = 8,
        minutes: int = 240,
        parameters: dict[str, Any] | None = None,
        cluster: str = "slurm",
        timeout: float | None = None,
        retries: int = 1,
        retry_on: tuple[str, ...] = (),
    ):
        super().__init__(work, retries=retries, retry_on=retry_on)
        if importlib.util.find_spec("submitit") is None:
            raise ValueError("engine=slurm needs submitit: pip install 'mad[slurm]'; expected another engine")
        if cluster not in CLUSTERS:
            raise unknown("engine.cluster", cluster, CLUSTERS)
        if cluster == "slurm" and shutil.which("sbatch") is None:
            raise ValueError(
                "engine=slurm needs SLURM's sbatch, which is not on the PATH here: start it where jobs are submitted, "
                "or try it out with engine.cluster=local"
            )
        self.jobs, self.minutes = whole("jobs", jobs, 1), whole("minutes", minutes, 1)
        self.parameters, self.cluster = dict(parameters or {}), cluster
        self.timeout = positive_or_none("timeout", timeout)

    @classmethod
    def elsewhere(cls, options: Mapping[str, Any]) -> bool:
        return options.get("cluster", "slurm") == "slurm"

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        if not runs:
            return
        if self.folder is None:
            raise ValueError("engine=slurm writes records where its jobs see them: use engine.execute with a store")
        import submitit

        store = Store(self.folder)
        options: dict[str, Any] = {"timeout": self.timeout, "retries": self.retries, "retry_on": list(self.retry_on)}
        if self.cluster == "local":
            options["workers"] = 1
        known = self.stamps or {}  # older than now: another process may have done a run in between
        before = {run.id: known[run.id] if run.id in known else store.stamp(run.id) for run in runs}
        given = (runs, before, str(self.folder), store.sweep, self.work, options)
        try:
            executor = submitit.AutoExecutor(folder=self.folder / "slurm", cluster=self.cluster)
            executor.update_parameters(name=f"mad-{store.sweep}", timeout_min=self.minutes, **self.parameters)
            with executor.batch():  # one array
                jobs = [executor.submit(work_off, *given) for _ in range(min(self.jobs, len(runs)))]
        except (NameError, TypeError, ValueError, OSError, RuntimeError) as error:
            reason = " ".join(str(error).split())
            raise Unusable(f"no job can be submitted, with engine.parameters={self.parameters}: {reason}") from error
        left = {run.id: run for run in runs}
        try:
            while left:
                over = all(job.done() for job in jobs)  # before the folder is looked at
                for run_id in list(left):
                    record = store.read(run_id) if store.stamp(run_id) != before[run_id] else None
                    if record is not None:
                        del left[run_id]
                        yield record
                if over:
                    break
                time.sleep(POLL)
            if left:  # a time limit, or none could begin
                log.warning("all %d jobs have ended and %d runs are left%s", len(jobs), len(left), self._reason(jobs))
        finally:
            for job in jobs if left else []:  # interrupted; otherwise they find nothing to do, and end by themselves
                job.cancel()
            if self.cluster == "local":
                for job in jobs:
                    job.wait()

    def _reason(self, jobs: list[Any]) -> str:
        logs = next((text for job in jobs if (text := (job.stderr() or "").strip())), "")
        said = f"; one of them said:\n{logs[-2000:]}" if logs else ""
        return f": the same command submits again. Their logs are in {self.folder}/slurm{said}"


def work_off(
    runs: list[Run],
    before: dict[str, tuple[int, int] | None],
    folder: str,
    sweep: str,
    work: Work | None,
    options: dict[str, Any],
) -> None:
    """In a job: claim and do what is left. What has failed since the submission is not begun again."""
    execute(runs, Store(folder, sweep), build("local", work, **options), before=before)
