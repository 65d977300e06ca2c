"""Watch two optimizers fine-tune on the digits of other writers, and draw what their steps did.

pip install -c constraints.txt -e ".[cli]"        # for scikit-learn, whose digits these are, and matplotlib
python examples/watch.py                          # writes watch.png
python examples/watch.py docs/images/watch.png    # the picture of docs/telemetry.md
"""

import copy
import sys
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import mooring as mo


def train(model, optimizer, images, labels, steps):
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (16,))
        optimizer.zero_grad()
        cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    model.eval()


def main():
    torch.manual_seed(0)
    torch.set_num_threads(1)
    digits = load_digits()
    images = torch.from_numpy(digits.images).float().unsqueeze(1) / 16  # in the order of their writers
    labels = torch.from_numpy(digits.target).long()
    start = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.Conv2d(16, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(),
        torch.nn.AvgPool2d(2), torch.nn.Flatten(), torch.nn.Linear(256, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    train(start, mo.AdamW(start.parameters(), lr=3e-3), images[:900], labels[:900], steps=300)

    watches = []
    for make in (lambda params: mo.AdamSPD(params, lr=1e-3, strength=3.0), lambda params: mo.AdamW(params, lr=1e-3)):
        torch.manual_seed(1)  # the same batches for both
        model = copy.deepcopy(start)
        optimizer = make(model.parameters())
        watches.append(mo.watch(optimizer, every=4))
        train(model, optimizer, images[900:1100], labels[900:1100], steps=600)
        moved = watches[-1].history["model/drift/relative"][-1]
        print(f"{watches[-1].label:8} moved {moved:.1%} of its norm away from the pretrained weights")

    path = Path(sys.argv[1] if len(sys.argv) > 1 else "watch.png")
    watches[0].save(path, others=watches[1:])
    print(f"wrote {path}")


if __name__ == "__main__":
    main()
