// Metal as one of the backends of the boundary: backend.h.
