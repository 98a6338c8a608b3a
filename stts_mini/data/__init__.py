"""From files to a `Batch`: decoding (`video`), clips on disk (`clips`), tokens (`tokenizer`), batches (`batches`).

No model and no training here.
"""
