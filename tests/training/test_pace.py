"""The number of lanes that pay, on simulated devices."""

import pytest

from mad.training import Pace


def simulate(pace, rate, seconds=300.0, shape="shape", steps=20, setup=5.0, begin=0.0):
    """Let `pace.lanes` endless runs train on a device that makes rate(n) steps a second with n of them under way."""
    now, left = begin, {}
    for lane in list(pace._shapes):
        pace.ended(lane)
    while now < begin + seconds:
        while len(left) < pace.lanes:
            now += setup  # one thread: everybody waits
            left[len(left)] = steps
            pace.began(len(left) - 1, shape, now)
        while len(left) > pace.lanes:
            pace.ended(len(left) - 1)
            left.popitem()
        each = rate(len(left)) / len(left)
        first = min(left, key=lambda lane: left[lane])
        passed = left[first] / each
        now += passed
        left = {lane: rest - passed * each for lane, rest in left.items()}
        left[first] = steps
        pace.look(now)
        pace.evaluated(first, steps, now)
    return now


@pytest.mark.parametrize(
    "rate, wanted",
    [
        (lambda n: 100.0, 1),  # full with one
        (lambda n: 100.0 * min(n, 3), 3),
        (lambda n: 100.0 * n / (n + 1), 7),  # the seventh brings 2.1 %, the eighth 1.6
        (lambda n: 100.0 * n, 8),  # as many as there is room for
        (lambda n: 100.0 * min(n, 2) - n, 2),  # more cost time
    ],
)
def test_finds_what_pays(rate, wanted):
    pace = Pace(8)
    simulate(pace, rate)
    assert pace.lanes == wanted and not pace.asking


def test_is_told_and_stays_where_it_is():
    told = []
    pace = Pace(8, tell=told.append)
    now = simulate(pace, lambda n: 100.0 * min(n, 3))
    assert told == [2, 3, 4, 3]
    simulate(pace, lambda n: 100.0 * min(n, 3), begin=now)
    assert len(told) == 4


def test_a_new_shape_is_asked_about_from_there():
    pace = Pace(8)
    now = simulate(pace, lambda n: 100.0 * min(n, 2))
    assert pace.lanes == 2
    simulate(pace, lambda n: 100.0 * min(n, 5), shape="shorter", begin=now)
    assert pace.lanes == 5


def test_runs_too_long_to_be_compared_do_not_leave_the_device_idle():
    pace = Pace(4)
    for now in range(150):
        pace.look(now)
        for lane in range(len(pace._shapes), pace.lanes):
            pace.began(lane, "shape", now)
    assert pace.lanes == 4


def test_a_number_that_was_given_is_kept():
    pace = Pace(3, first=3)
    simulate(pace, lambda n: 100.0)
    assert pace.lanes == 3
