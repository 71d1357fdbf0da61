"""The data directory: where each thing that the pipeline writes lies. Nobody else knows paths."""

from pathlib import Path

from resources.catalog_store import CatalogStore
from resources.frame_store import FrameStore
from resources.memory_records import MemoryRecords
from resources.score_files import ScoreFiles
from resources.score_store import ScoreStore
from resources.usage_files import UsageFiles


class DataDirectory:
    """One data directory and the stores in it.

    Attributes:
        path: The directory, absolute.
        catalog: What discovery knows.
        frames: Sampled frames by shard.
        score_files: Scores by shard, the record.
        memory_records: What workers were measured to need.
        usage_files: What scoring took of its device, by shard.
        score_store: DuckDB, the copy that people query.
    """

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.catalog = CatalogStore(self.path / "catalog")
        self.frames = FrameStore(self.path / "frames")
        self.score_files = ScoreFiles(self.path / "scores")
        self.memory_records = MemoryRecords(self.path / "worker_memory.parquet")
        self.usage_files = UsageFiles(self.path / "usage")
        self.score_store = ScoreStore(self.path / "ocr_assets.duckdb")

    @property
    def dataset(self) -> Path:
        """Where the filtered dataset lies."""
        return self.path / "dataset"

    def require_writable(self) -> None:
        """Makes sure, before any work, that something can be written here.

        Raises:
            DataDirectoryError: If not; the message names the directory and the fix.
        """
        probe = self.path / ".writable"
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            probe.touch()
            probe.unlink()
        except OSError as error:
            raise DataDirectoryError(
                f"data directory {self.path} cannot be written ({error.strerror}); make it"
                " writable, or name another with --out or OCR_ASSETS_DATA_DIR"
            ) from None


class DataDirectoryError(Exception):
    """The data directory cannot be used. The message says why and what to do."""
