"""Which files a task on data of one's own consists of, and what identifies them. No torch here.

Every function raises `SpecError` where the folder is not laid out as the task expects; the message names the path and
what should be there.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mooring.finetune.errors import SpecError, suggestion
from mooring.finetune.task_spec import CifarSpec, ImageFolderSpec, InstructionsSpec, LanguageModelSpec

IMAGES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".tif", ".tiff", ".ppm", ".pgm")
_LAYOUT = "train/CLASS/*.jpg and val/CLASS/*.jpg (or test/), or name folders or lists under 'splits'"
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Listed:
    """The files of one split with their labels."""

    paths: list[Path]
    labels: list[int]
    sizes: list[int]


@dataclass(frozen=True)
class Listing:
    """The classes and the files of every split."""

    classes: tuple[str, ...]
    splits: dict[str, Listed]

    def sha256(self, root: Path) -> str:
        """Over split, path below ``root``, size and label of every file: the files themselves are not read."""
        digest = hashlib.sha256()
        for name, listed in self.splits.items():
            for path, label, size in zip(listed.paths, listed.labels, listed.sizes, strict=True):
                below = path.relative_to(root).as_posix() if path.is_relative_to(root) else path.as_posix()
                digest.update(f"{name}\0{below}\0{size}\0{label}\n".encode())
        return digest.hexdigest()


def folder(task: str, data: str) -> Path:
    """The folder that was named, which has to exist."""
    if not data:
        raise SpecError(
            f"task {task!r} needs your data: give its folder with --data FOLDER, or as task.data in the file"
        )
    path = Path(data).expanduser()
    if not path.is_dir():
        raise SpecError(f"task {task!r}: there is no folder {data!r}; --data names the folder that holds the data set")
    return path


def contents_sha256(paths: Iterable[Path]) -> str:
    """Over the names and contents of files, in the order given."""
    digest = hashlib.sha256()
    for path in paths:
        digest.update(f"{path.name}\0{path.stat().st_size}\0".encode())
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    return digest.hexdigest()


def list_images(spec: ImageFolderSpec) -> Listing:
    """The images of an ``image-folder`` task."""
    data = folder(spec.name, spec.data)
    splits = spec.splits or _usual_splits(data)
    found: dict[str, list[tuple[Path, str, int]]] = {}
    numbered: dict[str, bool] = {}
    for name, source in splits.items():
        path = data / source
        if path.is_dir():
            found[name], numbered[name] = _in_folders(name, path), False
        elif path.is_file():
            found[name], numbered[name] = _in_list(path, data / spec.root)
        else:
            near = suggestion(source, (entry.name for entry in data.iterdir()))
            raise SpecError(
                f"split {name!r}: there is no {str(path)!r}{near}; it should be a folder of class folders or a list of "
                "images"
            )
    if len(set(numbered.values())) > 1:
        kinds = ", ".join(f"{name}: {'numbers' if number else 'names'}" for name, number in numbered.items())
        raise SpecError(f"the classes of all splits must be numbers in lists, or names of folders, got {kinds}")
    if numbered["train"]:
        highest = max(int(one) for rows in found.values() for _, one, _ in rows)
        classes = tuple(str(number) for number in range(highest + 1))
    else:
        classes = tuple(sorted({one for _, one, _ in found["train"]}))
    label = {one: number for number, one in enumerate(classes)}
    if len(classes) < 2:
        raise SpecError(f"split 'train' in {str(data)!r} has {len(classes)} class, it takes at least two")
    for name, rows in found.items():
        unknown = sorted({one for _, one, _ in rows} - set(label))
        if unknown:
            raise SpecError(
                f"split {name!r} in {str(data)!r} has the class {unknown[0]!r}{suggestion(unknown[0], label)}, which "
                "the training images do not have"
            )
    return Listing(
        classes,
        {
            name: Listed([p for p, _, _ in rows], [label[one] for _, one, _ in rows], [size for _, _, size in rows])
            for name, rows in found.items()
        },
    )


def _usual_splits(data: Path) -> dict[str, str]:
    has = {name for name in ("train", "val", "test") if (data / name).is_dir()}
    if "train" not in has or has == {"train"}:
        entries = sorted(entry.name + "/" * entry.is_dir() for entry in data.iterdir())[:6]
        raise SpecError(f"{str(data)!r} should hold {_LAYOUT}; it holds {', '.join(entries) or 'nothing'}")
    if has == {"train", "val", "test"}:
        return {"train": "train", "id_val": "val", "id": "test"}
    return {"train": "train", "id": "val" if "val" in has else "test"}


def _in_folders(split: str, path: Path) -> list[tuple[Path, str, int]]:
    with os.scandir(path) as entries:
        below = sorted(entries, key=lambda entry: entry.name)
    classes = [entry for entry in below if entry.is_dir() and not entry.name.startswith(".")]
    if not classes:
        loose = "images but no class folders" if any(_is_image(entry.name) for entry in below) else "no class folders"
        raise SpecError(f"split {split!r}: {str(path)!r} holds {loose}; expected {path.name}/CLASS/*.jpg")
    found = []
    for one in classes:
        with os.scandir(one.path) as entries:
            images = sorted((entry for entry in entries if _is_image(entry.name)), key=lambda entry: entry.name)
        if not images:
            raise SpecError(
                f"split {split!r}: the class folder {one.path!r} holds no image; remove it, or give it some "
                f"({', '.join(IMAGES)})"
            )
        found += [(Path(entry.path), one.name, entry.stat().st_size) for entry in images]
    return found


def _in_list(path: Path, root: Path) -> tuple[list[tuple[Path, str, int]], bool]:
    found = []
    numbered: set[bool] = set()
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        image, _, label = line.strip().rpartition(" ")
        has_number = bool(image) and label.isdecimal()
        numbered.add(has_number)
        file = root / (image if has_number else line.strip())
        try:
            size = file.stat().st_size
        except OSError:
            raise SpecError(
                f"line {number} of {str(path)!r} names {str(file)!r}, which is not there; paths in lists begin at "
                "'root'"
            ) from None
        found.append((file, label if has_number else file.parent.name, size))
    if not found:
        raise SpecError(f"the list {str(path)!r} names no image")
    if len(numbered) > 1:
        raise SpecError(f"the list {str(path)!r} gives some images a class number and others none")
    return found, numbered == {True}


def _is_image(name: str) -> bool:
    return name.lower().endswith(IMAGES) and not name.startswith(".")


def list_texts(spec: LanguageModelSpec | InstructionsSpec) -> dict[str, list[Path]]:
    """The files of every split of a task on texts."""
    data = folder(spec.name, spec.data)
    found = {split: [data / name for name in names] for split, names in spec.files.items()}
    for split, paths in found.items():
        for path in paths:
            if not path.is_file():
                beside = [one.name for one in path.parent.iterdir()] if path.parent.is_dir() else []
                near = suggestion(path.name, beside)
                raise SpecError(
                    f"split {split!r}: there is no file {str(path)!r}{near}; task.files names the file of each split, "
                    "below the data folder"
                )
            if not path.stat().st_size:
                raise SpecError(f"split {split!r}: the file {str(path)!r} is empty")
    return found


def count_words(paths: Iterable[Path]) -> int:
    """Words in files, the end of every line being one."""
    count = 0
    for path in paths:
        with path.open(encoding="utf-8") as lines:
            count += sum(len(line.split()) + 1 for line in lines)
    return count


def read_instructions(paths: Iterable[Path]) -> list[dict[str, str]]:
    """The examples in JSON files, each with ``instruction``, ``input`` and ``output``."""
    found: list[dict[str, str]] = []
    for path in paths:
        try:
            text = path.read_text(encoding="utf-8")
            lines = [line for line in text.splitlines() if line.strip()] if path.suffix == ".jsonl" else []
            content = [json.loads(line) for line in lines] if lines else json.loads(text)
        except ValueError as error:
            raise SpecError(f"{str(path)!r} cannot be read as JSON: {error}") from None
        if not isinstance(content, list) or not content:
            raise SpecError(f"{str(path)!r} should hold a list of examples")
        for number, row in enumerate(content):
            if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("instruction", "output")):
                keys = ", ".join(row) if isinstance(row, dict) else type(row).__name__
                raise SpecError(
                    f"example {number} of {str(path)!r} should have the texts 'instruction' and 'output' (and may have "
                    f"'input'); it has {keys}"
                )
            found.append({key: str(row.get(key) or "") for key in ("instruction", "input", "output")})
    return found


@dataclass(frozen=True)
class CifarFiles:
    """The binary files of CIFAR, and how long one record is: label bytes and 3072 bytes of image."""

    train: tuple[Path, ...]
    test: tuple[Path, ...]
    label_bytes: int

    @property
    def record(self) -> int:
        """Bytes per image."""
        return self.label_bytes + 3072

    def count(self, paths: Iterable[Path]) -> int:
        """Images in files."""
        return sum(path.stat().st_size for path in paths) // self.record


def list_cifar(spec: CifarSpec) -> CifarFiles:
    """The files of a ``cifar`` task, in the folder or in the one that the archive unpacks to."""
    data = folder(spec.name, spec.data)
    unpacked = data / ("cifar-10-batches-bin" if spec.classes == 10 else "cifar-100-binary")
    place = unpacked if unpacked.is_dir() else data
    if spec.classes == 10:
        train, test = sorted(place.glob("data_batch_*.bin")), [place / "test_batch.bin"]
        wanted = "data_batch_1.bin … data_batch_5.bin and test_batch.bin"
    else:
        train, test = [place / "train.bin"], [place / "test.bin"]
        wanted = "train.bin and test.bin"
    if not train or not all(path.is_file() for path in (*train, *test)):
        pickled = any((place / name).is_file() for name in ("data_batch_1", "train", "batches.meta", "meta"))
        pickled = pickled or any((data / name).is_dir() for name in ("cifar-10-batches-py", "cifar-100-python"))
        hint = "; what is there is the Python version, a pickle, which is never read" if pickled else ""
        raise SpecError(f"{str(place)!r} should hold the binary version of CIFAR-{spec.classes}: {wanted}{hint}")
    files = CifarFiles(tuple(train), tuple(test), 1 if spec.classes == 10 else 2)
    for path in (*train, *test):
        size = path.stat().st_size
        if not size or size % files.record:
            raise SpecError(
                f"{str(path)!r} has {size} bytes, which is no multiple of the {files.record} of one "
                f"CIFAR-{spec.classes} image"
            )
    return files
