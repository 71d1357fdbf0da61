import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from numpy.typing import NDArray

from ocr_assets.curation.geometry import box_area_ratio, text_area_ratio

# Exact arithmetic on small integers, rounded to doubles a few times.
ROUNDING = 1e-12

Quadrilaterals = NDArray[np.float32]


def rectangle(left: float, top: float, right: float, bottom: float) -> list[tuple[float, float]]:
    return [(left, top), (right, top), (right, bottom), (left, bottom)]


def quadrilaterals(*corners: Sequence[tuple[float, float]]) -> Quadrilaterals:
    return np.array(corners, np.float32).reshape(-1, 4, 2)


def union_ratio(*corners: Sequence[tuple[float, float]]) -> float:
    return text_area_ratio(quadrilaterals(*corners), width_px=100, height_px=50)


def sum_ratio(*corners: Sequence[tuple[float, float]]) -> float:
    return box_area_ratio(quadrilaterals(*corners), width_px=100, height_px=50)


def is_inside(
    points: Quadrilaterals, x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.bool_]:
    """Whether each place lies in any of the quadrilaterals: the even-odd rule, edge by edge."""
    covered = np.zeros(x.shape, np.bool_)
    for corners in points.astype(np.float64):
        is_odd = np.zeros(x.shape, np.bool_)
        for (x1, y1), (x2, y2) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
            if y1 != y2:
                crosses = (y1 > y) != (y2 > y)
                is_odd ^= crosses & (x < x1 + (y - y1) / (y2 - y1) * (x2 - x1))
        covered |= is_odd
    return covered


any_quadrilaterals = hnp.arrays(
    np.float32,
    st.tuples(st.integers(0, 5), st.just(4), st.just(2)),
    elements=st.integers(-16, 48).map(float) | st.floats(-16, 48, width=32),
)


def test_no_box_covers_nothing():
    assert text_area_ratio(np.zeros((0, 4, 2), np.float32), width_px=64, height_px=48) == 0.0


def test_one_box_covers_its_area():
    assert union_ratio(rectangle(10, 10, 30, 20)) == pytest.approx(0.04, abs=ROUNDING)


def test_overlapping_boxes_count_once():
    overlapping = rectangle(10, 10, 30, 20), rectangle(20, 10, 40, 20)
    assert union_ratio(*overlapping) == pytest.approx(0.06, abs=ROUNDING)


def test_the_same_box_twice_counts_once():
    assert union_ratio(*[rectangle(10, 10, 30, 20)] * 2) == union_ratio(rectangle(10, 10, 30, 20))


def test_a_box_is_clipped_to_the_frame():
    assert union_ratio(rectangle(-50, -50, 10, 10)) == pytest.approx(0.02, abs=ROUNDING)


def test_a_box_beside_the_frame_covers_nothing():
    assert union_ratio(rectangle(200, 10, 300, 20)) == 0.0


def test_a_box_around_the_frame_covers_it_whole():
    assert union_ratio(rectangle(-5, -5, 105, 55)) == 1.0


def test_a_quadrilateral_that_crosses_itself_counts_what_its_edges_enclose():
    bow_tie = [(10, 10), (30, 30), (30, 10), (10, 30)]
    assert union_ratio(bow_tie) == pytest.approx(200 / 5000, abs=ROUNDING)


@pytest.mark.parametrize(
    "corners",
    [[(5, 5)] * 4, [(0, 0), (10, 10), (20, 20), (30, 30)], [(0, 0), (10, 0), (0, 0), (10, 0)]],
    ids=["a point", "a line", "a line twice"],
)
def test_a_box_without_area_covers_nothing(corners: list[tuple[float, float]]):
    assert union_ratio(corners) == 0.0
    assert union_ratio(corners, rectangle(10, 10, 30, 20)) == pytest.approx(0.04, abs=ROUNDING)


def test_the_direction_of_the_corners_does_not_matter():
    corners = rectangle(10, 10, 30, 20)
    assert union_ratio(corners[::-1]) == pytest.approx(union_ratio(corners), abs=ROUNDING)


@given(any_quadrilaterals)
def test_the_text_area_ratio_agrees_with_counting_places(points: Quadrilaterals):
    side_px, places_per_px = 32, 4
    centres = (np.arange(side_px * places_per_px) + 0.5) / places_per_px
    x, y = np.meshgrid(centres, centres)
    counted = float(is_inside(points, x, y).mean())
    # Counting can only err in cells that an edge runs through: an edge enters at most one cell per
    # column and row line that it crosses, and one to begin with (two, where it lies on a line).
    edges = np.clip(points, 0, side_px) - np.clip(np.roll(points, -1, axis=1), 0, side_px)
    edge_cells = np.abs(edges) * places_per_px
    tolerance = float((edge_cells.sum(axis=2) + 4).sum()) / (side_px * places_per_px) ** 2
    ratio = text_area_ratio(points, width_px=side_px, height_px=side_px)
    assert ratio == pytest.approx(counted, abs=tolerance + ROUNDING)


@given(any_quadrilaterals)
def test_the_text_area_ratio_lies_between_0_and_1(points: Quadrilaterals):
    assert 0.0 <= text_area_ratio(points, width_px=32, height_px=24) <= 1.0


@given(any_quadrilaterals, any_quadrilaterals)
def test_another_box_never_makes_the_text_area_smaller(
    points: Quadrilaterals, more: Quadrilaterals
):
    before = text_area_ratio(points, width_px=32, height_px=24)
    after = text_area_ratio(np.concatenate([points, more]), width_px=32, height_px=24)
    # The union's vertices are rounded to doubles.
    assert after >= before - 1e-9


@given(any_quadrilaterals)
def test_a_mirrored_frame_has_the_same_text_area(points: Quadrilaterals):
    mirrored = points * np.array([-1, 1], np.float32) + np.array([32, 0], np.float32)
    # float32 coordinates are rounded once more by mirroring, by at most 2^-19 pixels of 32.
    assert text_area_ratio(mirrored, width_px=32, height_px=24) == pytest.approx(
        text_area_ratio(points, width_px=32, height_px=24), abs=1e-5
    )


def test_the_box_area_ratio_of_nothing_is_0():
    assert box_area_ratio(np.zeros((0, 4, 2), np.float32), width_px=64, height_px=48) == 0.0


def test_the_box_area_ratio_counts_overlaps_twice():
    assert sum_ratio(*[rectangle(10, 10, 30, 20)] * 3) == pytest.approx(0.12, abs=ROUNDING)


def test_the_box_area_ratio_does_not_clip():
    assert sum_ratio(rectangle(-100, -50, 100, 50)) == pytest.approx(4.0, abs=ROUNDING)


def data_juicers_ratio(points: Quadrilaterals, width_px: int, height_px: int) -> float:
    """Data-Juicer's `compute_stats`: upright boxes by their sides, others by two triangles.

    Heron-free, box by box, with Python's own numbers, as `triangle_area` there does it.
    """
    total = 0.0
    for corners in points.tolist():
        (x1, y1), (x2, y2), (x3, y3), (x4, y4) = corners
        if (y1, x2, y3, x4) == (y2, x3, y4, x1):
            total += abs(x3 - x1) * abs(y3 - y1)
        else:
            total += abs((x1 * (y2 - y3) + x2 * (y3 - y1) + x3 * (y1 - y2)) / 2)
            total += abs((x3 * (y4 - y1) + x4 * (y1 - y3) + x1 * (y3 - y4)) / 2)
    return total / (width_px * height_px)


@given(any_quadrilaterals)
def test_the_box_area_ratio_is_data_juicers(points: Quadrilaterals):
    ratio = box_area_ratio(points, width_px=32, height_px=24)
    assert ratio == pytest.approx(data_juicers_ratio(points, 32, 24), rel=1e-9, abs=1e-9)


@given(st.lists(st.tuples(*[st.integers(0, 32)] * 4), max_size=5))
def test_the_box_area_ratio_is_never_below_the_text_area_ratio(
    boxes: list[tuple[int, int, int, int]],
):
    points = quadrilaterals(*(rectangle(*map(float, box)) for box in boxes))
    union = text_area_ratio(points, width_px=32, height_px=32)
    assert box_area_ratio(points, width_px=32, height_px=32) >= union - 1e-9


def test_a_tilted_box_counts_the_same_in_both_ratios():
    tilted = [(50 + 20 * math.cos(a), 25 + 20 * math.sin(a)) for a in np.radians([0, 90, 180, 270])]
    assert sum_ratio(tilted) == pytest.approx(800 / 5000, abs=1e-6)  # float32 corners.
    assert union_ratio(tilted) == pytest.approx(sum_ratio(tilted), abs=ROUNDING)
