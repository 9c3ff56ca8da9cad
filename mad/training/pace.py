"""How many runs at once pay: found out while they train.

Every further run makes all of them slower, and together faster, until the GPU is full: for long sequences three or four
fill it, for short ones eight do not. More than pay cost memory, and time to the first result.
"""

from collections.abc import Callable, Hashable

GAIN = 1.01  # of the steps a second of all runs together, which one more run must bring
FEW = 3  # lanes that are tried unasked, where runs are never evaluated
PATIENCE = 30.0  # seconds that runs go on without an evaluation, before one more of these is


class Pace:
    """`lanes` runs at once are wanted: at first one, and one more each time that the last one has paid.

    Runs are compared by the steps that they take from one evaluation to the next, once each has been through its
    first, and only while all have one shape. A new shape is asked from where the last has come to, upwards: longer
    sequences train first.

    Args:
        most: lanes that there is room for.
        first: lanes to begin with; `most`: always as many.
        tell: called with `lanes` whenever they change.
    """

    def __init__(self, most: int, first: int = 1, tell: Callable[[int], None] = lambda lanes: None):
        self.most, self.lanes, self.tell = most, min(first, most), tell
        self.asking = self.lanes < most  # whether one more may pay
        self._shapes: dict[int, Hashable] = {}  # of the runs under way, by lane
        self._shape: Hashable = None  # of those that are measured
        self._known: set[Hashable] = set()
        self._before: tuple[Hashable, float] | None = None  # a shape, its steps a second with one lane fewer
        self._seen = 0.0
        self._restart()

    def began(self, lane: int, shape: Hashable) -> None:
        """A run of this shape begins in this lane."""
        self._disturbed(lane)
        self._shapes[lane] = shape
        if set(self._shapes.values()) != {self._shape}:
            self._shape, self._rates = shape, {}
        if shape not in self._known:
            self._known.add(shape)
            self.asking = self.lanes < self.most

    def ended(self, lane: int) -> None:
        self._disturbed(lane)
        self._shapes.pop(lane, None)

    def evaluated(self, lane: int, steps: int, now: float) -> None:
        """A run's evaluation has come back, `steps` steps after the last one."""
        if not self.asking or lane not in self._shapes:
            return
        if lane not in self._settled:  # until now it may have been compiled, and the others have waited
            self._settled.add(lane)
            self._last = {}
        elif steps and lane in self._last and now > self._last[lane]:
            if set(self._shapes.values()) == {self._shape} and len(self._settled) == self.lanes:
                self._rates[lane] = steps / (now - self._last[lane])
        self._last[lane] = now
        if len(self._rates) == self.lanes:
            self._compare(sum(self._rates.values()))

    def look(self, now: float) -> None:
        """One more, where runs go on without an evaluation."""
        self._waited += min(now - self._seen, 1.0)  # a run that is compiled holds all of them up
        self._seen = now
        patient = self._settled or self._waited < PATIENCE or len(self._shapes) < self.lanes
        if self.asking and not patient and self.lanes < min(FEW, self.most):
            self._set(self.lanes + 1)

    def _compare(self, rate: float) -> None:
        before = self._before[1] if self._before is not None and self._before[0] == self._shape else 0.0
        if rate < GAIN * before:
            self.asking = False
            self._set(self.lanes - 1)
        elif self.lanes < self.most:
            self._before = self._shape, rate
            self._set(self.lanes + 1)
        else:
            self.asking = False

    def _set(self, lanes: int) -> None:
        self.lanes = lanes
        self._restart()
        self.tell(lanes)

    def _disturbed(self, lane: int) -> None:
        """What the others were at takes longer, or less long."""
        self._settled.discard(lane)
        self._last, self._waited = {}, 0.0

    def _restart(self) -> None:
        """Forget what was measured: more lanes are under way now, or fewer."""
        self._settled: set[int] = set()
        self._last: dict[int, float] = {}  # when each lane's last evaluation came back, if nothing began or ended since
        self._rates: dict[int, float] = {}  # steps a second of each lane
        self._waited = 0.0  # seconds since a run began or ended
