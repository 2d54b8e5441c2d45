"""Real pretrained weights for fusionkit, from files that package registries ship."""
