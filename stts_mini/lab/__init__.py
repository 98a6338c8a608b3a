"""Tools on top of all, each a command: ask, explore, long, check, grade, pretrained; and the rooms `speed` and `paper`.

Nothing outside the lab imports it, and the method needs none of it.
"""
