"""Ray: the same runs on a laptop's own Ray or on a cluster (RAY_ADDRESS), several at once on a GPU.

Actors rather than tasks, so that torch is imported once a worker, and what is compiled and captured serves its next
runs. An actor that dies costs its own runs, which are begun again on a new one (`mad.engine.actor`). Ray's machines
need mad installed, and see the results folder only where this process writes it.
"""

import contextlib
import importlib.util
import os
import socket
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import Any

from mad.config import Run, by_shape
from mad.engine.actor import Actor, Given, Worker
from mad.engine.base import (
    POLL,
    Claim,
    Engine,
    Event,
    Pending,
    Unusable,
    Work,
    lanes_or_none,
    positive_or_none,
    registry,
    share_out,
    workers_or_none,
)
from mad.records import Record

REACHABLE_WITHIN = 5.0  # seconds
TOKEN = Path("~/.ray/auth_token").expanduser()  # where `ray start` and Ray itself leave it


@registry.register("ray")
class Ray(Engine):
    """Actors of a Ray cluster.

    Args:
        work, retries, retry_on: see Engine.
        workers: actors; None: as many as the cluster has CPUs, or on CUDA as fit its GPUs.
        gpus: of an actor, on CUDA; 0.25: four actors share a GPU.
        lanes: runs at once in an actor, for training; None: 1, or where it has a whole GPU as many as pay, see Local.
        timeout: seconds a run may take, what other lanes do meanwhile included; None: any.
        address: of the cluster; None: RAY_ADDRESS, or a Ray of this machine alone, which ends with the sweep.
    """

    def __init__(
        self,
        work: Work | None = None,
        *,
        workers: int | None = None,
        gpus: float = 1.0,
        lanes: int | None = None,
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
            raise ValueError(f"engine.gpus must be a number above 0, of an actor, got {gpus!r}")
        self.workers, self.gpus = workers_or_none(workers), gpus
        self.lanes = lanes_or_none(lanes, work)
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
        on_gpu = any(run.device == "cuda" for run in runs)
        # on CUDA with one lane, too: what is compiled and captured is kept
        several = self.work is None and (on_gpu or (self.lanes or 1) > 1)
        lanes = self.lanes or (None if self.gpus >= 1 else 1)
        pending = Pending(sorted(runs, key=by_shape) if several else runs, claim, self.retries)
        mine = not ray.is_initialized()
        workers: list[Worker] = []
        try:
            if mine:
                self._start(ray)
            number = min(self.workers or self._room(ray, on_gpu), len(runs))
            # two calls at once: one waits for what ends, while the other brings a run
            remote = ray.remote(num_cpus=1, num_gpus=self.gpus if on_gpu else 0, max_concurrency=2)(Actor)
            given = Given(self.work, self.checkpoints, self.retry_on, lanes if several else 0, self.timeout)
            workers += [Worker(i, lambda: remote.remote(given), self.timeout, several, on_gpu) for i in range(number)]
            while pending or any(worker.busy for worker in workers):
                for run, worker in share_out(pending, workers):
                    worker.start(run)
                    tell(Event(worker.index, run))
                refs = {worker.ref: worker for worker in workers}
                answers = [refs[ref] for ref in ray.wait(list(refs), num_returns=1, timeout=POLL)[0]]
                outcomes = [(worker, *ended) for worker in answers for ended in worker.look(ray)]
                outcomes += [(worker, *ended) for worker in workers for ended in worker.give_up(ray)]
                for worker, run, outcome in outcomes:
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
