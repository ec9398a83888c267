"""A plain PyTorch and timm prediction pipeline as most repositories write it; the peer of ``predict.py``.

Every file is opened by PIL and converted to RGB, and passes torchvision's transforms one by one; the network
runs in eager mode, in 32-bit floating point, in batches; nothing is tuned. It knows nothing of groundglass.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import timm
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Slices(Dataset[Tensor]):
    """Image files.

    Args:
        paths: of the files.
        transform: of the opened image.
    """

    def __init__(self, paths: list[str], transform: transforms.Compose) -> None:
        self.paths = paths
        self.transform = transform

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image: Tensor = self.transform(Image.open(self.paths[index]).convert("RGB"))
        return image


def main() -> None:
    """Predict as told on the command line and write the figures as JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("files", type=Path, help="JSON: a list of paths")
    parser.add_argument("output", type=Path, help="JSON with the figures")
    parser.add_argument("--network", default="tf_efficientnet_lite0")
    parser.add_argument("--size", type=int, default=160)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--workers", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = timm.create_model(options.network, pretrained=False, num_classes=1)
    model.eval()
    loader = files_loader(options)
    with torch.inference_mode():
        model(torch.zeros(options.batch_size, 3, options.size, options.size))  # warms up
        start = time.perf_counter()
        probabilities = torch.cat([torch.sigmoid(model(images)).squeeze(1) for images in loader])
        seconds = time.perf_counter() - start
    row = {"seconds": seconds, "slices": len(probabilities)}
    options.output.write_text(json.dumps(row), encoding="utf-8")


def files_loader(options: argparse.Namespace) -> DataLoader[Tensor]:
    """Batches of the files named on the command line, each picture squeezed to the network's square."""
    transform = transforms.Compose(
        [
            transforms.Resize((options.size, options.size)),
            transforms.ToTensor(),
            transforms.Normalize(mean=MEAN, std=STD),
        ]
    )
    paths = json.loads(options.files.read_text(encoding="utf-8"))
    return DataLoader(Slices(paths, transform), batch_size=options.batch_size, num_workers=options.workers)


if __name__ == "__main__":
    main()
