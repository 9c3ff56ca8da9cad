"""How many runs at once pay: found out while they train.

Every further run makes all of them slower, and together faster, until the GPU is full: for long sequences two or three
fill it, for short ones eight do not. More than pay cost memory, and time to the first result.
"""

from collections.abc import Callable, Hashable

GAIN = 1.02  # of the steps a second of all runs together, which one more run must bring
PATIENCE = 30.0  # seconds, after which one more is tried though the runs are too short, or too different, to compare


class Pace:
    """`lanes` runs at once are wanted: at first one, and one more each time that the last one has paid.

    Runs are compared by the steps that they take from one evaluation to the next, once each has been through its
    first, and only while all have one shape. Where a run of another shape begins, what pays is asked again from there.

    Args:
        most: lanes that there is room for.
        first: lanes to begin with; `most`: always as many.
        tell: called with `lanes` whenever they change.
    """

    def __init__(self, most: int, first: int = 1, tell: Callable[[int], None] = lambda lanes: None):
        self.most, self.lanes, self.tell = most, min(first, most), tell
        self.asking = self.lanes < most  # whether one more may pay
        self._shapes: dict[int, Hashable] = {}  # of the runs under way, by lane
        self._known: set[Hashable] = set()
        self._before: float | None = None  # steps a second with one lane fewer
        self._since: float | None = None  # when `lanes` or the shape last changed
        self._restart()

    def began(self, lane: int, shape: Hashable, now: float) -> None:
        """A run of this shape begins in this lane."""
        self._shapes[lane] = shape
        self._restart()
        if shape not in self._known:
            self._known.add(shape)
            self._before, self._since, self.asking = None, now, self.lanes < self.most

    def ended(self, lane: int) -> None:
        self._shapes.pop(lane, None)
        self._restart()

    def evaluated(self, lane: int, steps: int, now: float) -> None:
        """A run's evaluation has come back, `steps` steps after the last one."""
        if not self.asking or lane not in self._shapes:
            return
        if lane not in self._settled:  # until now it may have been compiled, and the others have waited
            self._settled.add(lane)
            self._last, self._rates = {}, {}
        elif lane in self._last and now > self._last[lane]:
            self._rates[lane] = steps / (now - self._last[lane])
        self._last[lane] = now
        full = len(self._shapes) == self.lanes and len(set(self._shapes.values())) == 1
        if full and len(self._rates) == self.lanes:
            self._compare(sum(self._rates.values()), now)

    def look(self, now: float) -> None:
        """One more, where nothing has been compared for long."""
        waited = self._since is not None and now - self._since > PATIENCE
        if self.asking and waited and len(self._shapes) == self.lanes < self.most:
            self._before = None
            self._set(self.lanes + 1, now)

    def _compare(self, rate: float, now: float) -> None:
        if self._before is not None and rate < GAIN * self._before:
            self.asking = False
            self._set(self.lanes - 1, now)
        elif self.lanes < self.most:
            self._before = rate
            self._set(self.lanes + 1, now)
        else:
            self.asking = False

    def _set(self, lanes: int, now: float) -> None:
        self.lanes, self._since = lanes, now
        self._restart()
        self.tell(lanes)

    def _restart(self) -> None:
        """Forget what was measured: other runs are under way now."""
        self._settled: set[int] = set()
        self._last: dict[int, float] = {}  # when each lane's last evaluation came back
        self._rates: dict[int, float] = {}  # steps a second of each lane
