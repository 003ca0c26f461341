"""Pruning after training with calibration data: Wanda and SparseGPT."""
