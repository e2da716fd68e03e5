"""The fronts of `cats pareto`: what two groups of languages trade off, over sampling ratios and between methods."""
