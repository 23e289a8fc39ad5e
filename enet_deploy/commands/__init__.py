"""The commands enet-train, -eval, -data, -inspect, -segment and -fleet, and what every command shares (`cli`)."""
