"""The benchmarks of the trainer `cats.nmt`: training, translation, batches, and preparing a corpus."""
