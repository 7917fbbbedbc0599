"""Models and training code as users write them: by plain Keras on one, by tfdp on many."""
