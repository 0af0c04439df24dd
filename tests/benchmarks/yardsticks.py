"""The same computed the plain way, as research code does, and by other libraries."""

import math

import numpy as np
import torch
from sklearn.mixture import GaussianMixture
from torch import nn
from torch.func import functional_call, grad, vmap


@torch.inference_mode()
def forward(net, X, batch_size=128):
    """Run a network over its inputs."""
    for batch in X.split(batch_size):
        net(batch)


def uniform_loss(logits):
    """Cross-entropy of the uniform distribution and the softmax: KL(u‖p) and a constant."""
    return -logits.log_softmax(1).mean(1).sum()


def forward_backward(net, X, batch_size=32):
    """Run a network, and the gradient of a loss to its parameters."""
    for batch in X.split(batch_size):
        torch.autograd.grad(uniform_loss(net(batch)), list(net.parameters()))


@torch.no_grad()
def odin(net, X, temperature=1000.0, epsilon=0.0014, batch_size=128):
    """Move inputs by the gradient of the log-probability, and score them."""
    scores = []
    for batch in X.split(batch_size):
        batch = batch.clone().requires_grad_()
        with torch.enable_grad():
            total = (net(batch) / temperature).log_softmax(1).amax(1).sum()
            (gradient,) = torch.autograd.grad(total, batch)
        moved = batch.detach() + epsilon * gradient.sign()
        scores.append((net(moved) / temperature).softmax(1).amax(1))
    return torch.cat(scores)


def vmap_gradnorm(net, X, batch_size=32):
    """L1 norm of each sample's gradient, by vmap(grad) in micro-batches."""
    params = {name: p.detach() for name, p in net.named_parameters()}

    def loss(params, x):
        return uniform_loss(functional_call(net, params, (x.unsqueeze(0),)))

    per_sample = vmap(grad(loss), in_dims=(None, 0))
    norms = []
    for batch in X.split(batch_size):
        grads = per_sample(params, batch)
        norms.append(sum(g.flatten(1).abs().sum(1) for g in grads.values()))
    return torch.cat(norms)


def resnet_gradient_at_layer1(net, X, batch_size=128):
    """Run a ResNet forward, and backward to the output of its layer1."""
    for batch in X.split(batch_size):
        with torch.no_grad():
            z = net.layer1(net.relu(net.bn1(net.conv1(batch))))
        z.requires_grad_()
        y = net.layer4(net.layer3(net.layer2(z)))
        logits = net.fc(torch.flatten(net.avgpool(y), 1))
        torch.autograd.grad(uniform_loss(logits), z)


def backward_a_layer(net, X, names, batch_size=128):
    """Gradient at the output of each layer, by one backward pass for each."""
    outputs = {}
    hooks = [
        net.get_submodule(name).register_forward_hook(
            lambda _, args, output, name=name: outputs.update({name: output})
        )
        for name in names
    ]
    for batch in X.split(batch_size):
        loss = uniform_loss(net(batch))
        for name in names:
            torch.autograd.grad(loss, outputs[name], retain_graph=True)
    for hook in hooks:
        hook.remove()


def gaussians_by_class(X, y, n_classes):
    """Weight, mean and Cholesky factor of each class, in a loop in float64."""
    gaussians = []
    for k in range(n_classes):
        rows = X[y == k].double()
        mean = rows.mean(0)
        covariance = (rows - mean).T @ (rows - mean) / len(rows)
        ridge = 0.01 * covariance.diagonal().mean()
        covariance += ridge * torch.eye(len(mean), dtype=torch.float64, device=X.device)
        gaussians.append((len(rows) / len(X), mean, torch.linalg.cholesky(covariance)))
    return gaussians


def gaussians_score(X, gaussians):
    """Log-density of rows under a mixture of Gaussians, class by class in float64."""
    X = X.double()
    log_densities = []
    for weight, mean, factor in gaussians:
        white = torch.linalg.solve_triangular(factor, (X - mean).T, upper=False)
        constant = len(mean) / 2 * math.log(2 * math.pi) + factor.diagonal().log().sum()
        log_densities.append(math.log(weight) - constant - white.square().sum(0) / 2)
    return torch.logsumexp(torch.stack(log_densities, 1), 1)


def gaussians_fit(X, y, n_classes, false_alarm_rate=0.05):
    """Fit a Gaussian a class, and the quantile of the scores that is the threshold."""
    gaussians = gaussians_by_class(X, y, n_classes)
    scores = gaussians_score(X, gaussians).cpu().numpy()
    return gaussians, np.quantile(scores, false_alarm_rate)


def sklearn_mixture(gaussians, dtype):
    """Give the Gaussians to scikit-learn."""
    weights, means, factors = zip(*gaussians, strict=True)
    mixture = GaussianMixture(len(means))
    mixture.weights_ = np.array(weights, dtype)
    mixture.means_ = torch.stack(means).cpu().numpy().astype(dtype)
    factors = torch.stack(factors)
    identity = torch.eye(factors.shape[1], dtype=factors.dtype, device=factors.device)
    inverse = torch.linalg.solve_triangular(factors, identity, upper=False)
    mixture.precisions_cholesky_ = inverse.mT.cpu().numpy().astype(dtype)
    return mixture


def nnguide_rows(X, head):
    """Directions of rows, and the same times the rows' energies."""
    directions = nn.functional.normalize(X)
    return directions, directions * torch.logsumexp(head(X), 1, keepdim=True)


def ash_by_scatter(x, percentile, variant):
    """ASH-P or ASH-S of maps (n, C, H, W) by topk, zeros and scatter."""
    n, *shape = x.shape
    n_all = math.prod(shape)
    k = n_all - int(np.round(n_all * percentile))
    flat = x.reshape(n, n_all)
    values, index = torch.topk(flat, k, dim=1)
    shaped = torch.zeros_like(flat).scatter_(1, index, values)
    if variant == "s":
        shaped *= (flat.sum(1, keepdim=True) / shaped.sum(1, keepdim=True)).exp()
    return shaped.view(x.shape)
