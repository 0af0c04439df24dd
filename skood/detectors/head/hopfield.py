"""The energy of modern Hopfield networks: SHE's training rows, each of them a pattern."""

import torch

from skood._warnings import warn
from skood.functional import clip_to, radial
from skood.learning.agreement import check_some_known, row_columns
from skood.learning.blocks import score_in_blocks
from skood.learning.learning import LearningScorer
from skood.learning.moments import check_squares
from skood.learning.neighbours import THRESHOLD_ROWS
from skood.learning.norms import lengths
from skood.learning.reservoir import Reservoir


def warn_of_wrong(classes):
    """Warn of classes, a mask (n_classes,), of which no row is predicted right."""
    if bool(classes.any()):
        warn(
            f"Of the classes of the logits {classes.nonzero()[:5, 0].tolist()} no row is predicted "
            "right: all rows of these labels are their patterns."
        )


class HopfieldScorer(LearningScorer):
    """Features, or (features, logits) → log Σ exp of products with the rows of a class."""

    learned = ("bank", "bank_classes")
    n_threshold_rows = THRESHOLD_ROWS
    needs_row_keys = True

    def __init__(self, head, beta, bank_size):
        super().__init__()
        self.head, self.beta, self.bank_size = head, beta, bank_size
        # The label of each logit, where it is known.
        self.known = None
        self.samples_by_key = bank_size is not None
        self.clear_cache()

    def _logits(self, features, logits=None):
        return self.head(features) if logits is None else logits

    def check(self, inputs):
        """Raise if products would overflow."""
        check_squares(inputs[0])

    def init_state(self, inputs, n_classes, n_expected):
        """Return an empty sample."""
        return Reservoir(self.bank_size, n_expected, with_codes=True)

    def update(self, state, inputs, class_indices, keys):
        """Add the rows that are drawn, with the logits of their labels and the largest."""
        chosen = state.choose(keys)
        class_indices, logits = class_indices[chosen], self._logits(*inputs)[chosen]
        own = row_columns(class_indices, self.labels, logits, self.known)
        state.add([inputs[0][chosen], own, logits.argmax(1), class_indices], keys[chosen])

    def finalize(self, state, classes):
        """Keep the rows of each class that are predicted right; without these, all."""
        keys, (rows, own, predicted, _) = state.sample()
        check_squares(rows)
        check_some_known(bool((own >= 0).any()), classes)
        is_right, at = own == predicted, own.clamp(min=0)
        n_right = torch.bincount(own[is_right], minlength=int(at.amax()) + 1)
        kept = is_right | ((own >= 0) & (n_right[at] == 0))
        warn_of_wrong(torch.bincount(own[kept & ~is_right], minlength=1) > 0)
        own, keys, self.labels = own[kept], keys[kept], classes
        # Within a class in the order of the keys, as they come.
        order = own.argsort(stable=True)
        self.bank, self.bank_classes = rows[kept][order], own[order]
        self.keys = (own + keys)[order]

    def clear_cache(self):
        """Drop what only learning needs."""
        self.keys = None

    def forward(self, *inputs):
        """Score rows."""
        if torch.compiler.is_exporting():
            return self._score_at_once(*inputs)
        return self._in_blocks(inputs, inputs[0].new_full(inputs[0].shape[:1], -1).long())

    def _in_blocks(self, inputs, places):
        row_bytes = 8 * (4 * inputs[0].shape[1] + 4 * len(self.bank))
        return score_in_blocks(self._score, row_bytes, places, *inputs)

    def _ends(self, n_logits):
        """Return where the rows of each class start and stop in the bank."""
        classes = torch.arange(n_logits, device=self.bank.device)
        return (torch.searchsorted(self.bank_classes, classes, right=r) for r in (False, True))

    def _score(self, places, *inputs):
        """Score rows of a block, each without the row at its place in the bank, if that is >= 0."""
        logits = self._logits(*inputs)
        starts, stops = self._ends(logits.shape[1])
        n_rows = (stops - starts).repeat(len(logits), 1)
        inside = places >= 0
        n_rows[inside, self.bank_classes[places[inside]]] -= 1
        # A row that no other class has rows for is scored with itself.
        places = torch.where((n_rows > 0).any(1), places, -1)
        n_rows = torch.where((n_rows > 0).any(1, keepdim=True), n_rows, stops - starts)
        predicted = logits.masked_fill(n_rows == 0, -torch.inf).argmax(1)
        scores = torch.empty(len(logits), dtype=torch.float64, device=logits.device)
        for k in predicted.unique().tolist():
            chosen = (predicted == k).nonzero()[:, 0]
            products = self._products(inputs[0][chosen], self.bank[starts[k] : stops[k]])
            columns = places[chosen] - starts[k]
            inside = (columns >= 0) & (columns < products.shape[1])
            products[inside, columns[inside]] = -torch.inf
            scores[chosen] = torch.logsumexp(products, dim=1)
        return clip_to(scores, torch.float64)

    def _score_at_once(self, *inputs):
        """Score rows by products with the whole bank, as a graph."""
        logits = self._logits(*inputs)
        classes = torch.arange(logits.shape[1])
        has_rows = (classes[:, None] == self.bank_classes).any(1)
        predicted = logits.masked_fill(~has_rows, -torch.inf).argmax(1)
        products = self._products(inputs[0], self.bank)
        products = products.masked_fill(self.bank_classes != predicted[:, None], -torch.inf)
        return clip_to(torch.logsumexp(products, dim=1), torch.float64)

    def _products(self, features, rows):
        # Of lengths apart: the products of rows of 1e200 overflow.
        directions = radial(features, 1, torch.float64) * self.beta
        return directions @ rows.double().T * lengths(features)[:, None]

    def leave_one_out(self, inputs, class_indices, keys):
        """Score training rows without themselves."""
        own = row_columns(class_indices, self.labels, self._logits(*inputs), self.known)
        keys = own + keys
        places = torch.searchsorted(self.keys, keys).clamp(max=len(self.keys) - 1)
        return self._in_blocks(inputs, torch.where(self.keys[places] == keys, places, -1))
