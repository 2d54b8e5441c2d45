"""Every stage of a ConvNeXt on one grid, as an encoder for fusionkit."""
