"""The methods that `cats train --method NAME` offers: one table of all of them, and how each is built."""
