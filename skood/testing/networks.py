"""Small networks for the checks of `skood.testing`, with random weights and varied logits."""

import numpy as np
import torch
from torch import nn


def sample_inputs(net, n, seed=0):
    """Draw float32 inputs for `net` that differ in contrast and level, as images do."""
    rng = np.random.default_rng(seed)
    each = (n,) + (1,) * len(net.input_shape)
    X = rng.normal(size=(n, *net.input_shape)) * rng.uniform(0.3, 2.0, size=each)
    return (X + rng.normal(size=each)).astype(np.float32)


def seeded(cls, *args, seed=0, **kwargs):
    """Build `cls(*args, **kwargs)` from a seed, in eval mode, leaving torch's generator alone.

    Weights are large enough, statistics of BatchNorm far enough from 0 and 1, and the linear head
    is scaled such that logits vary from row to row by about 2 and every class is predicted.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        net = cls(*args, **kwargs).eval()
        for module in net.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)
            if isinstance(module, nn.BatchNorm2d):
                nn.init.normal_(module.running_mean, std=0.3)
                nn.init.uniform_(module.running_var, 0.5, 2.0)
            if isinstance(module, nn.BatchNorm2d | nn.LayerNorm):
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.normal_(module.bias, std=0.3)
        for name in getattr(net, "head_names", []):
            _scale_head(net, net.get_submodule(name))
    return net


@torch.no_grad()
def _scale_head(net, head):
    """Give each logit of `head` standard deviation 2 and a mean near 0 on sample inputs."""
    outputs = []
    handle = head.register_forward_hook(lambda _, __, output: outputs.append(output))
    net(torch.from_numpy(sample_inputs(net, 256, seed=1)))
    handle.remove()
    scale = 2 / outputs[0].std(dim=0)
    shift = 0.3 * torch.randn(len(scale)) - (outputs[0].mean(dim=0) - head.bias) * scale
    weight = head.weight * scale[:, None]
    head.weight = nn.Parameter(weight) if isinstance(head.weight, nn.Parameter) else weight
    head.bias = nn.Parameter(shift)


class SmallCNN(nn.Module):
    """Trap: an in-place ReLU overwrites what BatchNorm returned; for (n, 1, 8, 8)."""

    def __init__(self, classes=4, width=6):
        super().__init__()
        self.input_shape = (1, 8, 8)
        self.head_names = ["fc"]
        self.conv1 = nn.Conv2d(1, width, 3, padding=1)
        self.bn = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, 2 * width, 3, stride=2, padding=1)
        self.relu = nn.ReLU(inplace=True)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(2 * width, classes)

    def forward(self, x):
        """Map (n, 1, 8, 8) to logits."""
        x = self.relu(self.bn(self.conv1(x)))
        x = self.relu(self.conv2(x))
        return self.fc(self.avgpool(x).flatten(1))


class OddCNN(SmallCNN):
    """`SmallCNN` with one habit that a careless cut would trip over."""

    def __init__(self, habit):
        super().__init__()
        self.habit = habit
        if habit == "two names for a layer":
            self.all = nn.Sequential(
                *(self.conv1, self.bn, self.relu, self.conv2, self.relu, self.avgpool),
                nn.Flatten(),
                self.fc,
            )
        self.register_buffer("calls", torch.zeros(1))

    def forward(self, x):
        """Map (n, 1, 8, 8) to logits, or to a collection that holds them."""
        if self.habit == "two names for a layer":
            return self.all(x)
        if self.habit == "writes to its input":
            x.mul_(2)
        if self.habit == "writes to a buffer":
            self.calls += 1
        x = self.relu(self.bn(self.conv1(x)))
        h = self.avgpool(self.relu(self.conv2(x))).flatten(1)
        if self.habit == "reads its head":
            return self.fc(h.to(self.fc.weight.dtype))
        if self.habit == "calls its head by keyword":
            return self.fc(input=h)
        logits = self.fc(h)
        if self.habit == "reshapes its logits":
            return {"logits": logits, "p": logits.view(-1, 4).softmax(1)}
        if self.habit == "writes to its logits":
            return logits.div_(4)
        return {
            "returns a dict": {"features": h, "logits": logits},
            "returns a dict of one": {"out": logits},
            "returns a tuple": (h, logits),
            "returns a list": [logits],
        }.get(self.habit, logits)


# Each leaves the logits, and where a detector looks, as they are without it.
HABITS = [
    "two names for a layer",
    "reads its head",
    "calls its head by keyword",
    "reshapes its logits",
    "writes to its input",
    "writes to a buffer",
    "returns a dict",
    "returns a dict of one",
    "returns a tuple",
    "returns a list",
]
