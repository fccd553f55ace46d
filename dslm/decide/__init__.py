"""From a recipe and a cluster to a job that is ready to launch."""
