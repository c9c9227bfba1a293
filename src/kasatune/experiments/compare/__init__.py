"""Compare fine-tuning methods over tasks and seeds under equal budgets; every finished run is kept and reused."""
