"""What the training loop needs: settings, optimisers, steps, health, saliency, checkpoints, processes, the log.

The loop itself is not here: it is `stts_mini/train.py`.
"""
