"""A Perceiver resampler for fusionkit: any number of tokens from any streams to a fixed number."""
