"""The number of lanes that pay, on simulated devices."""

import pytest

from mad.training import Pace


def simulate(pace, rate, runs=40, evaluations=40, shapes=("shape",), steps=20, setup=5.0):
    """Train `runs` runs of each shape, one shape after the other, on a device that makes rate(shape, n) steps a second
    with n under way; one thread: while a run is set up, nothing else goes on. Returns the lanes after each shape."""
    waiting = [(shape, evaluations) for shape in shapes for _ in range(runs)]
    found, left, shape_of, now = {}, {}, {}, 0.0
    while waiting or left:
        while waiting and len(left) < pace.lanes:
            lane = min(set(range(pace.most)) - left.keys())
            shape_of[lane], count = waiting.pop(0)
            left[lane] = [count, float(steps)]
            pace.began(lane, shape_of[lane])
            pace.look(now)
            now += setup
        each = {lane: rate(shape_of[lane], len(left)) / len(left) for lane in left}
        passed = min(min(rest / each[lane] for lane, (_, rest) in left.items()), 0.5)
        now += passed
        pace.look(now)
        for lane in list(left):
            left[lane][1] -= passed * each[lane]
            if left[lane][1] < 1e-9:
                left[lane] = [left[lane][0] - 1, float(steps)]
                pace.evaluated(lane, steps, now)
                if left[lane][0] == 0:
                    del left[lane]
                    pace.ended(lane)
        found[waiting[0][0] if waiting else shapes[-1]] = pace.lanes
    return list(found.values())


@pytest.mark.parametrize("setup, steps", [(5.0, 20), (0.1, 20), (60.0, 20), (5.0, 1000)])
@pytest.mark.parametrize(
    "rate, wanted",
    [
        (lambda n: 100.0, 1),  # full with one
        (lambda n: 100.0 * min(n, 3), 3),
        (lambda n: 100.0 * n / (n + 0.5), 7),  # the seventh brings 1.1 %, the eighth 0.8
        (lambda n: 100.0 * n, 8),  # as many as there is room for
        (lambda n: 100.0 * min(n, 2) - n, 2),  # more cost time
    ],
)
def test_finds_what_pays(rate, wanted, setup, steps):
    pace = Pace(8)
    assert simulate(pace, lambda shape, n: rate(n), setup=setup, steps=steps) == [wanted]
    assert not pace.asking


@pytest.mark.parametrize("evaluations", [20, 60, 200])
def test_shapes_that_follow_one_another_are_each_asked_about(evaluations):
    fills = {"long": 2, "middle": 2, "short": 4, "shorter": 4, "shortest": 5}
    found = simulate(Pace(8), lambda s, n: 100.0 * min(n, fills[s]), 60, evaluations, shapes=tuple(fills))
    assert found == [2, 2, 4, 4, 5]


def test_another_shape_is_no_measure():
    pace = Pace(8)
    simulate(pace, lambda shape, n: {"slow": 10.0, "fast": 100.0}[shape] * min(n, 2), 1, 4, ("slow", "fast", "slow"))
    assert pace.lanes == 2


def test_is_told_and_stays_where_it_is():
    told = []
    pace = Pace(8, tell=told.append)
    for _ in range(2):
        simulate(pace, lambda shape, n: 100.0 * min(n, 3))
        assert told == [2, 3, 4, 3]


def test_runs_that_are_never_evaluated_are_a_few_at_once():
    pace = Pace(8)
    assert simulate(pace, lambda shape, n: 100.0, 20, 1, steps=100_000) == [3]


def test_an_evaluation_after_no_step_measures_nothing():
    pace = Pace(8)
    pace.began(0, "shape")
    pace.evaluated(0, 1000, 20.0)
    pace.evaluated(0, 0, 20.5)
    assert pace.lanes == 1 and pace.asking


def test_a_number_that_was_given_is_kept():
    pace = Pace(3, first=3)
    assert simulate(pace, lambda shape, n: 100.0) == [3]
