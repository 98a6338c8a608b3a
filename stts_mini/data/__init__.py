"""From files to a `Batch`: decoding (`video`), clips on disk (`clips`), tokens (`tokenizer`), batches (`batches`).

Beside them, how files are written (`files`), and a progress bar (`progress`).

No model and no training here.
"""
