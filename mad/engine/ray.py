"""Ray: the same runs on a laptop's own Ray or on a cluster (RAY_ADDRESS), a fraction of a GPU each if one likes.

Actors rather than tasks, so that torch is imported once a worker. An actor that dies costs its own run, which is begun
again on a new one. Ray's machines need mad installed, and see the results folder only where this process writes it.
"""

import contextlib
import importlib.util
import os
import socket
import time
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mad.config import Run
from mad.engine.base import (
    POLL,
    Claim,
    Engine,
    Event,
    Outcome,
    Pending,
    Unusable,
    Work,
    attempt,
    failed,
    positive_or_none,
    registry,
    workers_or_none,
)
from mad.engine.worker import too_late
from mad.records import Record

REACHABLE_WITHIN = 5.0  # seconds
TOKEN = Path("~/.ray/auth_token").expanduser()  # where `ray start` and Ray itself leave it


@registry.register("ray")
class Ray(Engine):
    """Actors of a Ray cluster.

    Args:
        work, retries, retry_on: see Engine.
        workers: actors; None: as many as the cluster has CPUs, or on CUDA as fit its GPUs.
        gpus: share of a GPU that a run takes, on CUDA; 0.25: four runs a GPU.
        timeout: seconds a run may take; None: any.
        address: of the cluster; None: RAY_ADDRESS, or a Ray of this machine alone, which ends with the sweep.
    """

    def __init__(
        self,
        work: Work | None = None,
        *,
        workers: int | None = None,
        gpus: float = 1.0,
        timeout: float | None = None,
        address: str | None = None,
        retries: int = 1,
        retry_on: tuple[str, ...] = (),
    ):
        super().__init__(work, retries=retries, retry_on=retry_on)
        if importlib.util.find_spec("ray") is None:
            raise ValueError(
                "engine=ray needs Ray: pip install 'mad[ray]'; expected another engine, for instance local"
            )
        if not isinstance(gpus, (int, float)) or isinstance(gpus, bool) or not gpus > 0:
            raise ValueError(f"engine.gpus must be a number above 0, the share of a GPU that a run takes, got {gpus!r}")
        self.workers, self.gpus = workers_or_none(workers), gpus
        self.timeout = positive_or_none("timeout", timeout)
        self.address = address or os.environ.get("RAY_ADDRESS")
        if self.address and self.address not in ("auto", "local"):
            _reach(self.address)

    @classmethod
    def elsewhere(cls, options: Mapping[str, Any]) -> bool:
        return (options.get("address") or os.environ.get("RAY_ADDRESS") or "local") != "local"

    def run(
        self, runs: list[Run], *, claim: Claim | None = None, on_event: Callable[[Event], None] | None = None
    ) -> Generator[Record, None, None]:
        ray = _ray()
        tell = on_event or (lambda event: None)
        pending = Pending(runs, claim, self.retries)
        mine = not ray.is_initialized()
        workers: list[_Worker] = []
        try:
            if mine:
                self._start(ray)
            on_gpu = any(run.device == "cuda" for run in runs)
            number = min(self.workers or self._room(ray, on_gpu), len(runs))
            actor = ray.remote(num_cpus=1, num_gpus=self.gpus if on_gpu else 0)(Actor)
            given = (self.work, self.checkpoints, self.retry_on)
            workers += [_Worker(i, lambda: actor.remote(*given)) for i in range(number)]
            while pending or any(worker.run for worker in workers):
                for worker in workers:
                    run = pending.next() if worker.ready and worker.run is None else None
                    if run is not None:
                        worker.start(run)
                        tell(Event(worker.index, run))
                refs = {worker.ref: worker for worker in workers if worker.ref is not None}
                if not refs:  # all that is left is under way elsewhere
                    time.sleep(POLL)
                    continue
                ended = [refs[ref] for ref in ray.wait(list(refs), num_returns=1, timeout=POLL)[0]]
                late = [w for w in workers if w.run and self.timeout and time.monotonic() - w.began > self.timeout]
                for worker in [*ended, *(w for w in late if w not in ended)]:
                    run = worker.run
                    outcome = worker.finish(ray, worker not in ended, self.timeout)
                    if run is None or outcome is None:
                        continue
                    record = pending.settle(run, outcome)
                    if record is not None:
                        yield record
                    else:
                        tell(Event(worker.index, run, again=True))
        finally:
            for worker in workers:
                with contextlib.suppress(Exception):  # a cluster that has gone
                    ray.kill(worker.actor)
            if mine:
                ray.shutdown()

    def _start(self, ray: Any) -> None:
        remote = self.address not in (None, "local")  # without "local" Ray would join one that runs here by chance
        given: dict[str, Any] = {"address": self.address} if remote else {"address": "local", "num_cpus": self.workers}
        dashboard = None if remote else False
        try:
            ray.init(**given, include_dashboard=dashboard, log_to_driver=False)
        except (ConnectionError, RuntimeError, ValueError) as error:
            where = f" at {self.address!r}" if remote else " on this machine"
            hint = "; does it ask for a token (RAY_AUTH_MODE=token)?" if remote else ""
            raise Unusable(f"Ray cannot be used{where}: {' '.join(str(error).split())}{hint}") from error

    def _room(self, ray: Any, on_gpu: bool) -> int:
        there = ray.cluster_resources()
        return max(1, int(there.get("GPU", 0) / self.gpus) if on_gpu else int(there.get("CPU", 1)))


class Actor:
    """In a process of Ray's."""

    def __init__(self, work: Work | None, checkpoints: Path | None, retry_on: tuple[str, ...]):
        import torch

        torch.set_num_threads(1)  # the other cores belong to the other actors
        if work is None:
            import torch._dynamo  # what an optimiser imports in its first step

            import mad.training  # noqa: F401 - now, not in the time of the first run
        self.work, self.checkpoints, self.retry_on = work, checkpoints, retry_on

    def ready(self) -> None:
        """Answers when the process is up: until then it holds no run."""

    def execute(self, run: Run) -> Outcome:
        return attempt(self.work, run, lambda progress: None, self.checkpoints, self.retry_on)


@dataclass
class _Worker:
    """One actor, or the next one in its place, and the run it has."""

    index: int
    make: Callable[[], Any]

    def __post_init__(self) -> None:
        self.run: Run | None = None
        self._open()

    def start(self, run: Run) -> None:
        self.run, self.began = run, time.monotonic()
        self.ref = self.actor.execute.remote(run)

    def finish(self, ray: Any, late: bool, timeout: float | None) -> Outcome | None:
        """What became of the run that has ended or has run out of time; None: the actor has come up."""
        run, ref = self.run, self.ref
        self.run = self.ref = None
        if late:
            assert run is not None
            ray.kill(self.actor)
            self._open()
            return Outcome(failed(run, too_late(timeout), "timeout"), True)
        try:
            result = ray.get(ref)
        except ray.exceptions.RayError as error:
            self._open()
            if run is None:
                raise  # an actor that cannot even start: its reason is the sweep's
            memory = isinstance(error, ray.exceptions.OutOfMemoryError)
            reason = " ".join(str(error).partition("Some common causes")[0].split())
            text = f"WorkerKilled: {type(error).__name__}: {reason}"
            return Outcome(failed(run, text, "memory" if memory else "killed"), True)
        self.ready = True
        return result

    def _open(self) -> None:
        self.actor, self.ready = self.make(), False
        self.ref = self.actor.ready.remote()


def _ray() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    if TOKEN.exists():  # Ray's own heads have asked for it since 2.59, but its clients send it only if told to
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what Ray announces for its next version
    import ray

    return ray


def _reach(address: str) -> None:
    """Ray itself waits for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or not port.isdigit():
        raise ValueError(f"the Ray address {address!r} must be host:port, ray://host:port, auto or local")
    try:
        socket.create_connection((host, int(port)), REACHABLE_WITHIN).close()
    except OSError as error:
        raise ValueError(
            f"no Ray answers at {address!r} (engine.address or RAY_ADDRESS): {error}; start one with "
            "`ray start --head`, or unset RAY_ADDRESS for a Ray of this machine alone"
        ) from None
