// The Metal text, compiled when a kernel is first used.
