"""The sizes that a Parquet file of videos or of frames tells, without reading the rest of it."""

from pathlib import Path

import pyarrow.parquet as pq


def frame_sizes(path: Path) -> list[tuple[int, int]]:
    """Heights and widths in the columns `height_px` and `width_px`, each once; none of no file."""
    if not path.exists():
        return []
    columns = ["height_px", "width_px"]
    sizes = pq.read_table(path, columns=columns).group_by(columns).aggregate([])
    return [(size["height_px"], size["width_px"]) for size in sizes.to_pylist()]
