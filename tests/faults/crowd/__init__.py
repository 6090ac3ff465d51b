"""Many processes and threads at one store."""
