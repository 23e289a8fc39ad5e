"""Latency, throughput and parity, side by side. Installed as `enet_deploy.benchmarks`."""
