"""``torch-ire demo``: IRE beside its base optimizers on real data, in minutes on a CPU, without a download.

Handwritten digits with a small ResNet (SGD and SAM) and Python's own documentation with a small causal Transformer
(AdamW). Every comparison carries two controls, the base optimizer at its best learning rate and a random mask of the
same share, because IRE enlarges steps and a larger step alone can look like a gain.
"""
