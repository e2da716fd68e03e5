"""Evaluation of trained models: scores, significance tests, comparisons, tables and pictures."""
