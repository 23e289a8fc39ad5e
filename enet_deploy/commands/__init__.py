"""The commands enet-train, enet-eval, enet-data and enet-segment."""
