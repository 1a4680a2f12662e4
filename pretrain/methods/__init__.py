"""Pre-training methods: one file each, with its configuration, its module and its loss."""
