"""One step on every replica: its share of the batch, the gradients' all-reduce, Keras's step."""
