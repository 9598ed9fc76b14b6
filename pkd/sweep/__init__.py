"""Many trainings from one command: cells, shared teachers, shards, and the engines that run them."""
