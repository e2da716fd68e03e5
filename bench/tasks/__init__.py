"""The benchmark of the task weightings on small problems: `python -m bench.tasks`."""
