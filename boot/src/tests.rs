//! The whole recipe, on small kernels made here.
