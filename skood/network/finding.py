"""Looking for the logits of a network and for the layer that makes them."""

import re
from collections import Counter

import torch
from torch import nn

from skood._warnings import warn
from skood.data.arrays import describe_channels_first, move
from skood.functional import pool
from skood.network.channels import ChannelAxes
from skood.network.ensemble import NetworkEnsemble
from skood.network.modules import (
    Unwritten,
    is_pointwise,
    private_copy,
)
from skood.network.outputs import (
    EMBEDDINGS,
    describe_probabilities,
    gives,
    is_one_map,
    is_same,
    logits_key,
    rng_state,
)
from skood.network.stages import Stages

# What networks raise for inputs that they do not take, or under another name.
FAILS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError)


class FindsHead:
    """The part of `Network` that runs it on a few rows, to see what it returns and how."""

    @torch.no_grad()
    def _find_head(self, sample):
        """Find the linear layer that makes the logits, or note why there is none."""
        if isinstance(sample, dict):
            if self.takes_features:
                raise TypeError("X is a dict of arrays, which only a whole network takes.")
            self._take_named()
            self.input_names = sorted(sample)
        if self.takes_features:
            if pool(sample.double()).shape[-1] != self.module.in_features:
                raise ValueError(
                    f"X has rows of shape {tuple(sample.shape[1:])}, but the linear layer given as "
                    f"`model` takes {self.module.in_features} features."
                )
            return
        output, linear, stages = self._observe(sample)
        rows = next(iter(sample.values())) if isinstance(sample, dict) else sample
        logits = self._pick_logits(output, linear, len(rows))
        if logits is None:
            return
        self.returns_shape_of_X = rows is sample and logits.shape == sample.shape
        several = [m for m in self.module.modules() if isinstance(m, NetworkEnsemble)]
        if any(len(ensemble.networks) > 1 for ensemble in several):
            self._refuse_features_of_several(logits)
        elif logits.ndim > 2 and not self.returns_features:
            self._pick_map_head(logits, linear, sample)
        elif not self.returns_features:
            self._pick_head(logits, linear)
        if not several:
            features = logits if self.returns_features else None
            self._stages = stages.names(self._head_name, self.map_head, features)
        if self._no_logits is None:
            self.n_logits = max(2, logits.shape[1])
            self._give_logits()

    def _observe(self, sample):
        """Run a copy on a few rows, and note how often each layer is called and what it gives.

        Returns
        -------
        output : object
            What the network returns.
        linear : list of (str, Tensor, Tensor)
            Name, output, and a copy of the output of each call of a linear layer: what follows
            may write to the output, which then is no longer the logits.
        stages : Stages
            What watched the pass.
        """
        called, linear = [], []
        n_rows = len(next(iter(sample.values())) if isinstance(sample, dict) else sample)

        def note(part, name, out):
            called.append((name, out))
            if isinstance(part, nn.Linear) or is_pointwise(part):
                linear.append((name, out, out.clone()))

        def run(dtype, sample=sample):
            twin = private_copy(self.module)
            called.clear(), linear.clear()
            self._found_axes = ChannelAxes(twin)
            stages = Stages(twin, self._found_axes, n_rows)
            for name, part in twin.named_modules():
                part.register_forward_hook(lambda part, _, out, name=name: note(part, name, out))
            guard = Unwritten(self._original)
            try:
                with guard:
                    return twin(move(sample, self.device, dtype, copy=True)), stages
            except RuntimeError:
                if guard.found is None:
                    raise
            self._own(guard.found)
            return run(dtype)

        random_state = rng_state(self.device)
        try:
            output, stages = run(self.input_dtype)
        except FAILS as error:
            parts = sample.items() if isinstance(sample, dict) else [("X", sample)]
            shapes = ", ".join(f"{n} of shape {tuple(t.shape)} and {t.dtype}" for n, t in parts)
            message = f"{self._owner} fails on two rows of X, {shapes}: {error}"
            message += self._layout_remedy(sample, run)
            if isinstance(sample, dict) or sample.is_floating_point():
                raise ValueError(message) from error
            self.input_dtype = torch.int64
            try:
                output, stages = run(self.input_dtype)
            except FAILS:
                raise ValueError(message) from error
        if not torch.equal(random_state, rng_state(self.device)):
            warn(
                f"{self._owner} draws random numbers in eval mode, so that scores are random.\n"
                "Let it draw in training only, as nn.Dropout does, or F.dropout(x, "
                "training=self.training)."
            )
        self._calls = Counter(name for name, _ in called)
        self._norms = self._names_of_norms(called, n_rows)
        self._not_tensor = {
            name: type(out).__name__ for name, out in called if not isinstance(out, torch.Tensor)
        }
        return output, linear, stages

    def _names_of_norms(self, called, n_rows):
        """Return the calls of normalisation layers that give rows, of torch's kinds and others."""
        numbers, names = Counter(), []
        for name, out in called:
            number = numbers[name]
            numbers[name] += 1
            kind = type(self.module.get_submodule(name)).__name__
            is_norm = re.search(r"^[A-Z]\w*Norm(\dd)?$", kind) is not None
            if is_norm and isinstance(out, torch.Tensor) and out.ndim > 1 and len(out) == n_rows:
                names.append(name if self._calls[name] == 1 else f"{name}:{number}")
        return tuple(names)

    def _layout_remedy(self, sample, run):
        """Return what may be wrong with the axes of X, in words, for an error message."""
        if isinstance(sample, dict):
            return "\nX goes to forward by name. Labels in batches are called 'labels' or 'label'."
        if sample.ndim == 3 and any(isinstance(part, nn.Conv2d) for part in self.module.modules()):
            return "\nIf X is a single image (C, H, W), pass X[None]."
        if sample.ndim < 4:
            return ""
        try:
            run(self.input_dtype, sample.movedim(-1, 1))
        except FAILS:
            return ""
        return f"\n{describe_channels_first(sample.numpy())}"

    def _pick_logits(self, output, linear, n_rows):
        """Return the logits in an output, and note what is wrong with them; None if it has none."""
        made = [out for _, out, _ in linear]
        self.logits_key = logits_key(output, made)
        logits = output if self.logits_key is None else output[self.logits_key]
        if not isinstance(logits, torch.Tensor) or (logits.ndim < 2 and logits.numel() != n_rows):
            kind = type(logits).__name__
            shape = f" of shape {tuple(logits.shape)}" if kind == "Tensor" else ""
            self._no_head = self._no_logits = TypeError(
                f"{self._owner} returns a {kind}{shape}, in which no single entry is the logits, "
                "of shape (n_samples, n_classes). Wrap it in an nn.Module whose forward returns "
                "them alone."
            )
            return None
        self._take_entry()
        if self.logits_key in EMBEDDINGS:
            self._find_no_head(f"returns {self.logits_key!r}")
            self._no_logits = self._no_head
            return logits
        ending = describe_probabilities(logits, [clone for _, _, clone in linear])
        if ending:
            self._no_logits = ValueError(
                f"{self._owner} ends in {ending}. skood needs the logits: remove that last step "
                "(in skorch, use criterion=nn.CrossEntropyLoss, or nn.BCEWithLogitsLoss for one "
                "logit).\nIf it is no classifier, work on the output of one of its layers: "
                "GMMDetector(net, layer=...)."
            )
        if logits.ndim < 2 or any(is_one_map(out, logits) for out in made):
            self.one_logit = "squeezed"
            logits = logits.reshape(n_rows, 1, *logits.shape[1:])
        elif logits.shape[1] == 1:
            self.one_logit = "column"
        return logits

    def _refuse_features_of_several(self, logits):
        """Note that several networks have no features in common."""
        self._logits_shape = tuple(logits.shape) if logits.ndim > 2 else None
        self._no_head = ValueError(
            "The networks of a NetworkEnsemble have no features in common, in front of one last "
            "linear layer.\nFit one detector a network and combine them by "
            "skood.ensemble.EnsembleDetector, or name a layer of one: layer='networks.0. ...'."
        )

    def _find_no_head(self, what):
        """Note that the network has no head: what it returns is features."""
        self.returns_features = True
        self._no_head = ValueError(
            f"{self._owner} has no head: it {what}, not logits. This needs the whole classifier, "
            "whose logits one nn.Linear or 1×1 convolution gives; methods on features and "
            "FeatureExtractor take what it returns."
        )

    def _pick_head(self, logits, linear):
        """Note the name of the linear layer that made the logits, or why there is none."""
        # The last one, but for networks that call another after the one they return.
        last, _, made = next(
            (call for call in linear if call[1] is logits), (linear or [(None, None, None)])[-1]
        )
        remedy = "Give skood a network that ends in one linear layer, or name the layer: layer=..."
        if made is None or not (gives(made, logits) or made.shape == logits.shape):
            self._find_no_head(f"returns {logits.shape[1]} numbers a row that no nn.Linear gives")
        elif self._calls[last] > 1:
            self._no_head = ValueError(
                f"{self._owner} calls its last linear layer {last!r} {self._calls[last]} times a "
                f"pass. {remedy}"
            )
        elif not gives(made, logits):
            self._no_head = self._no_logits or ValueError(
                f"{self._owner} does something after its last linear layer {last!r}, whose output "
                f"is not the network's. {remedy}"
            )
        else:
            self._head_name = last

    def _pick_map_head(self, logits, linear, sample):
        """Note the 1×1 convolution behind maps of logits, or that these are tokens or features."""
        self._logits_shape = tuple(logits.shape)
        self._no_head = self._no_vectors()
        if logits.ndim == 3:
            if not any(is_same(made, logits) for _, _, made in linear):
                self._find_no_head("returns tokens")
            return
        calls = [call for call in linear if call[2].ndim == logits.ndim]
        calls = [call for call in calls if self._calls[call[0]] == 1]
        # The last whose output is resized at most: an auxiliary head may be called after it.
        sure = (call for call in reversed(calls) if self._is_resized(call, logits, sample))
        name, _, made = next(sure, (None, None, None))
        self.map_head_is_sure = name is not None
        if name is None:
            if isinstance(sample, dict) or logits.shape[2:] != sample.shape[2:]:
                self._find_no_head(f"returns maps of shape {tuple(logits.shape[1:])}")
            if not linear or linear[-1][2].ndim != logits.ndim or linear[-1] not in calls[-1:]:
                return
            name, _, made = linear[-1]
        self.map_head, self.map_head_is_last = name, is_same(made, logits)

    def _is_resized(self, call, logits, sample):
        """Tell whether logits are the output of a layer, at most at another size."""
        name, _, made = call
        if made.shape[1] != logits.shape[1]:
            return False
        twin = private_copy(self.module)
        twin.get_submodule(name).register_forward_hook(lambda part, args, out: out + 1)
        moved = twin(move(sample, self.device, self.input_dtype, copy=True)).reshape(logits.shape)
        rounding = max(1e-3, 4 * torch.finfo(logits.dtype).eps) * (1 + logits.abs().max())
        return bool(((moved - logits - 1).abs() <= rounding).all())
