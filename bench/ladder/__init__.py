"""The ladder: implementations of a training step, compared with the plain loop."""
