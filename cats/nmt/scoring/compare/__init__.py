"""The results of `cats compare`: scores of each method and seed, intervals, significance, regret, and their tables."""
