"""What the trial finds in small models of transformers' classes, as docs/scale-invariance.md tells."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch

import mooring as mo

pytestmark = pytest.mark.hosts

WIDTHS = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
GROUPED = {**WIDTHS, "vocab_size": 64, "head_dim": 8, "num_key_value_heads": 1}
# model class, configuration, input -> which weights (a pattern for the whole name), and by what
CASES: dict[str, tuple[str, dict[str, Any], str, str, str]] = {
    "ResNet": (
        "ForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"},
        "images",
        r".*convolution\.weight",
        "row",
    ),
    "ViT": ("ForImageClassification", {**WIDTHS, "image_size": 16, "patch_size": 8}, "images", "", ""),
    "ConvNext": (
        "ForImageClassification",
        {"hidden_sizes": [8, 16], "depths": [1, 1], "num_stages": 2},
        "images",
        "",
        "",
    ),
    "Bert": ("ForSequenceClassification", {**WIDTHS, "vocab_size": 64}, "words", "", ""),
    "GPT2": (
        "LMHeadModel",
        {"n_embd": 16, "n_layer": 2, "n_head": 2, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 0},
        "words",
        "",
        "",
    ),
    "T5": (
        "EncoderModel",
        {"d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "vocab_size": 64},
        "words",
        "",
        "",
    ),
    "Llama": ("ForCausalLM", {**WIDTHS, "vocab_size": 64}, "words", "", ""),
    "Qwen3": ("ForCausalLM", GROUPED, "words", r".*\.[qk]_proj\.weight", "tensor"),
    "Gemma2": ("ForCausalLM", GROUPED, "words", r".*\.(?:[vo]|up|down)_proj\.weight", "tensor"),
}


@pytest.mark.parametrize("family", CASES)
def test_finds_what_the_page_tells(family: str) -> None:
    import transformers

    suffix, options, kind, pattern, scope = CASES[family]
    torch.manual_seed(0)
    model = getattr(transformers, family + suffix)(getattr(transformers, family + "Config")(**options))
    size = options.get("image_size", 32)
    batch = torch.randn(3, 3, size, size) if kind == "images" else {"input_ids": torch.randint(5, 60, (2, 6))}
    found = mo.scale_invariant_parameters(model, batch)
    names = [name for name, _ in model.named_parameters() if re.fullmatch(pattern, name)]
    assert bool(names) == bool(pattern)
    assert found == dict.fromkeys(names, scope)
    assert all(re.search(r"\.(?:k_proj|key)\.bias$", name) for name in found.unused)  # softmax does not see it
