"""Accelerated modules: subclasses of the modules of torch and diffusers that override forward only."""
