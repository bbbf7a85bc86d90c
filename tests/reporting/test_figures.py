"""The figures of a report: whole SVGs in the colours of the page."""

from __future__ import annotations

import copy
import re
import sys
import xml.etree.ElementTree as ElementTree
from dataclasses import replace

import pytest

from featcache.errors import UsageError
from featcache.reporting.figures import LEGEND_ROW, figures
from tests.support.reports import report


@pytest.mark.parametrize("classes", [1, 5, 40, 300])
def test_figures_of_many_classes(classes: int) -> None:
    names = tuple(f"第{number}类" for number in range(classes))
    shown = report(names if classes > 1 else ("一类",))
    drawn = figures(shown)
    svg = ElementTree.fromstring(drawn["map_labels"])
    width, height = (float(part) for part in svg.attrib["viewBox"].split()[2:])
    assert width < 400 and height < 900
    assert sum(len(svg) for svg in drawn.values()) < 2_000_000


def test_figures_use_the_colours_and_fonts_of_the_page() -> None:
    for name, svg in figures(report()).items():
        ElementTree.fromstring(svg)
        used = set(re.findall(r"#[0-9a-f]{6}\b", re.sub(r'(href="|url\()#\w+', "", svg)))
        assert not used, (name, used)
        assert "currentColor" in svg and "<text" in svg and "<metadata" not in svg and "DOCTYPE" not in svg
    assert "差评" in figures(report())["map_labels"]


def test_figures_draw_as_many_runs_as_there_are_colours() -> None:
    (curve,) = report().curves
    curves = [replace(curve, run=f"run-{number}") for number in range(12)]
    svg = figures(replace(report(), curves=curves))["runs_loss"]
    assert "run-0" in svg and "run-7" in svg and "run-8" not in svg  # as many as there are colours
    assert "validation</text>" not in svg and "Here the first 8 of 12." in svg


def test_the_names_of_many_runs_have_room_above_the_curves() -> None:
    (curve,) = report().curves
    few, many = (
        figures(replace(report(), curves=[replace(curve, run=f"run-{number}") for number in range(count)]))
        for count in (2, 8)
    )
    for name in ("runs_loss", "runs_accuracy"):
        parts = (ElementTree.fromstring(svg[name]).attrib["viewBox"].split() for svg in (few, many))
        heights = [float(part[3]) for part in parts]
        rows = (heights[1] - heights[0]) / 72 / LEGEND_ROW
        assert round(rows) == 7, name


def test_figures_leave_matplotlibs_settings_unchanged() -> None:
    import matplotlib as mpl

    before = copy.deepcopy(dict(mpl.rcParams))
    figures(report())
    assert dict(mpl.rcParams) == before


def test_figures_without_matplotlib_name_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(UsageError, match="matplotlib") as caught:
        figures(report())
    assert caught.value.hint == "pip install 'featcache[report]'"


def test_series_differ_by_more_than_their_colour() -> None:
    (curve,) = report().curves
    drawn = figures(replace(report(), curves=[replace(curve, run=f"run-{number}") for number in range(3)]))
    assert len(set(re.findall(r"stroke-dasharray: [\d., ]+", drawn["runs_loss"]))) >= 2
    shapes = re.findall(r'<path id="m\w+" d="([^"]+)"', drawn["map_errors"])
    assert len(set(shapes)) == 4  # two on the map, two in its legend


def test_recipes_for_few_labels_have_a_point_at_each_size_they_were_trained_at() -> None:
    svg = figures(report())["recipes"]
    assert "ridge on last/mean" in svg and "contrastive step on b" in svg
    assert "test accuracy, mean of 5 seeds, bars: standard deviation" in svg
    marks = [svg.count(f"#{name}") for name in re.findall(r'<path id="(m\w+)"', svg)]
    assert marks[-2:] == [3, 2]  # the points of each recipe, and one in the legend
    assert "recipes" not in figures(replace(report(), few_labels=None))
