// Buffers by address.
