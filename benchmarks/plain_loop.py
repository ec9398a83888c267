"""A plain PyTorch and timm training loop as most repositories write it; the peer of ``train_throughput.py``.

Every sample is opened by PIL and converted to RGB, and passes torchvision's transforms one by one, as in the
baseline script that COVID-CT is published with; images lie in memory channel by channel; nothing is tuned. It
knows nothing of groundglass.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Slices(Dataset[tuple[Tensor, int]]):
    """Image files and their labels.

    Args:
        samples: path and label of each.
        transform: of the opened image.
    """

    def __init__(self, samples: list[tuple[str, int]], transform: transforms.Compose) -> None:
        self.samples = samples
        self.transform = transform

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.samples[index]
        return self.transform(Image.open(path).convert("RGB")), label


def main() -> None:
    """Train as told on the command line and write one row of figures per epoch as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("samples", type=Path, help="JSON: lists of [path, label] under train and val")
    parser.add_argument("output", type=Path, help="JSON with the figures of each epoch")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    train_loader, val_loader = loaders(options)
    model = timm.create_model(options.network, pretrained=False, num_classes=2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    criterion = nn.CrossEntropyLoss()
    rows = []
    for _ in range(options.epochs):
        start = time.perf_counter()
        row = train_one_epoch(model, train_loader, optimizer, criterion)
        validate(model, val_loader, criterion)
        rows.append({**row, "seconds": time.perf_counter() - start})
    options.output.write_text(json.dumps(rows), encoding="utf-8")


def loaders(options: argparse.Namespace) -> tuple[DataLoader[tuple[Tensor, int]], DataLoader[tuple[Tensor, int]]]:
    """Loaders of the training and the validation part; resized and cropped in the usual ratio, 256 to 224."""
    size, resized = options.size, round(options.size * 256 / 224)
    normalize = transforms.Normalize(mean=MEAN, std=STD)
    train_transform = transforms.Compose(
        [
            transforms.Resize(resized),
            transforms.RandomResizedCrop(size, scale=(0.5, 1.0)),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            normalize,
        ]
    )
    val_transform = transforms.Compose(
        [transforms.Resize(resized), transforms.CenterCrop(size), transforms.ToTensor(), normalize]
    )
    samples = json.loads(options.samples.read_text(encoding="utf-8"))
    common = {"batch_size": options.batch_size, "num_workers": options.workers}
    return (
        DataLoader(Slices(samples["train"], train_transform), shuffle=True, **common),
        DataLoader(Slices(samples["val"], val_transform), shuffle=False, **common),
    )


def train_one_epoch(
    model: nn.Module, loader: DataLoader[tuple[Tensor, int]], optimizer: torch.optim.Optimizer, criterion: nn.Module
) -> dict[str, float]:
    """One epoch of training; images per second, and the share of the time spent waiting for data."""
    model.train()
    images_seen, waited = 0, 0.0
    start = batch_end = time.perf_counter()
    for images, labels in loader:
        waited += time.perf_counter() - batch_end
        optimizer.zero_grad()
        loss = criterion(model(images), labels)
        loss.backward()
        optimizer.step()
        loss.item()
        images_seen += len(images)
        batch_end = time.perf_counter()
    trained = batch_end - start
    return {"images_per_second": images_seen / trained, "data_share": waited / trained, "images": images_seen}


def validate(model: nn.Module, loader: DataLoader[tuple[Tensor, int]], criterion: nn.Module) -> float:
    """Mean loss over the batches of the validation part."""
    model.eval()
    total = torch.zeros(())
    with torch.no_grad():
        for images, labels in loader:
            total += criterion(model(images), labels)
    return total.item() / len(loader)


if __name__ == "__main__":
    main()
