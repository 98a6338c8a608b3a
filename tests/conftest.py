"""One Hypothesis profile for all tests: no deadline (shared machines are slow now and then), printed
seeds, and more examples with HYPOTHESIS_PROFILE=thorough."""

import os

import torch
from hypothesis import HealthCheck, settings

common = dict(deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
settings.register_profile("default", max_examples=40, **common)
settings.register_profile("thorough", max_examples=400, **common)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "default"))
torch.manual_seed(0)
