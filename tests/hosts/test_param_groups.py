"""Golden tables: the groups of five models' layouts, built from their configurations without weights."""

from __future__ import annotations

from typing import Any

import pytest
import torch

import mooring as mo

pytestmark = pytest.mark.hosts

# title of the group -> (tensors, elements, weight_decay, delta, row_dim, anchor)
HEAD_BIAS = "norms and biases, free"
GOLDEN: dict[str, tuple[str, dict[str, Any], str, dict[str, tuple[Any, ...]]]] = {
    "ResNet": (
        "ForImageClassification",
        {"num_labels": 10},
        "classifier",
        {
            "weights": (53, 23_454_912, 0.1, None, 0, "capture"),
            "norms and biases": (106, 53_120, 0.0, None, 0, "capture"),
            "weights, free": (1, 20_480, 0.1, None, 0, None),
            HEAD_BIAS: (1, 10, 0.0, None, 0, None),
        },
    ),
    "ViT": (
        "ForImageClassification",
        {"num_labels": 10},
        "classifier",
        {
            "embeddings": (2, 768 + 197 * 768, 0.1, 0.0, 0, "capture"),
            "weights": (73, 85_676_544 - 768 - 197 * 768, 0.1, None, 0, "capture"),
            "norms and biases": (123, 122_112, 0.0, None, 0, "capture"),
            "weights, free": (1, 7_680, 0.1, None, 0, None),
            HEAD_BIAS: (1, 10, 0.0, None, 0, None),
        },
    ),
    "Bert": (
        "ForSequenceClassification",
        {"num_labels": 2},
        "classifier",
        {
            "embeddings": (3, 23_835_648, 0.1, 0.0, 0, "capture"),
            "weights": (73, 85_524_480, 0.1, None, 0, "capture"),
            "norms and biases": (123, 122_112, 0.0, None, 0, "capture"),
            "weights, free": (1, 1_536, 0.1, None, 0, None),
            HEAD_BIAS: (1, 2, 0.0, None, 0, None),
        },
    ),
    "GPT2": (
        "ForSequenceClassification",
        {"num_labels": 2},
        "score",
        {
            "embeddings": (2, 39_383_808, 0.1, 0.0, 0, "capture"),
            "weights, transposed": (48, 84_934_656, 0.1, None, 1, "capture"),
            "norms and biases": (98, 121_344, 0.0, None, 0, "capture"),
            "weights, free": (1, 1_536, 0.1, None, 0, None),
        },
    ),
    "Llama": (
        "ForCausalLM",
        {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 4, "num_attention_heads": 8,
         "vocab_size": 1000},
        "lm_head",
        {
            "embeddings": (1, 256_000, 0.1, 0.0, 0, "capture"),
            "weights": (28, 3_162_112, 0.1, None, 0, "capture"),
            "norms and biases": (9, 2_304, 0.0, None, 0, "capture"),
            "weights, free": (1, 256_000, 0.1, None, 0, None),
        },
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", GOLDEN)
def test_groups_of_a_known_layout(name: str) -> None:
    import transformers

    task, options, head, expected = GOLDEN[name]
    config = getattr(transformers, f"{name}Config")(**options)
    with torch.device("meta"):
        model = getattr(transformers, f"{name}{task}")(config)
    groups = mo.param_groups(model, 0.1, head=head)
    print(groups)
    keys = ("weight_decay", "delta", "row_dim", "anchor")
    found = {
        g["name"]: (len(g["params"]), sum(p.numel() for _, p in g["params"]), *(g.get(k) for k in keys)) for g in groups
    }
    assert found == expected

    layered = mo.param_groups(model, head=head, lr=1.0, layer_decay=0.5)
    depth = {"ResNet": 4, "Llama": 4}.get(name, 12)
    rates = {g["lr"] for g in layered}
    assert rates == {0.5**i for i in range(depth + 2)}
