"""A plain torch loop: pretrain on clean digits, fine-tune on rotated ones, and see what each optimizer forgets.

pip install -c constraints.txt -e ".[cli]"        # for scikit-learn, whose digits these are
python examples/plain_loop.py
"""

import copy

import torch
from sklearn.datasets import load_digits
from torch.nn.functional import cross_entropy

import mooring as mo


def train(model, optimizer, images, labels, steps):
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    model.train()
    for _ in range(steps):
        rows = torch.randint(len(images), (32,))
        optimizer.zero_grad()
        cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
        schedule.step()
    model.eval()


def accuracy(model, images, labels):
    with torch.no_grad():
        return (model(images).argmax(1) == labels).float().mean().item()


def drift(model, start):
    return sum((p - q).square().sum() for p, q in zip(model.parameters(), start.parameters())).sqrt().item()


def main():
    torch.manual_seed(0)
    digits = load_digits()
    clean = torch.from_numpy(digits.images).float().unsqueeze(1) / 16
    rotated = torch.rot90(clean, 1, (2, 3))
    labels = torch.from_numpy(digits.target).long()

    start = torch.nn.Sequential(
        torch.nn.Conv2d(1, 16, 3, padding=1, bias=False), torch.nn.BatchNorm2d(16), torch.nn.ReLU(), torch.nn.Flatten(),
        torch.nn.Linear(1024, 64), torch.nn.ReLU(), torch.nn.Linear(64, 10),
    )  # fmt: skip
    train(start, mo.AdamW(start.parameters(), lr=3e-3), clean[:900], labels[:900], steps=300)
    print(f"pretrained: clean {accuracy(start, clean[900:], labels[900:]):.3f}, "
          f"rotated {accuracy(start, rotated[900:], labels[900:]):.3f}")  # fmt: skip

    for name, make in {
        "AdamW": lambda params: mo.AdamW(params, lr=3e-3),
        "AdamP": lambda params: mo.AdamP(params, lr=3e-3, weight_decay=1e-2),
        "AdamSPD": lambda params: mo.AdamSPD(params, lr=3e-3, strength=1.0),
    }.items():
        torch.manual_seed(1)  # the same batches for everyone
        model = copy.deepcopy(start)
        train(model, make(model.parameters()), rotated[:100], labels[:100], steps=150)
        print(f"{name:8} rotated {accuracy(model, rotated[900:], labels[900:]):.3f}   "
              f"still knows clean {accuracy(model, clean[900:], labels[900:]):.3f}   "
              f"drift {drift(model, start):.2f}")  # fmt: skip


if __name__ == "__main__":
    main()
