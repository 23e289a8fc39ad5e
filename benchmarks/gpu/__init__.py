"""`make gpu`: try every part of the project on an NVIDIA card, and write a report to send."""
