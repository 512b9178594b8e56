// The operations on a Metal device.
