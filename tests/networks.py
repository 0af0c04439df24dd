"""Small networks with random weights and varied logits, each holding one trap."""

import torch
import torch.nn.functional as F
from torch import nn

from skood.testing.networks import SmallCNN as SmallCNN
from skood.testing.networks import sample_inputs as sample_inputs
from skood.testing.networks import seeded as seeded


class MLP(nn.Module):
    """Plain case: one hidden layer, ReLU, a linear head `fc`."""

    def __init__(self, in_features=8, hidden=16, classes=4):
        super().__init__()
        self.input_shape = (in_features,)
        self.head_names = ["fc"]
        self.hidden = nn.Linear(in_features, hidden)
        self.relu = nn.ReLU()
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        """Map (n, in_features) to logits."""
        return self.fc(self.relu(self.hidden(x)))


class Block(nn.Module):
    """Trap: one in-place ReLU called twice, and an in-place sum with the skip connection."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.downsample = None
        if stride != 1 or in_channels != channels:
            self.downsample = nn.Sequential(
                nn.Conv2d(in_channels, channels, 1, stride, bias=False), nn.BatchNorm2d(channels)
            )

    def forward(self, x):
        """Add the residual to `x`."""
        out = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        out += x if self.downsample is None else self.downsample(x)
        return self.relu(out)


class ResNet(nn.Module):
    """Trap: skip connections cross any cut inside `layer1` to `layer4`, and ReLU is in-place."""

    def __init__(self, classes=5, width=4, in_channels=3, blocks=1):
        super().__init__()
        self.input_shape = (in_channels, 16, 16)
        self.head_names = ["fc"]
        self.conv1 = nn.Conv2d(in_channels, width, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.layer1 = self._layer(width, width, blocks, 1)
        self.layer2 = self._layer(width, 2 * width, blocks, 2)
        self.layer3 = self._layer(2 * width, 4 * width, blocks, 2)
        self.layer4 = self._layer(4 * width, 8 * width, blocks, 2)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(8 * width, classes)

    @staticmethod
    def _layer(in_channels, channels, blocks, stride):
        first = Block(in_channels, channels, stride)
        return nn.Sequential(first, *(Block(channels, channels, 1) for _ in range(blocks - 1)))

    def forward(self, x):
        """Map (n, in_channels, H, W) to logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.layer4(self.layer3(self.layer2(self.layer1(x))))
        return self.fc(torch.flatten(self.avgpool(x), 1))


class ResNet18(ResNet):
    """ResNet-18 for (n, 3, 64, 64): 11 M parameters, a stem that shrinks images by 4."""

    def __init__(self, classes=10):
        super().__init__(classes, width=64, blocks=2)
        self.input_shape = (3, 64, 64)
        self.conv1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False)
        self.relu = nn.Sequential(nn.ReLU(inplace=True), nn.MaxPool2d(3, 2, padding=1))


class CIFARBlock(nn.Module):
    """Two convolutions, and a shortcut that is strided and padded with zeros where they shrink."""

    def __init__(self, in_channels, channels, stride):
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)
        self.stride, self.padding = stride, (channels - in_channels) // 2

    def forward(self, x):
        """Add the shortcut."""
        out = self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x)))))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        return F.relu(out + F.pad(shortcut, (0, 0, 0, 0, self.padding, self.padding)))


class CIFARResNet20(nn.Module):
    """The ResNet-20 of He et al. 2016, section 4.2, with shortcuts of option A."""

    def __init__(self, classes=10):
        super().__init__()
        self.input_shape = (3, 32, 32)
        self.head_names = ["linear"]
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._blocks(16, 16, 1)
        self.layer2 = self._blocks(16, 32, 2)
        self.layer3 = self._blocks(32, 64, 2)
        self.linear = nn.Linear(64, classes)

    def _blocks(self, in_channels, channels, stride):
        others = [CIFARBlock(channels, channels, 1) for _ in range(2)]
        return nn.Sequential(CIFARBlock(in_channels, channels, stride), *others)

    def forward(self, x):
        """Map (n, 3, 32, 32) to logits."""
        maps = self.layer3(self.layer2(self.layer1(F.relu(self.bn1(self.conv1(x))))))
        return self.linear(maps.mean((2, 3)))


class EncoderLayer(nn.Module):
    """Trap: nn.MultiheadAttention, a tuple as output, weights that no simple rule fits."""

    def __init__(self, dim, heads):
        super().__init__()
        self.ln_1 = nn.LayerNorm(dim)
        self.self_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.ln_2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))

    def forward(self, x):
        """Map tokens (n, T, dim) to tokens."""
        y = self.ln_1(x)
        x = x + self.self_attention(y, y, y, need_weights=False)[0]
        return x + self.mlp(self.ln_2(x))


class Encoder(nn.Module):
    """Trap: a parameter that is no layer's weight (the position embedding)."""

    def __init__(self, tokens, dim, heads, depth):
        super().__init__()
        self.position = nn.Parameter(0.5 * torch.randn(1, tokens, dim))
        self.layers = nn.Sequential(*(EncoderLayer(dim, heads) for _ in range(depth)))
        self.ln = nn.LayerNorm(dim)

    def forward(self, x):
        """Map tokens (n, T, dim) to tokens."""
        return self.ln(self.layers(x + self.position))


class ViT(nn.Module):
    """Trap: outputs are tokens (n, T, dim), only the class token enters `head`; (n, 1, 8, 8)."""

    def __init__(self, classes=4, dim=12, heads=2, depth=2, patch=4, size=8):
        super().__init__()
        self.input_shape = (1, size, size)
        self.head_names = ["head"]
        self.conv_proj = nn.Conv2d(1, dim, patch, patch)
        self.class_token = nn.Parameter(torch.randn(1, 1, dim))
        self.encoder = Encoder((size // patch) ** 2 + 1, dim, heads, depth)
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        """Map (n, 1, size, size) to logits."""
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1), patches], dim=1)
        return self.head(self.encoder(tokens)[:, 0])


class DenseNetLike(nn.Module):
    """Trap: layers read concatenations of all earlier outputs, and ReLU is a function."""

    def __init__(self, classes=4, growth=4, layers=3):
        super().__init__()
        self.input_shape = (1, 8, 8)
        self.head_names = ["classifier"]
        self.conv0 = nn.Conv2d(1, growth, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(growth * (i + 1)) for i in range(layers))
        self.convs = nn.ModuleList(
            nn.Conv2d(growth * (i + 1), growth, 3, padding=1) for i in range(layers)
        )
        self.norm = nn.BatchNorm2d(growth * (layers + 1))
        self.classifier = nn.Linear(growth * (layers + 1), classes)

    def forward(self, x):
        """Map (n, 1, H, W) to logits."""
        x = self.conv0(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], dim=1)
        x = F.relu(self.norm(x), inplace=True)
        return self.classifier(F.adaptive_avg_pool2d(x, 1).flatten(1))


class Segmenter(nn.Module):
    """Trap: fully convolutional, no linear layer, logits (n, C, H, W), perhaps enlarged."""

    def __init__(self, classes=3, width=6, enlarged=True):
        super().__init__()
        self.enlarged = enlarged
        self.input_shape = (1, 8, 8)
        self.head_names = []
        self.backbone = nn.Sequential(
            nn.Conv2d(1, width, 3, stride=2, padding=1),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
            nn.Conv2d(width, width, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.classifier = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.classifier.weight)

    def forward(self, x):
        """Map (n, 1, H, W) to logit maps of the same size, or of half of it."""
        logits = self.classifier(self.backbone(x))
        return F.interpolate(logits, scale_factor=2.0) if self.enlarged else logits


class Sequences(nn.Module):
    """Trap: convolutions and norms over time, (n, 3, T), and dropout of channels."""

    def __init__(self, classes=4):
        super().__init__()
        self.input_shape = (3, 16)
        self.head_names = ["fc"]
        self.body = nn.Sequential(
            nn.Conv1d(3, 6, 3, padding=1),
            nn.BatchNorm1d(6),
            nn.ReLU(inplace=True),
            nn.MaxPool1d(2),
            nn.Dropout1d(0.2),
            nn.Conv1d(6, 8, 3, padding=1),
            nn.ReLU(inplace=True),
        )
        self.fc = nn.Linear(8, classes)

    def forward(self, x):
        """Map (n, 3, T) to logits."""
        return self.fc(self.body(x).mean(2))


class ChannelsLast(nn.Module):
    """Trap: maps (n, H, W, C), merged to half their size, as in a Swin transformer."""

    class Merge(nn.Module):
        """Half the size, twice the channels."""

        def __init__(self, width):
            super().__init__()
            self.linear = nn.Linear(4 * width, 2 * width)

        def forward(self, x):
            """Map (n, H, W, C) to (n, H/2, W/2, 2C)."""
            return self.linear(torch.cat([x[:, i::2, j::2] for i in (0, 1) for j in (0, 1)], -1))

    def __init__(self):
        super().__init__()
        self.input_shape = (8, 8, 3)
        self.head_names = ["fc"]
        self.enter, self.norm = nn.Linear(3, 5), nn.LayerNorm(5)
        self.merge, self.block = self.Merge(5), nn.Sequential(nn.LayerNorm(10), nn.Linear(10, 10))
        self.fc = nn.Linear(10, 4)

    def forward(self, x):
        """Map (n, 8, 8, 3) to logits."""
        return self.fc(torch.relu(self.block(self.merge(self.norm(self.enter(x))))).mean((1, 2)))


class ConvHead(nn.Module):
    """Trap: the classifier is a 1×1 convolution, as in the networks of GradNorm's authors."""

    def __init__(self, classes=4, width=6):
        super().__init__()
        self.input_shape = (1, 8, 8)
        self.head_names = []
        self.body = nn.Sequential(
            nn.Conv2d(1, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        self.head = nn.Conv2d(width, classes, 1)
        nn.init.normal_(self.head.weight)

    def forward(self, x):
        """Map (n, 1, H, W) to logits."""
        return self.head(self.body(x).mean((2, 3), keepdim=True))[..., 0, 0]


class SharedModules(nn.Module):
    """Trap: one block at two places of the network, and under two names."""

    def __init__(self, in_features=8, hidden=8, classes=4):
        super().__init__()
        self.input_shape = (in_features,)
        self.head_names = ["fc"]
        self.enter = nn.Linear(in_features, hidden)
        self.block = nn.Sequential(nn.Linear(hidden, hidden), nn.ReLU(inplace=True))
        self.again = self.block
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        """Map (n, in_features) to logits."""
        return self.fc(self.again(self.block(self.enter(x))))


class Branching(nn.Module):
    """Trap: a branch on the data, which no tracer follows; rows do not depend on each other."""

    def __init__(self, in_features=8, hidden=16, classes=4):
        super().__init__()
        self.input_shape = (in_features,)
        self.head_names = ["fc"]
        self.hidden = nn.Linear(in_features, hidden)
        self.fc = nn.Linear(hidden, classes)

    def forward(self, x):
        """Map (n, in_features) to logits."""
        x = self.hidden(x)
        if bool((x < 0).any()):
            x = x.clamp(min=0)
        return self.fc(x)


class TwoHeads(nn.Module):
    """Trap: two linear heads; returns both logits ("tuple"), or their sum ("sum")."""

    def __init__(self, in_features=8, hidden=16, classes=4, returns="tuple"):
        super().__init__()
        self.input_shape = (in_features,)
        self.head_names = ["fc", "auxiliary"]
        self.hidden = nn.Linear(in_features, hidden)
        self.fc = nn.Linear(hidden, classes)
        self.auxiliary = nn.Linear(hidden, classes)
        self.returns = returns

    def forward(self, x):
        """Map (n, in_features) to two logits or to their sum."""
        x = F.relu(self.hidden(x))
        both = self.fc(x), self.auxiliary(x)
        return both if self.returns == "tuple" else both[0] + both[1]


class EndsInSoftmax(MLP):
    """Trap: returns probabilities, so what leaves the network is not what leaves `fc`."""

    def forward(self, x):
        """Map (n, in_features) to probabilities."""
        return super().forward(x).softmax(dim=1)


class WeightNormed(MLP):
    """Trap: weights are computed from other parameters, so no module owns its weight."""

    def __init__(self, in_features=8, hidden=16, classes=4):
        super().__init__(in_features, hidden, classes)
        nn.utils.parametrizations.weight_norm(self.hidden)
        nn.utils.parametrizations.weight_norm(self.fc)


class WithDropout(MLP):
    """Trap: random in train mode, by a module and by a function of `self.training`."""

    def __init__(self, in_features=8, hidden=16, classes=4):
        super().__init__(in_features, hidden, classes)
        self.dropout = nn.Dropout(0.5)

    def forward(self, x):
        """Map (n, in_features) to logits."""
        x = F.dropout(x, 0.2, self.training)
        return self.fc(self.dropout(self.relu(self.hidden(x))))
