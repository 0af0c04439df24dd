"""Text that a transformer does not know
=====================================

A small BERT learns to tell which part of scikit-learn a paragraph of documentation is from, and is
then shown paragraphs about other things. This is harder than digits: a paragraph is few words, and
most of them are the same in all documentation.
"""

import importlib
import inspect
import re
from collections import Counter

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.model_selection import GroupShuffleSplit
from transformers import BertConfig, BertForSequenceClassification

from skood import GMMDetector, NACDetector, NNGuideDetector
from skood.benchmark import default_baselines
from skood.metrics import auroc_score
from skood.plots import DetectorComparisonDisplay

# Batches this small gain nothing from a second thread.
torch.set_num_threads(1)

# %%
# Real text that is on every machine which runs this: the docstrings of installed packages, cut into
# paragraphs of 12 words or more. A paragraph that two packages share is left out.


def read_paragraphs(module):
    """Return the paragraphs in the docstrings of a module, each with the name it documents."""
    found = {}
    for name, thing in vars(importlib.import_module(module)).items():
        public = callable(thing) and not name.startswith("_")
        for paragraph in re.split(r"\n\s*\n", inspect.getdoc(thing) or "") if public else []:
            words = re.findall("[a-z]+", paragraph.lower())
            if len(words) >= 12 and ">>>" not in paragraph:
                found[" ".join(words)] = name
    return found


known = ["linear_model", "cluster", "metrics", "preprocessing", "decomposition"]
modules = [f"sklearn.{part}" for part in known]
unknown = ["sklearn.manifold", "torch.nn", "scipy.signal", "numpy.random"]
texts = {module: read_paragraphs(module) for module in [*modules, *unknown]}
n_places = Counter(text for found in texts.values() for text in found)
for module, found in texts.items():
    texts[module] = {text: name for text, name in found.items() if n_places[text] == 1}
    print(f"{module}: {len(texts[module])} paragraphs")
print("\na paragraph of sklearn.cluster:", list(texts["sklearn.cluster"])[3])

# %%
# Paragraphs on the same function resemble each other, so those of a function are either all for
# training or all for testing. Words are numbered by `CountVectorizer`: 0 fills rows up, 1 stands
# for the whole paragraph, 2 for words that occur only once or never in the training part.
N_WORDS = 32
rows = np.array([text for module in modules for text in texts[module]])
names = [f"{module}.{name}" for module in modules for name in texts[module].values()]
y = np.repeat(range(len(modules)), [len(texts[module]) for module in modules])
split = GroupShuffleSplit(1, test_size=0.3, random_state=0).split(rows, y, names)
train, test = next(split)
counter = CountVectorizer(token_pattern="[a-z]+", min_df=2).fit(rows[train])


def tokenize(paragraphs):
    """Return the words' numbers, and where there is one, as the network takes them by name."""
    ids = np.zeros((len(paragraphs), N_WORDS), dtype=np.int64)
    for row, paragraph in enumerate(paragraphs):
        numbers = [counter.vocabulary_.get(word, -1) + 3 for word in paragraph.split()]
        ids[row, : len(numbers) + 1] = [1, *numbers][:N_WORDS]
    return {"input_ids": ids, "attention_mask": (ids > 0).astype(np.int64)}


torch.manual_seed(0)
config = BertConfig(
    vocab_size=len(counter.vocabulary_) + 3,
    hidden_size=64,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=128,
    max_position_embeddings=N_WORDS,
    hidden_dropout_prob=0.1,
    num_labels=len(known),
)
net = BertForSequenceClassification(config)
optimizer = torch.optim.AdamW(net.parameters(), lr=0.005, weight_decay=0.1)
X_train, X_test = tokenize(rows[train]), tokenize(rows[test])
inputs = {key: torch.from_numpy(values) for key, values in X_train.items()}
labels = torch.from_numpy(y[train])
n_steps = 6 * -(-len(labels) // 64)
schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1, 0, total_iters=n_steps)
for _ in range(6):
    for batch in torch.randperm(len(labels)).split(64):
        optimizer.zero_grad()
        part = {key: values[batch] for key, values in inputs.items()}
        net(**part, labels=labels[batch]).loss.backward()
        optimizer.step()
        schedule.step()
net.eval()
with torch.no_grad():
    logits = net(**{key: torch.from_numpy(values) for key, values in X_test.items()}).logits
accuracy = (logits.argmax(dim=1).numpy() == y[test]).mean()
print(f"accuracy on paragraphs about functions not seen in training: {accuracy:.3f}")

# %%
# Detectors take the dict as X and hand its entries to the network by name. Beside their usual
# place, what enters the last layer, the Gaussians are tried on the first encoder layer, averaged
# over its tokens.
detectors = {
    **default_baselines(net),
    "NNGuide": NNGuideDetector(net, random_state=0),
    "NAC": NACDetector(net, random_state=0),
    "GMM": GMMDetector(net),
    "GMM, first layer": GMMDetector(net, "bert.encoder.layer.0.output"),
}
X_ood = {module: tokenize(list(texts[module])) for module in unknown}
ood_labels = {-1 - number: module for number, module in enumerate(unknown)}
sizes = [len(texts[module]) for module in unknown]
y_true = np.r_[y[test], np.repeat(list(ood_labels), sizes)]
scores = {}
for name, detector in detectors.items():
    detector.fit(X_train, y[train])
    parts = [detector.score_samples(X) for X in [X_test, *X_ood.values()]]
    scores[name] = np.concatenate(parts)
    print(f"{name}: AUROC against all {auroc_score(y_true, scores[name]):.3f}")

# %%
# **Try the plain thing as well**: the share of words that the vocabulary lacks. No detector comes
# up to it on packages with words of their own. A network that was trained to tell five topics keeps
# what tells these apart, and has little use for a word that it does not know; the first layer still
# shows more of the words of `torch.nn` and `scipy.signal` than the last. On `sklearn.manifold`,
# whose words are those of the known topics, it is the other way round.
lacking = [
    (X["input_ids"] == 2).sum(axis=1) / X["attention_mask"].sum(axis=1)
    for X in [X_test, *X_ood.values()]
]
scores["words it knows"] = 1 - np.concatenate(lacking)
print(f"words it knows: AUROC against all {auroc_score(y_true, scores['words it knows']):.3f}")

# %%
# Read 0.7 so: of a known and an unknown paragraph, the known one has the higher score in 7 of 10
# pairs.
_, axis = plt.subplots(figsize=(8, 6.4), layout="compressed")
DetectorComparisonDisplay.from_predictions(
    y_true, scores, ood_labels=ood_labels, n_resamples=200, random_state=0, ax=axis
)
plt.show()
