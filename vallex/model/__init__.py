"""The network of the released model: configuration, layers, training and synthesis passes, checkpoints."""
