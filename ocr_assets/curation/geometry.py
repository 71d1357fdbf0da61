"""Geometry: how much of a frame its text boxes cover."""

from typing import TYPE_CHECKING, Any

import numpy as np
import shapely
from numpy.typing import NDArray

if TYPE_CHECKING:
    from shapely.geometry.base import BaseGeometry

Points = NDArray[np.floating[Any]]


def text_area_ratio(points: Points, *, width_px: int, height_px: int) -> float:
    """The area of the union of the polygons, clipped to the frame, over the frame's area.

    Args:
        points: float (N, 4, 2), corners as (x, y) in pixels. A quadrilateral that crosses itself
            counts the area that its edges enclose.
        width_px: The frame's width, > 0.
        height_px: The frame's height, > 0.

    Returns:
        A ratio in [0, 1]; 0.0 for no polygons.
    """
    if len(points) == 0:
        return 0.0
    polygons = shapely.make_valid(shapely.polygons(points.astype(np.float64)))
    covered: BaseGeometry = shapely.intersection(
        shapely.union_all(polygons), shapely.box(0, 0, width_px, height_px)
    )
    # The union's vertices are rounded to doubles, so a fully covered frame can end an ulp above 1.
    return min(1.0, covered.area / (width_px * height_px))


def box_area_ratio(points: Points, *, width_px: int, height_px: int) -> float:
    """Data-Juicer's sum of box areas over the frame's area: overlaps count twice, may exceed 1.

    A box's area is that of the two triangles on its first, second, third and on its third, fourth,
    first corner (`VideoOcrAreaRatioFilter.compute_stats` in
    data_juicer/ops/filter/video_ocr_area_ratio_filter.py); for an upright rectangle that is width
    times height. Nothing is clipped to the frame.

    Args:
        points: float (N, 4, 2), corners as (x, y) in pixels.
        width_px: The frame's width, > 0.
        height_px: The frame's height, > 0.

    Returns:
        A ratio >= 0.
    """
    corners = points.astype(np.float64)
    first, second, third, fourth = (corners[:, i] for i in range(4))
    areas = _triangle_areas(first, second, third) + _triangle_areas(third, fourth, first)
    return float(areas.sum()) / (width_px * height_px)


def _triangle_areas(a: Points, b: Points, c: Points) -> NDArray[np.float64]:
    u, v = b - a, c - a
    return 0.5 * np.abs(u[:, 0] * v[:, 1] - u[:, 1] * v[:, 0])
