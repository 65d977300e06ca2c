"""Hugging Face Trainer with AdamSPD: the pretrained body is anchored, the new head is free.

pip install -c constraints.txt -e ".[hosts]"
python examples/trainer.py                        # a tiny random model and made-up rows
python examples/trainer.py path/to/a/local/model  # any sequence classification model on disk
"""

import sys

import torch
from transformers import (
    AutoModelForSequenceClassification,
    BertConfig,
    Trainer,
    TrainingArguments,
    get_linear_schedule_with_warmup,
)

import mooring as mo

STEPS = 30


def main():
    torch.manual_seed(0)
    if len(sys.argv) > 1:
        model = AutoModelForSequenceClassification.from_pretrained(sys.argv[1], num_labels=2)
    else:
        model = AutoModelForSequenceClassification.from_config(
            BertConfig(vocab_size=64, hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=64)
        )
    tokens = torch.randint(64, (256, 16))
    rows = [{"input_ids": row, "labels": (row[0] >= 32).long()} for row in tokens]

    groups = mo.param_groups(model, head="classifier")
    print(groups)
    optimizer = mo.AdamSPD(groups, lr=1e-3, strength=1.0)
    schedule = get_linear_schedule_with_warmup(optimizer, num_warmup_steps=3, num_training_steps=STEPS)
    print(optimizer)

    arguments = TrainingArguments(
        output_dir="runs/trainer-example", max_steps=STEPS, logging_steps=10, use_cpu=True, report_to="none"
    )
    Trainer(model=model, args=arguments, train_dataset=rows, optimizers=(optimizer, schedule)).train()

    squares = [(p - state["anchor"]).square().sum() for p, state in optimizer.state.items() if "anchor" in state]
    print(f"distance of the body from its pretrained weights: {torch.stack(squares).sum().sqrt():.4f}")


if __name__ == "__main__":
    main()
