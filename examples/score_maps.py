"""Score maps for segmentation
===========================

A network for segmentation names a class for each pixel. Detectors of such a network give a score
for each pixel: a map that shows where in an image it is out of its depth.
"""

import matplotlib.pyplot as plt
import numpy as np
import torch
from scipy.ndimage import uniform_filter
from sklearn.cluster import KMeans
from sklearn.datasets import load_sample_images
from torch import nn

from skood import ASHDetector, GMMDetector, GradNormDetector
from skood.datasets import load_digits_ood
from skood.metrics import auroc_score, segmentation_score
from skood.plots import ScoreMapDisplay

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

# %%
# Images of 4x4 handwritten digits, each pixel of ink with the class of its digit and the paper a
# class of its own. The network learns from sheets of the digits 0 to 5; the sheets to be judged
# hold three digits of the other four each, whose ink is labelled -1.
PAPER, N_EPOCHS = 6, 100
data = load_digits_ood(random_state=0)


def lay_out(images, labels):
    """Put digits (n, 1, 8, 8) on sheets (n // 16, 1, 40, 40), with a label for each pixel."""
    ink = np.where(images > 0.25, labels[:, None, None, None], PAPER)
    sheets = []
    for pixels, empty in [(images, 0), (ink, PAPER)]:
        # One pixel of paper around each digit.
        cells = np.pad(pixels[:, 0], [(0, 0), (1, 1), (1, 1)], constant_values=empty)
        sheets.append(cells.reshape(-1, 4, 4, 10, 10).swapaxes(2, 3).reshape(-1, 40, 40))
    return sheets[0][:, None], sheets[1]


rng = np.random.default_rng(0)
torch.manual_seed(0)
channels = 32
net = nn.Sequential(
    nn.Conv2d(1, channels, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(channels, channels, 3, padding=2, dilation=2),
    nn.ReLU(),
    nn.Conv2d(channels, channels, 3, padding=4, dilation=4),
    nn.ReLU(),
    nn.Conv2d(channels, channels, 3, padding=1),
    nn.ReLU(),
    nn.Conv2d(channels, PAPER + 1, 1),
)
optimizer = torch.optim.Adam(net.parameters(), lr=0.003)
n_train = len(data.X_train) // 16 * 16
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, total_steps=5 * N_EPOCHS)
for _ in range(N_EPOCHS):
    # Each epoch on new sheets, so that the network learns digits and not their neighbours.
    order = rng.permutation(len(data.X_train))[:n_train]
    sheets, truth = map(torch.from_numpy, lay_out(data.X_train[order], data.y_train[order]))
    for batch in torch.randperm(len(sheets)).split(8):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(sheets[batch]), truth[batch]).backward()
        optimizer.step()
        schedule.step()

near = data.ood["near"]
n_sheets = len(data.X_test) // 13
digits, labels = [], []
for sheet in range(n_sheets):
    order = rng.permutation(16)
    mixed = [data.X_test[13 * sheet : 13 * sheet + 13], near[rng.choice(len(near), 3)]]
    digits.append(np.concatenate(mixed)[order])
    labels.append(np.r_[data.y_test[13 * sheet : 13 * sheet + 13], -1, -1, -1][order])
X, y = lay_out(np.concatenate(digits), np.concatenate(labels))
with torch.no_grad():
    predicted = net(torch.from_numpy(X)).argmax(dim=1).numpy()
known = (y >= 0) & (y != PAPER)
print(f"accuracy on the ink of the digits 0 to 5: {(predicted == y)[known].mean():.3f}")
print(f"on the paper: {(predicted == y)[y == PAPER].mean():.3f}")

# %%
# What is asked is whether ink is known or not. Paper is known and easy, so it is labelled 255,
# which metrics leave out. Pixels of a sheet depend on each other, so each sheet has an AUROC of its
# own, and the mean is shown.
ink = np.where(y == PAPER, 255, y)
sheets, truth = lay_out(data.X_train[:n_train], data.y_train[:n_train])
detectors = {
    "max softmax": ASHDetector(net, variant="p", percentile=0, logit_score="msp"),
    "energy": ASHDetector(net, variant="p", percentile=0),
    "ASH": ASHDetector(net, percentile=0.3),
    "GradNorm": GradNormDetector(net),
}
for name, detector in detectors.items():
    scores = detector.fit(sheets, truth).score_samples(X)
    auroc = segmentation_score("auroc", ink, scores, average="images")
    # One number a digit: the mean over its ink.
    per_digit = [
        np.where(y == PAPER, 0, values).reshape(-1, 4, 10, 4, 10).sum(axis=(2, 4)).ravel()
        for values in (scores, np.ones_like(scores))
    ]
    together = auroc_score(np.concatenate(labels), per_digit[0] / per_digit[1])
    print(f"{name:11} AUROC of pixels {auroc:.3f}, of digits {together:.3f}")

# %%
# A single pixel of ink is hard to tell, the ink of a digit together less so. Three of the sheets,
# and their maps below, dark where the score is low: the frames hold the unknown digits.
best = detectors["max softmax"]
figure, axes = plt.subplots(2, 3, figsize=(8.4, 5.6), layout="compressed")
for sheet, (above, below) in enumerate(axes.T):
    above.imshow(X[sheet, 0], cmap="gray_r", extent=(0, 40, 40, 0))
    above.set(xticks=[], yticks=[])
    display = ScoreMapDisplay.from_estimator(best, X[sheet], name="", ax=below, alpha=1)
    below.get_legend().remove()
    display.contour_.remove()
    display.colorbar_.set_label("")
    if sheet < 2:
        display.colorbar_.remove()
    for place in np.flatnonzero(labels[sheet] == -1):
        corner = place % 4 * 10, place // 4 * 10
        for axis in (above, below):
            axis.add_patch(plt.Rectangle(corner, 10, 10, fill=False, color="#D55E00", linewidth=2))

# %%
# **Without a network**, pixels can be described by what is around them, and be rows like any other.
# A detector learns the left half of a photograph, in eight kinds of pixels that k-means finds, and
# is shown the right half, into which a flower was put. That half also has clouds, and more of the
# lake than the other: parts of these are unknown too, and outlined beside the flower.


def describe_pixels(photograph):
    """Return the mean and the spread of the colours around each pixel, (n_pixels, 6)."""
    colors, size = photograph / 255, (15, 15, 1)
    means = uniform_filter(colors, size)
    spreads = np.sqrt(np.maximum(uniform_filter(colors**2, size) - means**2, 0))
    return np.concatenate([means, spreads], axis=2).reshape(-1, 6)


temple, flower = load_sample_images().images
half = temple.shape[1] // 2
pixels = describe_pixels(temple[:, :half])
kinds = KMeans(8, random_state=0).fit_predict(pixels)
detector = GMMDetector(false_alarm_rate=0.0001).fit(pixels, kinds)
image, truth = temple[:, half:].copy(), np.ones((len(temple), half), dtype=int)
place = slice(280, 400), slice(150, 270)
image[place], truth[place] = flower[80:320:2, 220:460:2], -1
scores = detector.decision_function(describe_pixels(image)).reshape(truth.shape)
print(f"pixels of the flower: AUROC {auroc_score(truth.ravel(), scores.ravel()):.3f}")
score_map = ScoreMapDisplay.from_predictions(
    image, scores, threshold=0, name="GMMDetector", score_name="decision_function"
)
plt.show()
