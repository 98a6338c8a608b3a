"""What the training loop needs: settings, optimisers, one step, the scorer's health, saliency, checkpoints, several processes, the log.

The loop itself is not here: it is `stts_mini/train.py`.
"""
