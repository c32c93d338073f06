#!/usr/bin/env python3
"""What the same training costs in PyTorch: the counterpart of
`worker-trainer --bench benches/lecture-network.toml`.

The lecture's network with dropout takes real steps on real images, each moved by a pixel or not, with Nesterov momentum
and weight decay. One line of JSON says how many images a second of wall and of CPU time were trained on. Run it in each
of the three modes and quote the best:

    python3 -m venv venv && venv/bin/pip install torch==2.11.0 numpy
    venv/bin/python benches/pytorch_baseline.py --mode channels-last --batch 64
"""

import argparse
import gzip
import json
import pathlib
import time

import numpy
import torch
from torch import nn
from torch.nn import functional

MODES = ("eager", "channels-last", "compile")
TRAIN = 50_000
# Where a padded image is cut out, for: as it is, down, up, right, left.
OFFSETS = ((1, 1), (0, 1), (2, 1), (1, 0), (1, 2))
WARM_UP_STEPS = 20
STEPS_AT_A_TIME = 10
LOSS_STEPS = 100


class Network(nn.Sequential):
    """Images [n, 1, 28, 28] in 0..1 to logits [n, 10]."""

    def __init__(self):
        super().__init__(
            nn.Conv2d(1, 20, 5), nn.MaxPool2d(2), nn.ReLU(),
            nn.Conv2d(20, 40, 5), nn.MaxPool2d(2), nn.ReLU(), nn.Flatten(),
            nn.Dropout(0.5), nn.Linear(640, 1000), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(1000, 1000), nn.ReLU(),
            nn.Dropout(0.5), nn.Linear(1000, 10),
        )  # fmt: skip


class Data:
    """Training images with a border of one zero, and what cuts moved batches out of them."""

    def __init__(self, folder, device):
        images = self.read(folder / "train-images-idx3-ubyte.gz", 16).reshape(-1, 28, 28)[:TRAIN]
        labels = self.read(folder / "train-labels-idx1-ubyte.gz", 8)[:TRAIN]
        scaled = torch.from_numpy(images.astype(numpy.float32) / 255)
        self.images = functional.pad(scaled, (1, 1, 1, 1)).to(device)
        self.labels = torch.from_numpy(labels.astype(numpy.int64)).to(device)
        self.offsets = torch.tensor(OFFSETS, device=device)
        self.line = torch.arange(28, device=device)
        self.device = device

    @staticmethod
    def read(path, header_bytes):
        return numpy.frombuffer(gzip.decompress(path.read_bytes()), numpy.uint8, offset=header_bytes)

    def batch(self, size, layout):
        chosen = torch.randint(TRAIN, (size,), device=self.device)
        moved = self.offsets[torch.randint(len(OFFSETS), (size,), device=self.device)]
        rows = (moved[:, :1] + self.line).unsqueeze(2)
        columns = (moved[:, 1:] + self.line).unsqueeze(1)
        images = self.images[chosen.view(-1, 1, 1), rows, columns].unsqueeze(1)
        return images.contiguous(memory_format=layout), self.labels[chosen]


def measure(arguments):
    torch.manual_seed(1)
    torch.set_num_threads(arguments.threads)
    device = torch.device(arguments.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    layout = torch.channels_last if arguments.mode == "channels-last" else torch.contiguous_format
    data = Data(arguments.data, device)
    network = Network().to(device, memory_format=layout)
    forward = torch.compile(network) if arguments.mode == "compile" else network
    optimiser = torch.optim.SGD(network.parameters(), lr=arguments.rate, momentum=0.9, nesterov=True, weight_decay=1e-5)

    def steps(count):
        total = torch.zeros((), device=device)
        for _ in range(count):
            images, labels = data.batch(arguments.batch, layout)
            loss = functional.cross_entropy(forward(images), labels)
            optimiser.zero_grad(set_to_none=True)
            loss.backward()
            optimiser.step()
            total += loss.detach()
        return total

    steps(WARM_UP_STEPS)
    wait()
    images, wall, cpu = 0, time.perf_counter(), time.process_time()
    while time.perf_counter() - wall < arguments.seconds:
        steps(STEPS_AT_A_TIME)
        images += STEPS_AT_A_TIME * arguments.batch
    wait()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    # A network that died may be fast, but trains nothing.
    loss = steps(LOSS_STEPS).item() / LOSS_STEPS
    return {
        "program": f"pytorch {arguments.mode}",
        "version": torch.__version__,
        "batch": arguments.batch,
        "threads": arguments.threads,
        "images": images,
        "images_per_second": round(images / wall),
        "images_per_cpu_second": round(images / cpu),
        "loss": loss,
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mode", choices=MODES, default="eager")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--rate", type=float, default=0.03, help="the constant learning rate")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=10)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "data" / "mnist")
    print(json.dumps(measure(parser.parse_args())))


if __name__ == "__main__":
    main()
