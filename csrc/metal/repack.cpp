// Weights to a Metal device and from it.
