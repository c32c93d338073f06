#!/usr/bin/env python3
"""Loads a member's checkpoint in plain PyTorch and compares what it predicts with what the trainer wrote.

Needs torch, numpy and safetensors. The network is built from the recipe in the checkpoint's metadata, and the tensors
are loaded by `load_state_dict` with strict names and shapes.

    venv/bin/python tests/pytorch/check_checkpoint.py results/members/0.safetensors results/predictions.safetensors

The predictions are one member's, as a trainer writes them, or all members', as a run's results hold them.
"""

import argparse
import gzip
import json
import pathlib
import sys

import numpy
import torch
from safetensors import safe_open
from safetensors.torch import load_file
from torch import nn

# Two programs add the same numbers in different orders.
PROBABILITY_TOLERANCE = 1e-4

ACTIVATIONS = {
    "relu": torch.relu,
    "sigmoid": torch.sigmoid,
    "tanh": torch.tanh,
    "scaled-tanh": lambda values: 1.7159 * torch.tanh(2 / 3 * values),
}


class Network(nn.Module):
    """A recipe's layers, with the names that its checkpoint has."""

    def __init__(self, recipe, tensors):
        super().__init__()
        self.steps = []
        counts = {}

        def named(prefix, layer):
            counts[prefix] = counts.get(prefix, 0) + 1
            name = f"{prefix}{counts[prefix]}"
            self.add_module(name, layer)
            self.steps.append(lambda values: getattr(self, name)(values))

        def shape(prefix):
            return tensors[f"{prefix}{counts.get(prefix, 0) + 1}.weight"].shape

        is_spatial = True
        for layer in recipe["network"]["layers"]:
            kind = layer["kind"]
            if kind == "conv":
                outputs, inputs, kernel, _ = shape("conv")
                stride, padding = layer.get("stride", 1), layer.get("padding", 0)
                named("conv", nn.Conv2d(inputs, outputs, kernel, stride, padding))
            elif kind == "linear":
                if is_spatial:
                    self.steps.append(nn.Flatten())
                outputs, inputs = shape("fc")
                named("fc", nn.Linear(inputs, outputs))
                is_spatial = False
            elif kind == "batch-norm":
                features = shape("bn")[0]
                named("bn", nn.BatchNorm2d(features) if is_spatial else nn.BatchNorm1d(features))
            elif kind == "max-pool":
                self.steps.append(nn.MaxPool2d(layer["size"]))
            elif kind == "l2-pool":
                self.steps.append(nn.LPPool2d(2, layer["size"]))
            elif kind != "dropout":
                self.steps.append(ACTIVATIONS[kind])

    def forward(self, values):
        for step in self.steps:
            values = step(values)
        return values


def read_idx(path, header_bytes):
    content = path.read_bytes()
    content = gzip.decompress(content) if path.suffix == ".gz" else content
    return numpy.frombuffer(content, numpy.uint8, offset=header_bytes)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint", type=pathlib.Path)
    parser.add_argument("predictions", type=pathlib.Path)
    parser.add_argument("--data", type=pathlib.Path, default=pathlib.Path(__file__).parents[2] / "data" / "mnist")
    arguments = parser.parse_args()
    with safe_open(arguments.checkpoint, "pt") as file:
        metadata = json.loads(file.metadata()["plurality"])
    tensors = load_file(arguments.checkpoint)
    network = Network(metadata["recipe"], tensors)
    loaded = network.load_state_dict(tensors, strict=False)
    # The one thing that PyTorch keeps and a checkpoint does not: how many batches were seen.
    missing = [name for name in loaded.missing_keys if not name.endswith("num_batches_tracked")]
    if missing or loaded.unexpected_keys:
        sys.exit(f"names differ: missing {missing}, unexpected {loaded.unexpected_keys}")
    network.eval()
    pixels = read_idx(arguments.data / "t10k-images-idx3-ubyte.gz", 16).reshape(-1, 1, 28, 28)
    labels = torch.from_numpy(read_idx(arguments.data / "t10k-labels-idx1-ubyte.gz", 8).astype(numpy.int64))
    with torch.no_grad():
        images = torch.from_numpy(pixels.astype(numpy.float32) / 255)
        found = torch.cat([network(part).softmax(1) for part in images.split(1000)])
    expected = load_file(arguments.predictions)["probabilities"]
    expected = expected[metadata["member"]] if expected.dim() == 3 else expected
    difference = (found - expected).abs().max().item()
    flipped = int((found.argmax(1) != expected.argmax(1)).sum())
    accuracy = (found.argmax(1) == labels).double().mean().item()
    print(json.dumps({"recipe": metadata["recipe"]["name"], "member": metadata["member"], "images": len(labels),
                      "labels_differing": flipped, "largest_probability_difference": difference,
                      "pytorch_accuracy": accuracy, "torch": torch.__version__}))  # fmt: skip
    if difference > PROBABILITY_TOLERANCE or flipped > 0:
        sys.exit(f"predictions differ: {flipped} labels, probabilities by up to {difference}")


if __name__ == "__main__":
    main()
