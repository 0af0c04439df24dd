"""Anonymous memory while data larger than memory should hold is scored and learned from."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="needs Linux's /proc"
)

MiB = 2**20
# Prints by how many MiB the anonymous memory of the process grows while `work()` runs.
MEASURE = """
import json, re, sys, threading, time, warnings
import numpy as np, torch
from torch import nn
from torch.utils.data import Dataset, IterableDataset
sys.path.insert(0, {root!r})
from tests.networks import SmallCNN, seeded
from sklearn import set_config
from skood import *
warnings.simplefilter("ignore")
torch.set_num_threads(1)

def anonymous():
    with open("/proc/self/status") as status:
        return int(re.search(r"RssAnon:\\s+(\\d+)", status.read())[1]) / 1024

def grown(work):
    before, peak, stop = anonymous(), [0], threading.Event()
    def watch():
        while not stop.is_set():
            peak[0] = max(peak[0], anonymous())
            time.sleep(0.002)
    thread = threading.Thread(target=watch)
    thread.start()
    try:
        work()
    finally:
        stop.set()
        thread.join()
    return peak[0] - before

rng = np.random.default_rng(0)
path = {path!r}
{code}
"""


def measure(code, tmp_path):
    """Run code that prints a dict of numbers of MiB in a process of its own."""
    root = str(Path(__file__).parents[1])
    script = MEASURE.format(root=root, path=str(tmp_path / "data"), code=code)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(done.stdout)
    return json.loads(done.stdout)


@pytest.mark.nightly
def test_scoring_two_gigabytes_of_features(tmp_path):
    code = """
X = np.memmap(path, np.float32, "w+", shape=(2**20, 512))
train, y = rng.normal(size=(600, 512)).astype("f"), np.arange(600) % 3
X[::1000] = train[0]
detectors = [GradNormDetector(nn.Linear(512, 10)), GMMDetector(covariance_type="diag")]
results = {}
for detector in detectors:
    detector.fit(train, y)
    results[type(detector).__name__] = grown(lambda: detector.score_samples(X))
print(json.dumps(results))
"""
    assert max(measure(code, tmp_path).values()) < 300


@pytest.mark.nightly
def test_scoring_images_of_a_memmap(tmp_path):
    code = """
net = seeded(SmallCNN)
X = np.memmap(path, np.uint8, "w+", shape=(9600, 1, 128, 128))
X[::1000] = 7
train = rng.integers(0, 255, size=(200, 1, 128, 128)).astype(np.uint8)
results = {}
for detector in (ASHDetector(net, batch_size=16), GMMDetector(net, reg_covar=1.0, batch_size=16)):
    detector.fit(train, np.arange(200) % 4)
    results[type(detector).__name__] = grown(lambda: detector.score_samples(X))
print(json.dumps(results))
"""
    assert max(measure(code, tmp_path).values()) < 300


def test_scoring_and_fitting_a_dataset(tmp_path):
    code = """
class Images(Dataset):
    def __len__(self):
        return 20_000
    def __getitem__(self, i):
        # 128 KiB each in between: 2.5 GiB in all.
        image = torch.full((2**15,), i % 100 / 50)
        return image[:64].view(1, 8, 8).clone(), i % 4

net = seeded(SmallCNN)
detector = GMMDetector(net, reg_covar=1.0)
results = {"fit": grown(lambda: detector.fit(Images()))}
for name in ("score_samples", "score"):
    results[name] = grown(lambda: getattr(detector, name)(Images()))
print(json.dumps(results))
"""
    assert max(measure(code, tmp_path).values()) < 300


@pytest.mark.nightly
@pytest.mark.parametrize("kind", ["array", "stream"])
def test_fitting_on_more_features_than_working_memory(kind, tmp_path):
    """400 MiB of features with a working memory of 32 MiB."""
    code = f"""
class Wide(nn.Module):
    def __init__(self):
        super().__init__()
        self.spread = nn.Linear(4, 4096)
        self.fc = nn.Linear(4096, 3)
    def forward(self, x):
        return self.fc(self.spread(x).relu())

class Batches(IterableDataset):
    def __iter__(self):
        return iter(X)

X = rng.normal(size=(25_600, 4)).astype("f")
set_config(working_memory=32)
results = {{}}
for detector in (GMMDetector(Wide(), covariance_type="diag"), NACDetector(Wide())):
    given = X if {kind!r} == "array" else Batches()
    results[type(detector).__name__] = grown(lambda: detector.fit(given))
print(json.dumps(results))
"""
    assert max(measure(code, tmp_path).values()) < 32 + 300


@pytest.mark.parametrize(
    "detector",
    [
        "KNNDetector(net, bank_size=2000)",
        pytest.param("GMMDetector(net)", marks=pytest.mark.nightly),
        pytest.param("EnergyDetector(net)", marks=pytest.mark.nightly),
    ],
)
def test_fitting_on_pixels(detector, tmp_path):
    """Of four times the images no more is held: 64 features of their pixels are 75 MiB more."""
    code = f"""
from tests.networks import Segmenter

class Images(Dataset):
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        random = np.random.default_rng(i)
        labels = random.integers(0, 4, (32, 32))
        labels[:3] = 255
        return torch.from_numpy(random.normal(size=(1, 64, 64)).astype("f")), labels

net = seeded(Segmenter, classes=4, width=64, enlarged=False)
results = {{}}
for n in (100, 400):
    detector = {detector}.set_params(batch_size=8)
    results[n] = grown(lambda: detector.fit(Images(n)))
results["score"] = grown(lambda: detector.score_samples(Images(100)))
print(json.dumps(results))
"""
    few, many, score = measure(code, tmp_path).values()
    assert many < few + 40 and score < 200
