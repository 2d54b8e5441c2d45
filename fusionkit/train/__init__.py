"""Training a recipe: addresses, parameter groups, optimizers, stages, and the transformers Trainer underneath."""
