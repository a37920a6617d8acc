"""What :mod:`persres.pipeline` adds to the pipelines of diffusers."""
