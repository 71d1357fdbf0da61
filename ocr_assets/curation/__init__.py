"""The pure rooms: what a video is, which frames stand for it, what a score is, who is kept.

Nothing in here imports Dagster, torch or `resources`.
"""
