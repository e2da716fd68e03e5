"""What all benchmarks share: timing, the roofline, facts about the machine, result files and tables."""
