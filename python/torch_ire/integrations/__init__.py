"""Callbacks for trainers, each in a module of its own that needs its trainer: ``hugging_face`` and ``lightning``.

The optimizers need none of them: with ``curvature="second_moment"`` or ``"random"`` they are all there is to pass to a
trainer. The callbacks make the passes that ``"fisher"`` and ``"hutchinson"`` ask for. Loops that belong to the user
(Accelerate, torchrun) call :func:`torch_ire.refresh_mask`.
"""
