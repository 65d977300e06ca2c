"""For every recipe a data set of the same layout, a few files of a few kilobytes, and a model of the same family.

A miniature changes sizes and nothing else of a recipe: `SIZES` lists what it may set.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

SIZES = {
    "task": {"image_size", "resize", "train_sample", "eval_batch", "block", "max_tokens", "holdout", "starts"},
    "train": {"batch_size"},
    "model": {"config", "width"},
}


@dataclass
class Miniature:
    """What is put in place of the real data and model.

    Attributes:
        data: the folder for ``--data``.
        task: sizes to set in the recipe's section ``task``.
        config: of the model, where the recipe makes it from a configuration.
        pretrained: the folder for ``--model``, where the recipe takes pretrained weights.
    """

    data: Path
    task: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=lambda: {"batch_size": 4})
    config: dict[str, Any] = field(default_factory=dict)
    width: int = 0
    pretrained: Path | None = None


def picture(path: Path, rng: random.Random, grey: bool = False) -> None:
    """A photograph's worth of noise: sides of 40 to 60 pixels, JPEG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    shape = (rng.randint(40, 60), rng.randint(40, 60)) + (() if grey else (3,))
    pixels = np.array(rng.choices(range(256), k=int(np.prod(shape))), dtype=np.uint8).reshape(shape)
    Image.fromarray(pixels).save(path, format="JPEG")


SMALL_IMAGES = {"image_size": 32, "train_sample": 4}
SMALL_RESNET = {"embedding_size": 8, "hidden_sizes": [8, 8, 16, 16]}


def imagenet(folder: Path) -> Miniature:
    rng = random.Random(0)
    for synset in ("n01440764", "n01443537", "n01484850"):
        for number in (10026, 10027, 10029):
            picture(folder / "data" / "train" / synset / f"{synset}_{number}.JPEG", rng, grey=number == 10029)
        picture(folder / "data" / "val" / synset / f"ILSVRC2012_val_{rng.randint(1, 50000):08d}.JPEG", rng)
    return Miniature(folder / "data", task=SMALL_IMAGES, config=SMALL_RESNET)


def imagenet_mobilenet(folder: Path) -> Miniature:
    made = imagenet(folder)
    made.config = {"depth_multiplier": 0.1, "min_depth": 8}
    return made


def cifar10(folder: Path) -> Miniature:
    place = folder / "data" / "cifar-10-batches-bin"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name in (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"):
        labels, pixels = rng.integers(10, size=(6, 1)), rng.integers(256, size=(6, 3072))
        (place / f"{name}.bin").write_bytes(np.hstack([labels, pixels]).astype(np.uint8).tobytes())
    (place / "batches.meta.txt").write_text("airplane\nautomobile\nbird\ncat\ndeer\ndog\nfrog\nhorse\nship\ntruck\n\n")
    return Miniature(folder / "data", width=4)


def cifar100(folder: Path) -> Miniature:
    place = folder / "data" / "cifar-100-binary"
    place.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for name, count in (("train", 12), ("test", 6)):
        coarse, fine = rng.integers(20, size=(count, 1)), rng.integers(100, size=(count, 1))
        pixels = rng.integers(256, size=(count, 3072))
        (place / f"{name}.bin").write_bytes(np.hstack([coarse, fine, pixels]).astype(np.uint8).tobytes())
    return Miniature(folder / "data", width=4)


def clip(folder: Path) -> Path:
    """CLIP, image and text encoder, as its checkpoint holds both."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    torch.manual_seed(0)
    model = CLIPModel(
        CLIPConfig(
            text_config={**sizes, "vocab_size": 64, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1},
            vision_config={**sizes, "image_size": 32, "patch_size": 16},
            projection_dim=8,
        )
    )
    model.save_pretrained(folder / "model")
    return folder / "model"


def domainnet(folder: Path) -> Miniature:
    rng = random.Random(0)
    data = folder / "data"
    classes = ("aircraft_carrier", "airplane", "alarm_clock")
    for domain, prefix in (("real", "real"), ("sketch", "sketch"), ("painting", "painting"),
                           ("infograph", "infograph"), ("clipart", "clipart")):  # fmt: skip
        for part, numbers in (("train", (1, 2)), ("test", (3,))):
            lines = []
            for label, name in enumerate(classes):
                for number in numbers:
                    path = f"{domain}/{name}/{prefix}_{label + 1:03d}_{number:06d}.jpg"
                    picture(data / path, rng)
                    lines.append(f"{path} {label}\n")
            (data / f"{domain}_{part}.txt").write_text("".join(lines))
    return Miniature(data, task={"image_size": 32, "resize": 32, "train_sample": 4}, pretrained=clip(folder))


def resnet34(folder: Path) -> Path:
    """A ResNet of the same family with a head of another size, as one trained on ImageNet has."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    torch.manual_seed(0)
    config = ResNetConfig(**SMALL_RESNET, depths=[3, 4, 6, 3], layer_type="basic", num_labels=7)
    ResNetForImageClassification(config).save_pretrained(folder / "model")
    return folder / "model"


def indoor(folder: Path) -> Miniature:
    rng = random.Random(0)
    data = folder / "data"
    lines: dict[str, list[str]] = {"TrainImages.txt": [], "TestImages.txt": []}
    for name in ("airport_inside", "artstudio", "bowling"):
        for number in range(3):
            image = f"{name}/{name} {number:04d}.jpg"  # names with spaces occur
            picture(data / "Images" / image, rng)
            lines["TestImages.txt" if number == 2 else "TrainImages.txt"].append(image + "\n")
    for file, names in lines.items():
        (data / file).write_text("".join(names))
    return Miniature(data, task=SMALL_IMAGES, pretrained=resnet34(folder))


def caltech256(folder: Path) -> Miniature:
    rng = random.Random(0)
    for number, name in ((1, "ak47"), (2, "american-flag"), (257, "clutter")):
        place = folder / "data" / "256_ObjectCategories" / f"{number:03d}.{name}"
        for image in range(1, 6):
            picture(place / f"{number:03d}_{image:04d}.jpg", rng)
    return Miniature(folder / "data", task=SMALL_IMAGES, pretrained=resnet34(folder))


def class_folders(folder: Path) -> Miniature:
    rng = random.Random(0)
    for name in ("707-320", "727-200"):
        for number in range(3):
            picture(folder / "data" / "train" / name / f"{number}.jpg", rng)
        picture(folder / "data" / "test" / name / "9.jpg", rng)
    return Miniature(folder / "data", task=SMALL_IMAGES, pretrained=resnet34(folder))


def wikitext(folder: Path) -> Miniature:
    rng = random.Random(0)
    data = folder / "data"
    data.mkdir()
    for name, lines in (("train", 12), ("valid", 4), ("test", 4)):
        text = [" \n = Robert <unk> = \n \n"]
        for _ in range(lines):
            words = rng.choices(["the", "film", "was", ",", "and", "@-@", "1997", "Valkyria", "."], k=12)
            text.append(f" {' '.join(words)} \n")
        (data / f"wiki.{name}.tokens").write_text("".join(text), encoding="utf-8")
    sizes = {"n_layer": 1, "n_embd": 8, "n_head": 2, "n_inner": 16, "n_positions": 8}
    return Miniature(data, task={"block": 8, "train_sample": 2}, config=sizes)


def llama(folder: Path) -> Path:
    """A LLaMA with a tokenizer of whole words."""
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    words = ["<unk>", "<s>", "</s>", "true", "false", "the", "correct", "answer", "is", "question", ":", "#", "."]
    reader = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token="<unk>"))
    reader.pre_tokenizer = pre_tokenizers.Whitespace()
    made = PreTrainedTokenizerFast(tokenizer_object=reader, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    made.save_pretrained(folder / "model")
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    LlamaForCausalLM(LlamaConfig(vocab_size=len(words), **sizes)).save_pretrained(folder / "model")
    return folder / "model"


def commonsense(folder: Path) -> Miniature:
    data = folder / "data"

    def examples(count: int) -> list[dict[str, str]]:
        question = "Please answer the following question with true or false, question: is the answer {}?"
        return [
            {
                "instruction": question.format(number),
                "input": "",
                "output": f"the correct answer is {'true' if number % 2 else 'false'}",
                "answer": "true" if number % 2 else "false",
            }
            for number in range(count)
        ]

    sets = ("boolq", "piqa", "social_i_qa", "hellaswag", "winogrande", "ARC-Easy", "ARC-Challenge", "openbookqa")
    files = {"ft-training_set/commonsense_170k.json": 6, **{f"dataset/{name}/test.json": 2 for name in sets}}
    for file, count in files.items():
        (data / file).parent.mkdir(parents=True, exist_ok=True)
        (data / file).write_text(json.dumps(examples(count)), encoding="utf-8")
    return Miniature(data, task={"max_tokens": 32, "train_sample": 2}, pretrained=llama(folder))


MINIATURES: dict[str, Callable[[Path], Miniature]] = {
    "imagenet-resnet18": imagenet,
    "imagenet-resnet18-no-decay": imagenet,
    "imagenet-resnet50": imagenet,
    "imagenet-mobilenetv2": imagenet_mobilenet,
    "cifar10-resnet18": cifar10,
    "cifar10-vgg16": cifar10,
    "cifar100-densenet121": cifar100,
    "domainnet-clip-vit-b": domainnet,
    "nso-indoor67": indoor,
    "nso-caltech256": caltech256,
    "nso-image-folder": class_folders,
    "wikitext103-gpt2": wikitext,
    "commonsense170k-lora": commonsense,
}
