"""The benchmarks of the operators: `python -m bench`. README.md in this folder says what is measured and how."""
