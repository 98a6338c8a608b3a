"""Settings so small that a training step takes milliseconds, for tests of train and eval."""

from stts_mini.training.config import TrainConfig

TINY = dict(
    train_clips=dict(short=6, watch=2, image=2, brief=2), stages=dict(image=1, brief=1), test_clips=4,
    max_frames=4, steps=4, batch_size=4, questions=2, warmup=2, save_every=2, image_size=48, patch_size=8,
    vit_width=8, vit_depth=4, vit_mlp=8, connector_mlp=8, llm_width=8, llm_depth=1, llm_heads=2, llm_kv_heads=1,
    llm_head_dim=4, llm_mlp=8, device="cpu",
)  # fmt: skip


def tiny(tmp_path, config=TrainConfig, **options) -> TrainConfig:
    return config(**{**TINY, "data": str(tmp_path / "data"), "out": str(tmp_path / "run"), **options})
