"""Several runs at once on one GPU: each on a stream of its own, all queued by one thread.

One small model leaves most of a GPU idle, and the next step of a run must wait for the last; so the steps of several
runs are interleaved. They share no numbers: a run's record is the one that it would have had alone.
"""

import gc
import json
import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from mad.config import Run, by_shape
from mad.memory import out_of_memory
from mad.records import Record
from mad.training import host
from mad.training.checkpoint import Checkpoints
from mad.training.loop import Kept, under_way
from mad.training.pace import Pace
from mad.training.prepare import prepare
from mad.training.trainer import Reading

IDLE = 0.0002  # seconds between two looks, where every lane waits for the device
SLOW = 0.02  # the same, where there is no run to be had

MOST = 8  # lanes that may be tried: python -m mad.bench lanes
EACH = 8e9  # bytes a lane is given; the MAD protocol's longest runs take 3 to 5e9

Progress = Callable[[Run, dict[str, Any]], None]


def how_many() -> int:
    """Lanes that this process's GPU has free memory for, at most; without one, 1."""
    if not torch.cuda.is_available():
        return 1
    free, _ = torch.cuda.mem_get_info()
    return max(1, min(MOST, int(free // EACH)))


class Ended(NamedTuple):
    """A run that is over: its record, or what went wrong and after how long."""

    run: Run
    record: Record | None
    error: Exception | None = None
    seconds: float = 0.0
    late: bool = False  # its time was up


def train_lanes(
    runs: Iterable[Run | Mapping[str, Any]],
    lanes: int | None = None,
    on_progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Record]:
    """Train several runs at once on one device, the longest sequences first and equal shapes after one another.

    Args:
        runs: Runs, or nested mappings with their keys.
        lanes: runs under way at once; fewer, where they do not fit into the GPU's memory. None: on a GPU as many as
            make all of them faster, which is measured while they train; else one.
        on_progress, checkpoints: as of `train`; progress comes with its run.

    Returns:
        Records in the order in which they finish, each as `train` gives it.

    Raises:
        ValueError: a run that cannot be, or fewer than one lane, before any begins.
        Exception: what the first run that failed has raised, once the others are through.
    """
    if lanes is not None and (not isinstance(lanes, int) or lanes < 1):
        raise ValueError(f"lanes must be a whole number of at least 1, got {lanes!r}")
    prepared = sorted(map(prepare, runs), key=by_shape)
    return _records(interleave(iter(prepared), lanes or Pace(how_many()), on_progress, checkpoints))


def _records(ended: Iterator[Ended]) -> Iterator[Record]:
    first: Exception | None = None
    for end in ended:
        first = first or end.error
        if end.record is not None:
            yield end.record
    if first is not None:
        raise first


@dataclass
class Lane:
    """A place on the GPU, the run there, and the trainer that the last one left."""

    place: host.Place | None
    kept: Kept = field(default_factory=Kept)
    run: Run | None = None
    steps: Any = None
    scope: Any = None
    waiting: Reading | None = None
    queued: int = 0  # steps since the last evaluation
    began: float = 0.0
    advanced: bool = False  # whether the run has come so far as to take memory

    def begin(self, run: Run, tell: Progress, checkpoints: Checkpoints | None) -> None:
        self.run, self.began, self.waiting, self.advanced, self.queued = run, time.perf_counter(), None, False, 0
        self.scope = host.Scope(run.seed, run.device, run.train.deterministic, self.place)
        self.steps = under_way(run, lambda progress: tell(run, progress), checkpoints, self.kept)

    def advance(self, timeout: float | None) -> Ended | None:
        """Queue the run's next piece of work; what became of it, if that was the last.

        Raises:
            RuntimeError: the device is lost, and every run on it.
        """
        run, record, error, late = self.run, None, None, False
        assert run is not None
        try:
            late = timeout is not None and time.perf_counter() - self.began > timeout
            if late:
                raise TimeoutError(f"the run took longer than {timeout:g} seconds")
            with self.scope:
                queued = next(self.steps)
            self.waiting, more = (queued, 0) if isinstance(queued, Reading) else (None, queued)
            self.advanced = True
            self.queued += more
            return None
        except StopIteration as stop:
            record = stop.value
        except Exception as caught:  # this run's alone, if the device has survived it; the other lanes go on
            if run.device == "cuda":
                torch.cuda.synchronize()
            error = caught
        seconds = time.perf_counter() - self.began
        self.leave()
        return Ended(run, record, error, seconds, late)

    def leave(self) -> None:
        if self.steps is not None:
            self.steps.close()
        self.run = self.steps = self.scope = self.waiting = None


def interleave(
    source: Iterator[Run | None],
    lanes: int | Pace,
    on_progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
    timeout: float | None = None,
    on_turn: Callable[[Run], None] = lambda run: None,
    on_begin: Callable[[Run, bool], None] = lambda run, begun: None,
) -> Generator[Ended, None, None]:
    """Train what `source` gives, prepared, until it is exhausted; a run that ends makes room for the next.

    Args:
        source: None means: nothing for now.
        lanes: how many runs may be under way; a Pace finds out how many should.
        timeout: seconds after which a run is given up, with a TimeoutError; all that the other lanes do counts.
        on_turn: called each time before a run goes on.
        on_begin: called as a run begins, with True, and with False where it must wait after all, for want of memory.

    Raises:
        RuntimeError: the device is lost, and every run on it.
    """
    tell = on_progress or (lambda run, progress: None)
    all_lanes: list[Lane] = []
    pace = lanes if isinstance(lanes, Pace) else Pace(lanes, first=lanes)
    memory = _Memory()
    exhausted = False
    while True:
        busy = [lane for lane in all_lanes if lane.run is not None]
        pace.look(time.perf_counter())
        while memory.back or not exhausted:
            if len(busy) >= min(pace.lanes, memory.room):
                break
            try:
                run = memory.back.popleft() if memory.back else next(source)
            except StopIteration:
                exhausted = True
                break
            if run is None:
                break
            memory.look_at(run)
            lane = _lane(all_lanes, run)
            lane.begin(run, tell, checkpoints)
            on_begin(run, True)
            pace.began(id(lane), _shape(run))
            busy.append(lane)
        if not busy:
            if exhausted:
                return
            time.sleep(SLOW)
            continue
        moved = False
        for lane in busy:
            if lane.run is None:
                continue
            on_turn(lane.run)
            if lane.waiting is not None:
                if not lane.waiting.ready():
                    continue
                pace.evaluated(id(lane), lane.queued, time.perf_counter())
                lane.queued = 0
            moved = True
            ended = lane.advance(timeout)
            if ended is None:
                continue
            pace.ended(id(lane))
            if ended.error is not None and out_of_memory(ended.error) and memory.free(ended, all_lanes, on_begin):
                for other in all_lanes:
                    if other.run is None:
                        pace.ended(id(other))
                break
            yield ended
        if not moved:
            time.sleep(IDLE)


class _Memory:
    """What is done where runs do not fit into a GPU side by side."""

    def __init__(self) -> None:
        self.back: deque[Run] = deque()  # begun, and put back
        self.room = float("inf")  # lanes that fitted
        self._length = 0  # of the sequences that did not
        self._alone: set[str] = set()  # runs that have had the GPU to themselves

    def look_at(self, run: Run) -> None:
        """A run is to begin: shorter sequences may fit again."""
        if (run.arch.max_length or 0) < self._length:
            self.room = float("inf")

    def free(self, ended: Ended, lanes: list[Lane], on_begin: Callable[[Run, bool], None]) -> bool:
        """Put the run back that found no memory, and give up what nobody needs; False: it had all there was."""
        under_way = [lane for lane in lanes if lane.run is not None]
        if not under_way and ended.run.id in self._alone:
            return False
        waiting = [ended.run]
        for lane in under_way:
            if not lane.advanced and lane.run is not None:
                waiting.append(lane.run)
                lane.leave()
        for run in waiting:
            self.back.append(run)
            on_begin(run, False)
        others = [lane for lane in lanes if lane.run is not None]
        self.room, self._length = max(1, len(others)), ended.run.arch.max_length or 0
        if not others:
            self._alone.add(ended.run.id)
        for lane in lanes:
            if lane.run is None:
                lane.kept.trainer = None
        if ended.error is not None:
            ended.error.__traceback__ = None  # its frames hold the run's tensors
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        return True


def _shape(run: Run) -> str:
    """What the time of a step, evaluations included, depends on, nearly."""
    train = run.train
    return json.dumps([vars(run.arch), run.mode, train.batch_size, train.num_train, train.eval_every])


def _lane(lanes: list[Lane], run: Run) -> Lane:
    """A lane that is free, if possible one whose trainer may fit; a new one if there is none."""
    free = [lane for lane in lanes if lane.run is None]
    if not free:
        free = [Lane(host.Place() if run.device == "cuda" else None)]
        lanes += free
    return max(free, key=lambda lane: lane.kept.likely(run))
