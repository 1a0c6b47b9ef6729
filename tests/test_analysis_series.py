"""The largest exponent of a measured series equals that of the system that produced it."""

import numpy as np
import pytest

from gpurnn.analysis import divergence, runge_kutta


def logistic(steps):
    x = [0.4]
    for _ in range(steps):
        x.append(4 * x[-1] * (1 - x[-1]))
    return np.array(x)


def henon(steps):
    x, y = 0.0, 0.0
    xs = []
    for _ in range(steps):
        x, y = 1 - 1.4 * x * x + y, 0.3 * x
        xs.append(x)
    return np.array(xs[100:])


def lorenz(steps, dt):
    def field(s):
        x, y, z = s.T
        return np.stack([10 * (y - x), x * (28 - z) - y, x * y - 8 / 3 * z], axis=1)

    flow = runge_kutta(field, lambda s: np.zeros((1, 3, 3)), dt)
    state, states = np.ones((1, 3)), []
    for _ in range(steps):
        state = flow.step(state)
        states.append(state[0])
    return np.array(states[1000:])


@pytest.mark.parametrize("radius", [None, 0.001])
def test_the_logistic_map(radius):
    found = divergence(logistic(2000), steps=6, radius=radius)
    assert found.exponent == pytest.approx(np.log(2), abs=0.02)
    assert found.log_distances.shape == found.times.shape == (7,)
    # Each step doubles the distance: the whole curve is straight.
    np.testing.assert_allclose(np.diff(found.log_distances), np.log(2), atol=0.05)


@pytest.mark.parametrize(("radius", "tolerance"), [(None, 0.01), (0.01, 0.03)])
def test_the_map_of_henon(radius, tolerance):
    found = divergence(henon(4000), steps=8, dimension=2, radius=radius)
    assert found.exponent == pytest.approx(0.419, abs=tolerance)


def test_the_lorenz_system_from_one_of_its_variables():
    x = lorenz(9000, 0.02)[:, 0]
    found = divergence(x, steps=150, dimension=4, delay=5, window=60, dt=0.02, fit=(30, 150))
    assert found.exponent == pytest.approx(0.906, abs=0.06)


def test_several_variables_are_one_state():
    x = henon(4000)
    both = divergence(np.stack([x[1:], 0.3 * x[:-1]], axis=1), steps=8)
    assert both.exponent == pytest.approx(0.419, abs=0.01)


def test_a_periodic_series_has_no_positive_exponent():
    x = np.sin(0.3 * np.arange(2000))
    assert divergence(x, steps=40, dimension=2, delay=5, window=21).exponent == pytest.approx(0, abs=2e-3)


def test_time_and_units():
    x = logistic(500)
    fast, slow = divergence(x, steps=5), divergence(x, steps=5, dt=0.5)
    assert slow.exponent == pytest.approx(2 * fast.exponent, rel=1e-12)
    np.testing.assert_array_equal(slow.times, 0.5 * fast.times)
    assert divergence(1000 * x + 7, steps=5).exponent == pytest.approx(fast.exponent, rel=1e-6)


@pytest.mark.parametrize("radius", [None, 0.01])
@pytest.mark.parametrize("power", [-1000, -565, 530, 1020])
def test_no_unit_is_too_large_or_too_small(radius, power):
    x, unit = logistic(500), 2.0**power
    found = divergence(unit * x, steps=5, radius=None if radius is None else radius * unit)
    same = divergence(x, steps=5, radius=radius)
    assert found.exponent == pytest.approx(same.exponent, rel=1e-12)
    np.testing.assert_allclose(found.log_distances, same.log_distances + power * np.log(2), rtol=1e-12)


def test_a_radius_may_be_far_above_and_far_below_the_series():
    x = logistic(100)
    np.testing.assert_array_equal(
        divergence(1e-300 * x, steps=2, radius=1e300).log_distances,
        divergence(1e-300 * x, steps=2, radius=1e-299).log_distances,
    )
    with pytest.raises(ValueError, match="no point of series has a neighbour within radius=1e-300"):
        divergence(1e300 * x, steps=2, radius=1e-300)


def test_what_a_caller_has_is_a_series():
    x = logistic(200)
    expected = divergence(x, steps=5).exponent
    for series in (list(x), np.ma.array(x), x[:, None], x.astype(">f8")):
        assert divergence(series, steps=5).exponent == expected


def test_the_window_keeps_neighbours_apart():
    # On a slow curve the nearest points are those just before and after a point, and they stay near it.
    x = np.cumsum(np.full(300, 0.01)) % 1.0
    with pytest.raises(ValueError, match="expected at least 306 for these options"):
        divergence(x, steps=5, window=300)
    assert divergence(x, steps=5, window=50).pairs == 295


def test_a_line_through_two_points_has_no_error():
    found = divergence(logistic(500), steps=5, fit=(1, 2))
    assert np.isnan(found.standard_error)
    assert found.exponent == pytest.approx(found.log_distances[2] - found.log_distances[1], rel=1e-12)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"series": ["a", "b"]}, TypeError, "series holds text, expected numbers"),
        ({"series": "ab"}, TypeError, "series is a str, expected numbers"),
        ({"series": np.ma.masked_less(logistic(100), 0.2)}, ValueError, "series has masked entries"),
        ({"series": [[1.0], [1.0, 2.0]]}, ValueError, "series holds lists of different lengths"),
        ({"series": np.ones((100, 0))}, ValueError, r"series has shape \(100, 0\)"),
        (
            {"series": np.append(logistic(9), np.zeros(40)), "steps": 20},
            ValueError,
            "after 10 steps all neighbours in series coincide",
        ),
        (
            {"series": np.ones(100), "radius": 1.0},
            ValueError,
            "each point of series comes to coincide with all its neighbours within radius=1.0",
        ),
        ({"series": [1.0, np.nan] * 50}, ValueError, "series holds NaN or infinity"),
        ({"series": np.ma.masked_less(logistic(100), 0.5)}, ValueError, "series has masked entries, expected numbers"),
        ({"series": np.ones((2, 3, 4))}, ValueError, r"series has shape \(2, 3, 4\), expected \(T,\) or \(T, F\)"),
        ({"series": np.ones(3)}, ValueError, "series has 3 steps, expected at least 7"),
        ({"series": np.ones(0)}, ValueError, "series has 0 steps, expected at least 7"),
        ({"series": np.ones(100)}, ValueError, "no two points of series differ"),
        ({"radius": 1e-12}, ValueError, "no point of series has a neighbour within radius=1e-12; pass a larger one"),
        ({"radius": 0.0}, ValueError, "radius is 0.0"),
        ({"steps": 0}, ValueError, "steps is 0"),
        ({"fit": (3, 3)}, ValueError, r"fit is \(3, 3\), expected two steps in order within 0 ... 5"),
        ({"fit": (0, 6)}, ValueError, r"fit is \(0, 6\)"),
        ({"fit": 3}, TypeError, "fit is 3, expected a pair of steps"),
        ({"fit": (0, 3, 5)}, TypeError, r"fit is \(0, 3, 5\), expected a pair of steps"),
        ({"fit": (0.0, 3)}, TypeError, r"fit\[0\] is 0.0, expected a whole number"),
        ({"fit": (0, True)}, TypeError, r"fit\[1\] is True, expected a whole number"),
        ({"dimension": 0}, ValueError, "dimension is 0"),
        ({"dt": -1.0}, ValueError, "dt is -1.0"),
    ],
)
def test_what_is_rejected(options, error, message):
    arguments = {"series": logistic(100), "steps": 5} | options
    with pytest.raises(error, match=f"^divergence: {message}"):
        divergence(**arguments)
