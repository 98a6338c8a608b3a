"""The paper's tables in miniature: rows and bases to train, their tables; `rivals`, other ways to prune.

Of speed, only what each rival saves is measured here. Start with `python -m stts_mini.lab.paper`.
"""
