"""Masks and prompts: sources, split, augmentation, loaders. Only ``data/module.py`` imports Lightning."""
