"""Every way of compiling and feeding a model, computed by plain Keras on one and by tfdp on many."""
