"""Pure PyTorch generative modelling: networks, objectives, samplers, degradations and metrics.

Nothing in this package imports lightning, hydra, omegaconf or wandb (``tests/test_architecture.py`` checks it).
"""
