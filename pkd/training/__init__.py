"""Settings, structures, losses and the trainer."""
