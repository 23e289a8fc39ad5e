"""The commands enet-train, enet-eval, enet-data and enet-segment, and what every command shares (`cli`)."""
