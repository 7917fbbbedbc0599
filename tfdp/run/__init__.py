"""A run in its workdir: starting or resuming, training, evaluating, publishing, summing up."""
