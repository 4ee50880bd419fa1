"""Callbacks for trainers, one module per trainer: ``hugging_face`` and ``lightning``.

With ``curvature="second_moment"`` or ``"random"`` the optimizers need no callback. The callbacks make the passes that
``"fisher"`` and ``"hutchinson"`` need. Loops of one's own (Accelerate, torchrun) call :func:`torch_ire.refresh_mask`.
"""
