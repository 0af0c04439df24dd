"""Which layer sees what
=====================

A detector works on what enters the network's last layer, unless `layer` names another one. Early
layers see strokes and textures, late ones classes. So which layer tells OOD rows best depends on
what is odd about them, and on the method.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from transformers import ResNetConfig, ResNetForImageClassification

from skood import GMMDetector, NACDetector, NNGuideDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

# %%
# The network is a small ResNet of Hugging Face's `transformers`. With a connection to the internet
# it would come trained, by ``ResNetForImageClassification.from_pretrained("microsoft/resnet-18")``;
# here it is trained on the digits 0 to 5, which are enlarged four times, for it shrinks images.


def enlarge(images):
    """Repeat each pixel 4x4 times."""
    return images.repeat(4, axis=2).repeat(4, axis=3)


data = load_digits_ood(random_state=0)
X_train, y_train = enlarge(data.X_train), data.y_train
X_test = enlarge(data.X_test)
ood = {kind: enlarge(images) for kind, images in data.ood.items()}

torch.manual_seed(0)
config = ResNetConfig(
    num_channels=1,
    embedding_size=16,
    hidden_sizes=[16, 32, 64],
    depths=[1, 1, 1],
    layer_type="basic",
    num_labels=6,
)
net = ResNetForImageClassification(config)
optimizer = torch.optim.AdamW(net.parameters(), lr=0.003)
images, labels = torch.from_numpy(X_train), torch.from_numpy(y_train)
for _ in range(15):
    for batch in torch.randperm(len(images)).split(64):
        optimizer.zero_grad()
        net(images[batch], labels=labels[batch]).loss.backward()
        optimizer.step()
net.eval()
with torch.no_grad():
    predicted = net(torch.from_numpy(X_test)).logits.argmax(dim=1).numpy()
print(f"accuracy on fresh digits 0 to 5: {(predicted == data.y_test).mean():.3f}")

# %%
# Layers have the names that ``net.named_modules()`` gives; a wrong one is answered with those that
# are close to it. Maps of a layer are averaged over the image. `None` is what enters the last
# layer: of this network, the averaged maps of the third stage.
layers = {
    "stem": "resnet.embedder",
    "stage 1": "resnet.encoder.stages.0",
    "stage 2": "resnet.encoder.stages.1",
    "features": None,
}
methods = {
    "GMM": lambda layer: GMMDetector(net, layer),
    "NNGuide": lambda layer: NNGuideDetector(net, layer, random_state=0),
    "NAC": lambda layer: NACDetector(net, [layer], random_state=0),
}
aurocs = np.empty((len(methods), len(layers), len(ood)))
for row, make in enumerate(methods.values()):
    for column, layer in enumerate(layers.values()):
        detector = make(layer).fit(X_train, y_train)
        scores = detector.score_samples(X_test)
        for number, X in enumerate(ood.values()):
            y = np.repeat([1, -1], [len(scores), len(X)])
            aurocs[row, column, number] = auroc_score(y, np.r_[scores, detector.score_samples(X)])
for number, kind in enumerate(ood):
    print(f"\n{kind:10}" + "".join(f"{layer:>10}" for layer in layers))
    for name, values in zip(methods, aurocs[..., number], strict=True):
        print(f"{name:10}" + "".join(f"{value:10.3f}" for value in values))

# %%
# Gaussians see at once, in the stem, that textures and noise are no digits: there a row need not
# be like any class to be told, its strokes are wrong. That a 7 is none of the known digits they see
# best behind the last stage, where digits have become classes. NAC weighs neurons by what they do
# to the logits, and early ones do little each: it needs the last layer. NNGuide multiplies by the
# energy of the logits, which is the same at every layer, and so nearly is its AUROC.
figure, axes = plt.subplots(1, 3, figsize=(9, 3.4), sharey=True, layout="constrained")
titles = ["digits 6 to 9", "textures", "noise"]
for axis, title, values in zip(axes, titles, aurocs.transpose(2, 0, 1), strict=True):
    for name, line, color, marker in zip(
        methods, values, ["#0072B2", "#009E73", "#D55E00"], "osD", strict=True
    ):
        axis.plot(list(layers), line, marker=marker, color=color, label=name)
    axis.set_title(title, fontsize=11)
axes[0].set_ylabel("AUROC")
axes[-1].legend(loc="lower right")
plt.show()
