"""Results for people to look at: scores as tables (`result`), pruned clips as pictures (`picture`).

Nothing is evaluated here: `stts_mini/eval.py` does that.
"""
