"""Many people: on all cores, GPUs and machines."""
