"""The reference multilingual translation trainer. It uses the library through its public names only."""
