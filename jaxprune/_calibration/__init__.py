"""Pruning after training with calibration data: Wanda, SparseGPT and scores of channels."""
