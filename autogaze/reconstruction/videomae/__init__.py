"""The learned reconstructor: a masked autoencoder that rebuilds frames from gazed multi-scale patches."""
