"""``torch-ire demo``: IRE beside its base optimizers on real data, in minutes on a CPU, without a download.

It trains a small ResNet on handwritten digits (SGD and SAM) and a small causal Transformer on Python's documentation
(AdamW). Every comparison has two controls, the base optimizer at its best learning rate and a random mask of the same
share: IRE enlarges steps, and a larger step alone can look like a gain.
"""
