"""The vision towers of OpenCLIP as encoders for fusionkit."""
