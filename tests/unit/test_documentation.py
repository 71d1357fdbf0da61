"""The documentation says what the code has: settings, commands, tables, reasons, links, SQL."""

import re
from collections.abc import Iterator, Sequence
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
import typer

from ocr_assets import cli
from ocr_assets.curation.discovery import FileState
from ocr_assets.curation.manifest import OUTPUT_COLUMNS, SAMPLE_JSON, SAMPLE_PATHS
from ocr_assets.curation.reasons import RejectReason, UnscoredReason
from ocr_assets.settings import ENV_PREFIX, Settings
from resources.frame_store import FRAMES_SCHEMA
from resources.score_files import SCORES_SCHEMA
from resources.score_store import ScoreStore

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
REFERENCE = (ROOT / "docs/reference.md").read_text(encoding="utf-8")
DUCKDB = (ROOT / "docs/duckdb.md").read_text(encoding="utf-8")
SCHEMA = (ROOT / "resources/schema.sql").read_text(encoding="utf-8")
RELATIONS = re.findall(
    r"^CREATE (?:OR REPLACE )?(?:TABLE|VIEW)(?: IF NOT EXISTS)? (\w+)", SCHEMA, re.MULTILINE
)
COMMANDS: dict[str, Any] = typer.main.get_command(cli.app).commands  # pyright: ignore[reportAttributeAccessIssue]
QUERIES = re.findall(r"^```sql\n(.*?)^```", DUCKDB, re.MULTILINE | re.DOTALL)


def without_code(page: str) -> str:
    return re.sub(r"^```.*?^```", "", page, flags=re.MULTILINE | re.DOTALL)


def headings(page: str) -> list[str]:
    return re.findall(r"^#+ (.+)$", without_code(page), re.MULTILINE)


def section(page: str, start: str) -> str:
    """What stands below the one heading that starts so, up to the next of its rank or above."""
    found = re.findall(rf"^(#+) {re.escape(start)}.*$", page, re.MULTILINE)
    assert len(found) == 1, f"{len(found)} headings start with {start!r}"
    (rank,) = found
    match = re.search(
        rf"^{rank} {re.escape(start)}.*?\n(.*?)(?=^#{{1,{len(rank)}}} |\Z)",
        page,
        re.MULTILINE | re.DOTALL,
    )
    assert match
    return match[1]


def rows(text: str) -> Iterator[list[str]]:
    """The cells of every table row; an escaped bar does not end a cell."""
    for line in text.splitlines():
        if line.startswith("|"):
            yield [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]


def words_in_code(text: str) -> set[str]:
    return set(re.findall(r"`([^`\s]+)`", text))


def first_cells(page: str, heading: str) -> set[str]:
    return {word for row in rows(section(page, heading)) for word in words_in_code(row[0])}


def in_words(default: Any) -> str:
    match default:
        case None | ():
            return "none"
        case Enum():
            return f"`{default.value}`"
        case float():
            return f"`{default:g}`"
        case _:
            return f"`{default}`"


def slug(heading: str) -> str:
    """The anchor that GitHub gives a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_setting_stands_in_the_reference_with_its_variable_and_default(name: str):
    by_name = {row[0]: row for row in rows(section(REFERENCE, "Settings"))}
    row = by_name[f"`{name}`"]
    expected = in_words(Settings.model_fields[name].default)
    assert row[1:3] == [f"`{ENV_PREFIX}{name.upper()}`", expected]
    assert row[-1].endswith(".")


def test_the_reference_has_no_setting_that_is_gone():
    named = {row[0].strip("`") for row in rows(section(REFERENCE, "Settings"))}
    assert named - {"setting", "---"} == set(Settings.model_fields)


def test_the_settings_in_the_readme_have_their_defaults():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for name, variable, default in list(rows(section(readme, "Settings")))[2:]:
        field = Settings.model_fields[name.strip("`")]
        assert variable == f"`{ENV_PREFIX}{name.strip('`').upper()}`"
        assert default == in_words(field.default) or (field.default is None and default)


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_and_option_stands_in_the_reference(command: str):
    documented = section(REFERENCE, f"`ocr-assets {command}")
    options = {
        option
        for parameter in COMMANDS[command].params
        if parameter.param_type_name == "option"
        for option in (*parameter.opts, *parameter.secondary_opts)
    }
    assert options
    assert options == set(
        re.findall(r"(?<![\w-])--?[a-z][a-z-]*", "".join(_option_cells(documented)))
    )


def _option_cells(documented: str) -> Iterator[str]:
    for row in rows(documented):
        if row[0].startswith("`-"):
            yield row[0]


def test_every_exit_code_stands_in_the_reference():
    documented = {row[0] for row in rows(section(REFERENCE, "Exit codes"))}
    codes = {0, cli.EXIT_FAILED, cli.EXIT_WRONG_INPUT, cli.EXIT_INTERRUPTED}
    assert documented >= {str(code) for code in codes}


@pytest.mark.parametrize(
    ("heading", "closed_set"),
    [
        ("Why a video has no score", UnscoredReason),
        ("Why a sample was rejected", RejectReason),
        ("Where a file stands", FileState),
    ],
)
def test_every_reason_stands_in_the_reference(heading: str, closed_set: type[StrEnum]):
    assert first_cells(REFERENCE, heading) == {member.value for member in closed_set}


@pytest.mark.parametrize(
    ("heading", "columns"),
    [
        ("Frames", FRAMES_SCHEMA.names),
        ("Scores", SCORES_SCHEMA.names),
        ("Dataset", OUTPUT_COLUMNS),
    ],
)
def test_every_column_of_the_files_stands_in_the_reference(heading: str, columns: Sequence[str]):
    assert first_cells(REFERENCE, heading) - {"frames.boxes"} == set(columns)


def test_nested_columns_of_the_scores_stand_in_the_reference():
    frame = SCORES_SCHEMA.field("frames").type.value_type
    boxes = frame.field("boxes").type.value_type
    nested = {field.name for struct in (frame, boxes) for field in struct}
    assert nested <= words_in_code(section(REFERENCE, "Scores"))


def test_columns_beside_a_samples_own_stand_in_the_reference():
    assert {SAMPLE_PATHS, SAMPLE_JSON} <= words_in_code(section(REFERENCE, "Catalog"))


@pytest.fixture(name="store", scope="module")
def _store(tmp_path_factory: pytest.TempPathFactory) -> ScoreStore:
    return ScoreStore(tmp_path_factory.mktemp("store") / "ocr_assets.duckdb")


def test_the_schema_has_the_relations_that_are_looked_for_here(store: ScoreStore):
    found = store.query("SELECT table_name FROM information_schema.tables ORDER BY 1")
    assert set(found["table_name"].to_pylist()) == {*RELATIONS, "schema_version"}


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_table_and_view_is_documented_with_its_columns(store: ScoreStore, relation: str):
    columns = store.query(f"FROM {relation} LIMIT 0").column_names
    assert set(columns) <= words_in_code(section(DUCKDB, f"`{relation}`"))


@pytest.mark.parametrize("query", QUERIES, ids=lambda query: " ".join(query.split())[:40])
def test_documented_queries_run(store: ScoreStore, query: str):
    assert isinstance(store.query(query), pa.Table)


def test_there_are_documented_queries():
    assert len(QUERIES) >= 3


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_relative_links_resolve(page: Path):
    broken = [
        link
        for link in re.findall(r"\]\(([^)\s]+)\)", without_code(page.read_text(encoding="utf-8")))
        if not re.match(r"[a-z]+:", link) and not _leads_somewhere(page, link)
    ]
    assert broken == []


def _leads_somewhere(page: Path, link: str) -> bool:
    path, _, anchor = link.partition("#")
    target = page.parent / path if path else page
    if not target.exists():
        return False
    if not anchor:
        return True
    return anchor in {slug(heading) for heading in headings(target.read_text(encoding="utf-8"))}
