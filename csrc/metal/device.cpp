// Metal devices of this process.
