"""The four assets, in the order of the data: videos, frames, ocr_scores, filtered_dataset.

Wiring only: what an asset does stands in `discovering`, `decoding`, `scoring` and `assembling`.
"""

from ocr_assets.assets.filtered_dataset import filtered_dataset
from ocr_assets.assets.frames import frames
from ocr_assets.assets.ocr_scores import ocr_scores
from ocr_assets.assets.videos import videos

ALL_ASSETS = [videos, frames, ocr_scores, filtered_dataset]

__all__ = ["ALL_ASSETS", "filtered_dataset", "frames", "ocr_scores", "videos"]
