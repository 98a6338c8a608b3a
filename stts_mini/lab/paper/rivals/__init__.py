"""Published ways to prune video tokens, each in a screenful, on one checkpoint, one budget, one set of clips.

A file each; `protocol.py` says what a rival is, `known.py` lists them. Start with `evs.py`.
"""
