"""A search for hyperparameters: trials that are runs, chosen by Optuna."""
