"""Curves: what is averaged, and what is drawn."""

import numpy as np

from mmjax.report import plots


def test_smoothing_is_the_mean_of_the_last_values_that_are_numbers():
    values = np.array([1.0, 3.0, np.nan, 5.0, 7.0])
    np.testing.assert_allclose(plots.smooth(values, 2), [1, 2, 3, 5, 6])
    np.testing.assert_allclose(plots.smooth(values, 9), [1, 2, 2, 3, 4])


def test_the_range_ignores_a_few_outliers():
    low, high = plots.limits(np.array([1e6, *np.linspace(0, 1, 999)]))
    assert -0.1 < low < 0
    assert 1 < high < 1.1
    assert plots.limits(np.zeros(3)) == (-1, 1)


def test_light_and_dark_differ_in_paper_and_each_panel_takes_its_place():
    steps = np.arange(200)
    line = plots.Series("one", steps, np.sin(steps), chance=0.5)
    light, dark = (plots.curves({"a": [line]}, dark=dark) for dark in (False, True))
    assert light.dtype == np.uint8
    assert light.shape == dark.shape
    np.testing.assert_array_equal(light[0, 0], 255)
    assert dark[0, 0].max() < 60
    wide = plots.curves({"a": [line], "b": [line], "$ c_": [line]})
    assert wide.shape == (light.shape[0] * 2, light.shape[1] * 2, 3)


def test_a_falling_line_falls_and_chance_is_dotted_below():
    blue = np.array([0, 114, 178])
    picture = plots.curves({"x": [plots.Series("_", [0, 100], [1.0, 0.5], chance=0.0)]}).astype(int)
    ink = abs(picture - blue).sum(axis=-1) < 30
    height = [np.flatnonzero(column).min() for column in ink.T if column.any()]
    assert height[10] < height[len(height) // 2] < height[-10]
    lowest = np.flatnonzero(ink.any(axis=1)).max()
    dots = np.diff(ink[lowest].astype(int))
    assert (dots > 0).sum() > 20


def test_a_series_of_nothing_but_broken_numbers_is_drawn_without_an_error():
    assert plots.curves({"loss": [plots.Series("loss", range(300), [float("nan")] * 300)]}).ndim == 3
