// Streams of a Metal device.
