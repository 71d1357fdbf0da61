-- Everything that people query, in one place. All of it can be rebuilt from the Parquet files.
-- No primary keys and no upserts: the same statements work on a DuckDB file and on DuckLake.
-- A database of an older version is brought up by running all of it again, so every statement here
-- creates what is missing or replaces a view, and a table that exists is never changed.

CREATE TABLE IF NOT EXISTS video_files (
    path VARCHAR,
    size_bytes BIGINT,
    mtime_ns BIGINT,
    video_id VARCHAR,
    state VARCHAR,          -- present | missing | unreadable | outside (of the last source)
    reason VARCHAR,
    detail VARCHAR,
    checked_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS videos (
    video_id VARCHAR,
    size_bytes BIGINT,
    duration_seconds DOUBLE,
    fps DOUBLE,
    frame_count BIGINT,
    width_px INTEGER,
    height_px INTEGER,
    codec VARCHAR,
    segment_count INTEGER,
    first_seen_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS segments (
    shard VARCHAR,
    video_id VARCHAR,
    segment_index INTEGER,
    start_seconds DOUBLE,
    end_seconds DOUBLE,     -- not included; infinity for a video's last segment
    cost_megapixels DOUBLE
);

CREATE TABLE IF NOT EXISTS scorers (
    scorer_id VARCHAR,
    sampler VARCHAR,
    detector VARCHAR,
    weights_sha256 VARCHAR,
    parameters VARCHAR      -- JSON
);

CREATE TABLE IF NOT EXISTS segment_scores (
    scorer_id VARCHAR,
    shard VARCHAR,
    video_id VARCHAR,
    segment_index INTEGER,
    frame_count INTEGER,
    reason VARCHAR,
    detail VARCHAR
);

CREATE TABLE IF NOT EXISTS frame_scores (
    scorer_id VARCHAR,
    shard VARCHAR,
    video_id VARCHAR,
    segment_index INTEGER,
    frame_index BIGINT,
    pts_seconds DOUBLE,
    width_px INTEGER,
    height_px INTEGER,
    text_area_ratio DOUBLE, -- null: this frame has no score, see reason
    box_area_ratio DOUBLE,
    box_count INTEGER,
    reason VARCHAR,
    detail VARCHAR
);

CREATE TABLE IF NOT EXISTS text_boxes (
    scorer_id VARCHAR,
    shard VARCHAR,
    video_id VARCHAR,
    frame_index BIGINT,
    box_index INTEGER,
    points FLOAT[8],        -- x1, y1, … x4, y4 in pixels, clockwise from the text's top left
    confidence FLOAT
);

CREATE TABLE IF NOT EXISTS merged_score_files (
    shard VARCHAR,
    size_bytes BIGINT,
    mtime_ns BIGINT
);

CREATE TABLE IF NOT EXISTS gpu_samples (
    shard VARCHAR,
    run_id VARCHAR,
    process_id BIGINT,
    host VARCHAR,
    device_uuid VARCHAR,    -- or cpu
    device_name VARCHAR,
    slot_index INTEGER,
    sampled_at TIMESTAMPTZ,
    elapsed_seconds DOUBLE,
    device_used_mib BIGINT,
    device_total_mib BIGINT,
    process_mib BIGINT,     -- null where nothing tells, as is the next
    utilization_percent INTEGER
);

CREATE TABLE IF NOT EXISTS merged_usage_files (
    shard VARCHAR,
    size_bytes BIGINT,
    mtime_ns BIGINT
);

CREATE TABLE IF NOT EXISTS worker_memory (
    detector VARCHAR,
    weights_sha256 VARCHAR,
    dtype VARCHAR,
    device_name VARCHAR,
    host VARCHAR,
    height_px INTEGER,
    width_px INTEGER,
    frame_count INTEGER,    -- in one batch
    peak_mib BIGINT,
    is_out_of_memory BOOLEAN,
    measured_at TIMESTAMPTZ
);

CREATE TABLE IF NOT EXISTS dataset (
    sample_index BIGINT,
    video_paths VARCHAR[],
    video_ids VARCHAR[],    -- null where a path has no readable content
    metric VARCHAR,
    metric_values DOUBLE[], -- one per video; null: unscored
    is_kept BOOLEAN,
    reason VARCHAR,
    unscored_reasons VARCHAR[],
    scorer_id VARCHAR
);

CREATE OR REPLACE VIEW shards AS
SELECT
    shard,
    count(*) AS segment_count,
    count(DISTINCT video_id) AS video_count,
    sum(cost_megapixels) AS cost_megapixels
FROM segments
GROUP BY shard;

-- One row per video and scorer. A video counts as scored only when every segment of it was read
-- and every sampled frame has a score: unknown is never clean.
CREATE OR REPLACE VIEW video_scores AS
WITH complete AS (
    SELECT s.scorer_id, s.video_id
    FROM segment_scores AS s
    JOIN videos AS v USING (video_id)
    GROUP BY s.scorer_id, s.video_id
    HAVING count(*) = any_value(v.segment_count)
        AND count(s.reason) = 0
        AND sum(s.frame_count) > 0
)
SELECT
    f.scorer_id,
    f.video_id,
    count(*) AS frame_count,
    avg(f.text_area_ratio) AS text_area_ratio_mean,
    max(f.text_area_ratio) AS text_area_ratio_max,
    quantile_cont(f.text_area_ratio, 0.95) AS text_area_ratio_p95,
    avg(CASE WHEN f.box_count > 0 THEN 1.0 ELSE 0.0 END) AS text_frame_ratio,
    avg(f.box_area_ratio) AS box_area_ratio_mean
FROM frame_scores AS f
JOIN complete AS c ON c.scorer_id = f.scorer_id AND c.video_id = f.video_id
GROUP BY f.scorer_id, f.video_id
HAVING count(f.reason) = 0;

-- Everything without a score: by scorer, or for all scorers (scorer_id null) where discovery
-- itself could not read the file.
CREATE OR REPLACE VIEW unscored AS
SELECT NULL AS scorer_id, video_id, path, NULL AS segment_index, NULL AS frame_index,
    'discovery' AS stage, reason, detail
FROM video_files
WHERE state IN ('missing', 'unreadable')
UNION ALL
SELECT scorer_id, video_id, NULL, segment_index, NULL, 'frames', reason, detail
FROM segment_scores
WHERE reason IS NOT NULL
UNION ALL
SELECT scorer_id, video_id, NULL, segment_index, frame_index, 'ocr_scores', reason, detail
FROM frame_scores
WHERE reason IS NOT NULL
UNION ALL
SELECT s.scorer_id, s.video_id, NULL, NULL, NULL, 'frames', 'no_frames',
    'every segment was read and none holds a sampled frame'
FROM segment_scores AS s
JOIN videos AS v USING (video_id)
GROUP BY s.scorer_id, s.video_id
HAVING count(*) = any_value(v.segment_count) AND count(s.reason) = 0 AND sum(s.frame_count) = 0
UNION ALL
SELECT r.scorer_id, g.video_id, NULL, g.segment_index, NULL, 'ocr_scores', 'not_scored_yet',
    'shard ' || g.shard || ' is still to be scored'
FROM segments AS g
CROSS JOIN scorers AS r
WHERE NOT EXISTS (
    SELECT 1 FROM segment_scores AS s
    WHERE s.scorer_id = r.scorer_id AND s.video_id = g.video_id
        AND s.segment_index = g.segment_index
)
AND EXISTS (
    SELECT 1 FROM video_files AS p WHERE p.video_id = g.video_id AND p.state = 'present'
);
