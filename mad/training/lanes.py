"""Several runs at once on one GPU: each on a stream of its own, all queued by one thread.

One small model leaves most of a GPU idle, and the next step of a run must wait for the last; so the steps of several
runs are interleaved. They share no numbers: a run's record is the one that it would have had alone.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

from mad.config import Run
from mad.records import Record
from mad.training import host
from mad.training.checkpoint import Checkpoints
from mad.training.loop import Kept, under_way
from mad.training.prepare import prepare
from mad.training.trainer import Reading

IDLE = 0.0002  # seconds between two looks, where every lane waits for the device
SLOW = 0.02  # the same, where there is no run to be had

Progress = Callable[[Run, dict[str, Any]], None]


class Ended(NamedTuple):
    """A run that is over: its record, or what went wrong and after how long."""

    run: Run
    record: Record | None
    error: Exception | None = None
    seconds: float = 0.0
    late: bool = False  # its time was up


def train_lanes(
    runs: Iterable[Run | Mapping[str, Any]],
    lanes: int = 4,
    on_progress: Progress | None = None,
    checkpoints: Checkpoints | None = None,
) -> Iterator[Record]:
    """Train several runs at once on one device.

    Args:
        runs: Runs, or nested mappings with their keys. Those of equal shapes are best neighbours: a lane goes on with
            what it has compiled and captured.
        lanes: runs under way at once; fewer, where they do not fit into the GPU's memory.
        on_progress, checkpoints: as of `train`; progress comes with its run.

    Returns:
        Records in the order in which they finish, each as `train` gives it.

    Raises:
        ValueError: a run that cannot be, before any begins; fewer than one lane.
        Exception: what a run raised, once those before it are through; the others are lost.
    """
    if lanes < 1:
        raise ValueError(f"lanes must be a whole number of at least 1, got {lanes!r}")
    prepared = [prepare(run) for run in runs]
    for ended in interleave(iter(prepared), lambda: lanes, on_progress, lambda run: checkpoints):
        if ended.error is not None:
            raise ended.error
        assert ended.record is not None
        yield ended.record


@dataclass
class Lane:
    """A place on the GPU, the run there, and the trainer that the last one left."""

    place: host.Place | None
    kept: Kept = field(default_factory=Kept)
    run: Run | None = None
    steps: Any = None
    scope: Any = None
    waiting: Reading | None = None
    began: float = 0.0
    advanced: bool = False  # whether the run has come so far as to take memory


def interleave(
    source: Iterator[Run | None],
    lanes: Callable[[], int],
    on_progress: Progress | None = None,
    checkpoints: Callable[[Run], Checkpoints | None] = lambda run: None,
    timeout: float | None = None,
    on_turn: Callable[[Run], None] = lambda run: None,
) -> Iterator[Ended]:
    """Train what `source` gives, prepared, until it is exhausted; a run that ends makes room for the next.

    Args:
        source: None means: nothing for now.
        lanes: how many runs may be under way, asked each time before one begins.
        timeout: seconds after which a run is given up, with a TimeoutError.
        on_turn: called each time before a run goes on.
    """
    tell = on_progress or (lambda run, progress: None)
    all_lanes: list[Lane] = []
    back: deque[Run] = deque()  # begun, and put back because memory was short
    room, exhausted = float("inf"), False
    while True:
        busy = [lane for lane in all_lanes if lane.run is not None]
        while len(busy) < min(lanes(), room) and (back or not exhausted):
            try:
                run = back.popleft() if back else next(source)
            except StopIteration:
                exhausted = True
                break
            if run is None:
                break
            lane = _lane(all_lanes, run)
            _begin(lane, run, tell, checkpoints(run))
            busy.append(lane)
        if not busy:
            if exhausted:
                return
            time.sleep(SLOW)
            continue
        moved = False
        for lane in busy:
            if lane.waiting is not None and not lane.waiting.ready():
                continue
            moved = True
            assert lane.run is not None
            on_turn(lane.run)
            ended = _advance(lane, timeout)
            if ended is None:
                continue
            if isinstance(ended.error, torch.cuda.OutOfMemoryError) and len(busy) > 1:
                back.append(ended.run)
                for other in busy:
                    if other.run is not None and not other.advanced:
                        back.append(other.run)
                        other.run = None
                room = max(1, sum(other.run is not None for other in busy))  # what fitted before
                torch.cuda.empty_cache()
                break
            yield ended
        if not moved:
            time.sleep(IDLE)


def _lane(lanes: list[Lane], run: Run) -> Lane:
    """A lane that is free, if possible one whose trainer may fit; a new one if there is none."""
    free = [lane for lane in lanes if lane.run is None]
    if not free:
        free = [Lane(host.Place() if run.device == "cuda" else None)]
        lanes += free
    return max(free, key=lambda lane: lane.kept.likely(run))


def _begin(lane: Lane, run: Run, tell: Progress, checkpoints: Checkpoints | None) -> None:
    lane.run, lane.began, lane.waiting, lane.advanced = run, time.perf_counter(), None, False
    lane.scope = host.Scope(run.seed, run.device, run.train.deterministic, lane.place)
    lane.steps = under_way(run, lambda progress: tell(run, progress), checkpoints, lane.kept)


def _advance(lane: Lane, timeout: float | None) -> Ended | None:
    """Queue the lane's next piece of work; what became of its run, if that was the last."""
    run, record, error, late = lane.run, None, None, False
    assert run is not None
    try:
        late = timeout is not None and time.perf_counter() - lane.began > timeout
        if late:
            raise TimeoutError(f"the run took longer than {timeout:g} seconds")
        with lane.scope:
            lane.waiting = next(lane.steps)
        lane.advanced = True
        return None
    except StopIteration as stop:
        record = stop.value
    except Exception as caught:  # this run's alone; the other lanes go on
        error = caught
        lane.steps.close()
    lane.run = lane.steps = lane.scope = lane.waiting = None
    return Ended(run, record, error, time.perf_counter() - lane.began, late)
