"""What the training loop needs: settings, optimisers, one step, health, saliency, checkpoints, processes, the log.

The loop itself is not here: it is `stts_mini/train.py`.
"""
