"""Our backbones against Hugging Face's, on random weights: the same values, the same gradients.

Needs `pip install -e '.[backbones]'`; skipped without it.
"""

import pytest
import torch

from stts_mini.llm import LLM, LLMConfig, from_qwen3
from stts_mini.vit import ViT, ViTConfig, from_siglip

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("default")  # other people's warnings are not our errors


def randomise(model, seed=0):
    """Every parameter, norms and biases included, so that none can be forgotten."""
    torch.manual_seed(seed)
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.2)
    return model.double().eval()


def same_gradients(ours, theirs, rename, **options):
    expected = rename({n: p.grad for n, p in theirs.named_parameters() if p.grad is not None}, **options)
    got = {n: p.grad for n, p in ours.named_parameters() if p.grad is not None}
    assert got.keys() == expected.keys()
    for name in got:
        torch.testing.assert_close(got[name], expected[name], rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    "size, patch, width, depth, heads, mlp", [(8, 2, 8, 1, 2, 12), (12, 4, 24, 3, 3, 20), (10, 5, 16, 2, 1, 64)]
)
def test_vit_is_siglip(size, patch, width, depth, heads, mlp):
    theirs = randomise(
        transformers.SiglipVisionModel(
            transformers.SiglipVisionConfig(
                image_size=size,
                patch_size=patch,
                hidden_size=width,
                num_hidden_layers=depth,
                num_attention_heads=heads,
                intermediate_size=mlp,
            )
        )
    )
    ours = ViT(ViTConfig(image_size=size, patch_size=patch, width=width, depth=depth, heads=heads, mlp=mlp)).double()
    ours.load_state_dict(from_siglip(theirs.state_dict()))
    frames = torch.randn(3, 3, size, size, dtype=torch.float64)
    a, b = ours(frames), theirs(pixel_values=frames).last_hidden_state
    torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    same_gradients(ours, theirs, from_siglip)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("width, heads, kv_heads, head_dim", [(16, 4, 2, 4), (12, 2, 2, 8), (8, 6, 1, 10)])
def test_llm_is_qwen3(tied, width, heads, kv_heads, head_dim):
    theirs = randomise(
        transformers.Qwen3ForCausalLM(
            transformers.Qwen3Config(
                vocab_size=31,
                hidden_size=width,
                num_hidden_layers=2,
                num_attention_heads=heads,
                head_dim=head_dim,
                num_key_value_heads=kv_heads,
                intermediate_size=20,
                tie_word_embeddings=tied,
                rope_parameters={"rope_type": "default", "rope_theta": 1e6},
                rms_norm_eps=1e-6,
            )
        )
    )
    ours = LLM(
        LLMConfig(31, width, depth=2, heads=heads, kv_heads=kv_heads, head_dim=head_dim, mlp=20, tied=tied)
    ).double()
    ours.load_state_dict(from_qwen3(theirs.state_dict(), tied))
    ids = torch.randint(31, (2, 9))
    a, b = ours.logits(ours(ours.embed(ids))), theirs(input_ids=ids).logits
    torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)  # their cosines are float32, ours float64 here
    weight = torch.randn_like(a)
    (a * weight).sum().backward()
    (b * weight).sum().backward()
    same_gradients(ours, theirs, from_qwen3, tied=tied)
