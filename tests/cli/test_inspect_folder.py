"""``mooring inspect`` on folders of Hugging Face models: a classifier and a language model, on batches by name."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

transformers = pytest.importorskip("transformers")

pytestmark = pytest.mark.recipes

MODULE = """
import torch
g = torch.Generator().manual_seed(0)
tokens = torch.randint(1, 60, (6, 7), generator=g)
def classes():
    return [{"input_ids": tokens, "labels": torch.randint(3, (6,), generator=g)}]
def text():
    return [{"input_ids": tokens, "labels": tokens}]
"""


def test_a_folder_makes_its_own_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    from mooring.cli import main

    monkeypatch.chdir(tmp_path)
    Path("hf.py").write_text(MODULE)
    sys.modules.pop("hf", None)
    torch.manual_seed(0)
    small = dict(vocab_size=60, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16)
    bert = transformers.BertForSequenceClassification(transformers.BertConfig(**small, num_labels=3))
    bert.save_pretrained("start")
    with torch.no_grad():
        bert.classifier.weight.mul_(2)
    bert.save_pretrained("bert")
    llama = transformers.LlamaForCausalLM(transformers.LlamaConfig(**small, tie_word_embeddings=True))
    llama.save_pretrained("llama")
    options = ("--probes", "2", "--top", "1", "--density", "3", "--sigma", "0.01", "--json", "--output-dir")

    code = main(["inspect", "bert", "--anchor", "start", "--data", "hf:classes", *options, "a"])
    found = json.loads(capfd.readouterr().out)
    assert code == 0 and found["model"] == "BertForSequenceClassification"
    moved = {row["name"]: row["relative"] for row in found["layers"]}
    assert moved.pop("classifier.weight") == pytest.approx(1.0)
    assert all(not value for value in moved.values())
    assert found["calibration"]["count"] == 6 and found["hessian"]["method"] == "double_backward"
    code = main(["inspect", "llama", "--data", "hf:text", *options, "b"])
    found = json.loads(capfd.readouterr().out)
    assert code == 0 and "calibration" not in found  # its logits are shifted against the labels
    assert found["weights"] == sum(p.numel() for p in llama.parameters())
    assert found["loss"] == pytest.approx(torch.tensor(60.0).log().item(), rel=0.05)
