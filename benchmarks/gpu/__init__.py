"""`make gpu`: what an NVIDIA card does with every part of the project, in a report to send."""
