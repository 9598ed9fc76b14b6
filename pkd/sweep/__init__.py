"""Many trainings from one command: cells, shared teachers, shards and engines."""
