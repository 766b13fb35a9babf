"""GPU kernels of a model, compiled before there is a GPU (`precompile`) and timed on the one that is here (`tune`)."""
