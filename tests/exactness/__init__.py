"""Ways of compiling and feeding a model, by plain Keras on one and by tfdp on many."""
