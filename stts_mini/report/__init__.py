"""What people look at afterwards: scores as tables (`result`), pruned clips as pictures (`picture`).

Nothing is judged here: that is `stts_mini/eval.py`.
"""
