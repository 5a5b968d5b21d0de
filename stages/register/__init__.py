"""The model in MLflow's registry, through a gate."""
