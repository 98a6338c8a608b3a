"""The paper's tables in miniature: rows and bases to train, their tables, token merging to compare with.

No speed is measured here. Start with `python -m stts_mini.lab.paper`.
"""
