"""Is it faster? The benchmark, its page, the counted limit, when it pays, and our backbones beside Hugging Face's.

Answers are not judged here. Start with `python -m stts_mini.lab.speed`.
"""
