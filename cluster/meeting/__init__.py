"""How the workers find each other before TensorFlow starts, and watch each other afterwards."""
