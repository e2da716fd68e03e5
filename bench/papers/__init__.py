"""The runs and pictures of two papers, a command for each figure and table: CATS (Li & Gong 2021) and Order Matters
(Choi et al. 2023). `experiments.py` says what is trained, `figures.py` what is drawn of it.
"""
