"""What a GPU refuses and gives, on a real one as on that of `tests.pretended_gpu`."""

import copy
import pickle
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from skood import GMMDetector
from skood.detectors.features.gmm import GMMScorer
from skood.estimators import scoring
from skood.learning.learning import batch_rows

pytestmark = pytest.mark.cuda


@pytest.fixture
def pair():
    """Return the same matrix on the CPU and on the GPU."""
    values = torch.arange(6.0).reshape(2, 3)
    return values, values.to("cuda")


@pytest.mark.parametrize(
    "mix",
    [
        lambda cpu, gpu: cpu + gpu,
        lambda cpu, gpu: gpu @ cpu.T,
        lambda cpu, gpu: torch.cat([cpu, gpu]),
        lambda cpu, gpu: nn.Linear(3, 2)(gpu),
        lambda cpu, gpu: torch.where(gpu > 0, cpu, gpu),
        lambda cpu, gpu: cpu[gpu[:, 0].long().clamp(max=1)],
        lambda cpu, gpu: gpu.index_add_(0, torch.zeros(2, dtype=torch.long), gpu),
        lambda cpu, gpu: cpu.add_(gpu),
    ],
)
def test_two_devices_are_refused(mix, pair):
    with pytest.raises(RuntimeError, match=r"device|on cpu|CPU"):
        mix(*pair)


@pytest.mark.parametrize("use", [np.asarray, np.exp, lambda x: x.numpy()])
def test_numpy_is_refused(use, pair):
    with pytest.raises(TypeError, match="can't convert cuda:0 device type tensor to numpy"):
        use(pair[1])


def test_a_device_that_is_not_there(pair):
    with pytest.raises((RuntimeError, AssertionError), match="invalid device ordinal"):
        pair[0].to("cuda:99")


@pytest.mark.parametrize(
    "use",
    [
        lambda x: x + 1,
        lambda x: x[[0, -1]],
        lambda x: x[torch.tensor([1, 0])],
        lambda x: x[:, [0, 2]],
        lambda x: x[x[:, 0] > 0],
        lambda x: x.new_tensor([1, 2]),
        lambda x: x.new_zeros(3),
        lambda x: torch.zeros(3, device=x.device),
        lambda x: torch.tensor([1.0, 2.0], device=x.device),
        lambda x: torch.empty_like(x).copy_(x.cpu()),
        lambda x: x.sort(dim=1, descending=True).values,
        lambda x: torch.linalg.svd(x, full_matrices=False).S,
        lambda x: x.double().logsumexp(1),
        lambda x: x.clone().index_fill_(1, torch.tensor([1], device=x.device), 7),
    ],
)
def test_results_lie_on_the_gpu(use, pair):
    on_cpu, on_gpu = map(use, pair)
    assert on_gpu.device == torch.device("cuda", 0) and on_gpu.dtype == on_cpu.dtype
    torch.testing.assert_close(on_gpu.cpu(), on_cpu)


def test_writing_to_a_copy_changes_nothing_else(pair):
    on_cpu, on_gpu = pair
    back = on_gpu.cpu()
    back += 1
    on_cpu += 2
    view = on_gpu[0]
    view += 3
    assert on_gpu.tolist() == [[3, 4, 5], [3, 4, 5]] and back.tolist() == [[1, 2, 3], [4, 5, 6]]


def test_modules_and_gradients(pair):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))
    moved = copy.deepcopy(net).cuda()
    twins = [moved, copy.deepcopy(moved), pickle.loads(pickle.dumps(moved))]
    net(pair[0]).square().sum().backward()
    for twin in twins:
        twin(pair[1]).square().sum().backward()
        for one, other in zip(twin.parameters(), net.parameters(), strict=True):
            assert isinstance(one, nn.Parameter) and one.is_cuda and one.grad.is_cuda
            torch.testing.assert_close(one.grad.cpu(), other.grad)
    before = [p.detach().clone() for p in moved.parameters()]
    torch.optim.SGD(moved.parameters(), lr=0.1).step()
    assert all((p != b).any() for p, b in zip(moved.parameters(), before, strict=True))
    assert not any(p.is_cuda for p in moved.cpu().parameters())


def test_features_are_scored_at_once(monkeypatch, rng):
    """A GPU would wait between chunks, which are of the size of a CPU's cache."""
    X, calls, forward = torch.as_tensor(rng.normal(size=(60, 3))), [], GMMScorer.forward
    detectors = [(GMMDetector().fit(rows), rows) for rows in (X, X.to("cuda"))]
    monkeypatch.setattr(GMMScorer, "forward", lambda *args: calls.append(args) or forward(*args))
    monkeypatch.setattr(scoring, "CHUNK_BYTES", 20 * 3 * 8)
    on_cpu, on_gpu = (detector.score_samples(rows) for detector, rows in detectors)
    assert [len(rows) for _, rows in calls] == [20, 20, 20, 60]
    np.testing.assert_allclose(on_gpu, on_cpu, rtol=1e-9)


def test_many_logits_make_smaller_batches():
    """Of 10 000 logits a batch by features alone would take 29 GiB."""
    rows, settings = SimpleNamespace(row_shape=(64,)), {"takes_features": True}
    settings.update(device=torch.device("cuda"), dtype=torch.float32)
    sizes = [
        batch_rows(rows, SimpleNamespace(n_logits=n, **settings), None) for n in (None, 10, 1000)
    ]
    assert sizes == [2**20, 2**20, 2**28 // (4 * 4 * 1000)]
