"""Measuring: processes, rounds, stages, parity, memory, training speed."""
