"""A ResNet-18 for CIFAR-10, of a folder of images: ``python -m tests.training IMAGES OUT.pth``.

The folder holds ``train`` and ``test``, with a folder of images for each class. The network is the
one of OpenOOD's figures for CIFAR-10; it is trained for 6 epochs, not their 100.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F
from torch.utils.data import DataLoader

from skood.datasets import load_image_list
from tests.networks import ResNet

# Of a channel, as the network expects it.
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BATCH = 128


def resnet18():
    """Return a ResNet-18 for images of 32 pixels, which its first layer does not shrink."""
    return ResNet(10, width=64, blocks=2)


def read(folder):
    """Return images, bytes of shape (n, 3, 32, 32), and labels."""
    images = load_image_list(
        folder, transform=lambda image: torch.from_numpy(np.array(image)).permute(2, 0, 1)
    )
    parts = list(DataLoader(images, batch_size=1000))
    return torch.cat([part for part, _ in parts]), torch.cat([labels for _, labels in parts])


def normalised(images):
    """Return bytes as the numbers that the network takes."""
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    images = (images / 255 - mean) / std
    return images.to(memory_format=torch.channels_last)


def augmented(images, generator):
    """Return each image moved by up to 4 pixels, and half of them mirrored."""
    n = len(images)
    padded = F.pad(images, (4, 4, 4, 4))
    down, right = torch.randint(9, (2, n, 1), generator=generator)
    pixel = torch.arange(32)
    across = torch.where(torch.rand(n, 1, generator=generator) < 0.5, pixel, 31 - pixel) + right
    row = torch.arange(n).view(n, 1, 1)
    moved = padded.permute(0, 2, 3, 1)[row, (pixel + down)[:, :, None], across[:, None]]
    return moved.permute(0, 3, 1, 2)


def train(images, labels, epochs):
    """Return a network trained by momentum with one cycle of the learning rate."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    network = resnet18().to(memory_format=torch.channels_last).train()
    optimizer = torch.optim.SGD(
        network.parameters(), lr=0.1, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    n_batches = len(images) // BATCH
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, epochs * n_batches)
    started = time.perf_counter()
    for epoch in range(epochs):
        losses = []
        order = torch.randperm(len(images), generator=generator)
        for rows in order[: n_batches * BATCH].split(BATCH):
            batch = normalised(augmented(images[rows], generator))
            # A third of the time of float32, where the processor multiplies bfloat16.
            with torch.autocast("cpu", torch.bfloat16):
                loss = F.cross_entropy(network(batch).float(), labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        minutes = (time.perf_counter() - started) / 60
        print(f"epoch {epoch + 1}: loss {np.mean(losses):.3f}, {minutes:.0f} min", flush=True)
    return network.eval()


@torch.inference_mode()
def accuracy(network, images, labels):
    """Return the share of images whose class is found."""
    parts = [network(normalised(part)).argmax(1) for part in images.split(500)]
    return (torch.cat(parts) == labels).double().mean().item()


def main():
    """Train, print the accuracy and write the weights."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.training", description=__doc__.splitlines()[0]
    )
    parser.add_argument("images", type=Path, help="folder with train and test")
    parser.add_argument("out", type=Path, help="where to write the weights")
    parser.add_argument("--epochs", type=int, default=6, help="(6)")
    options = parser.parse_args()
    network = train(*read(options.images / "train"), options.epochs)
    torch.save({"state_dict": network.state_dict()}, options.out)
    print(f"accuracy {accuracy(network, *read(options.images / 'test')):.3f}")


if __name__ == "__main__":
    main()
