"""Benchmarks of the operators and of the trainer. README.md says what is measured and how."""
